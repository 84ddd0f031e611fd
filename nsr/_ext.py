"""Lazy loading of the native library nsr/_C*.so, and the choice between it and the PyTorch reference.

Nothing is loaded on import. The environment variable NSR_BACKEND chooses per call:
    native      the library, or ExtensionError when it cannot be loaded
    reference   the pure PyTorch specification in nsr/ops/reference
    unset       native when it loads; otherwise reference, after one warning
"""

from __future__ import annotations

import contextlib
import os
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal

from nsr.utils.errors import ConfigError, ExtensionError

Backend = Literal["native", "reference"]

_DIRECTORY = Path(__file__).resolve().parent
_HOW_TO_BUILD = (
    "Run `make setup` (or `pip install --no-build-isolation -e .`) in the checkout to build it, "
    "or set NSR_BACKEND=reference to run on plain PyTorch, slowly."
)

_loaded: Path | None = None
_failure: str | None = None
_warned = False
_callbacks: list[Callable[[], None]] = []


def on_load(callback: Callable[[], None]) -> Callable[[], None]:
    """Runs `callback` once, after the library is loaded: where nsr.ops attaches fake kernels and derivatives."""
    if _loaded is not None:
        callback()
    else:
        _callbacks.append(callback)
    return callback


def load() -> Path:
    """Loads the library on first use and returns its path.

    Raises:
        ExtensionError: it is missing or does not load; says what was tried, why it failed and what to run.
    """
    if _loaded is not None:
        return _loaded
    if _failure is None:
        _try_to_load()
    if _failure is not None:
        raise ExtensionError(f"nsr: the native library could not be loaded: {_failure}. {_HOW_TO_BUILD}")
    return _loaded


def _try_to_load() -> None:
    global _loaded, _failure
    candidates = sorted(_DIRECTORY.glob("_C*.so"))
    if len(candidates) != 1:
        found = ", ".join(path.name for path in candidates) or "none"
        _failure = f"expected one file {_DIRECTORY / '_C*.so'}, found {found}"
        return
    import torch

    try:
        torch.ops.load_library(str(candidates[0]))
    except (OSError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        _failure = f"{candidates[0]} is damaged or was built for another torch than {torch.__version__}: {reason}"
        return
    _loaded = candidates[0]
    while _callbacks:
        _callbacks.pop(0)()


def backend() -> Backend:
    """The backend that serves the next call; see the module's docstring.

    Raises:
        ConfigError: NSR_BACKEND is neither native nor reference.
        ExtensionError: NSR_BACKEND=native and the library cannot be loaded.
    """
    global _warned
    wanted = os.environ.get("NSR_BACKEND", "")
    if wanted == "reference":
        return "reference"
    if wanted not in ("", "native"):
        raise ConfigError(f"NSR_BACKEND is {wanted!r}; expected 'native', 'reference', or unset")
    if _loaded is not None:
        return "native"
    if wanted == "native":
        load()
        return "native"
    try:
        load()
        return "native"
    except ExtensionError as error:
        if not _warned:
            _warned = True
            warnings.warn(f"{error} Using the PyTorch reference.", RuntimeWarning, stacklevel=3)
        return "reference"


@contextlib.contextmanager
def use_backend(name: Backend) -> Iterator[None]:
    """NSR_BACKEND within a `with` block; afterwards it is what it was."""
    before = os.environ.get("NSR_BACKEND")
    os.environ["NSR_BACKEND"] = name
    try:
        yield
    finally:
        os.environ.pop("NSR_BACKEND")
        if before is not None:
            os.environ["NSR_BACKEND"] = before


def served_natively(kind: str) -> bool:
    """Whether the native library serves the next call with tensors on this kind of device ("cpu", "cuda")."""
    return backend() == "native" and kind in _devices()


def _devices() -> tuple[str, ...]:
    """The kinds of device that the library was built for."""
    return ("cpu",) if build_report()["cuda"] == "no" else ("cpu", "cuda")


def check_device_served(kind: str) -> None:
    """Refuse a kind of device ("cpu", "cuda") for whose tensors the backend of the next call has no kernels.

    Raises:
        ExtensionError: the native library serves the next call, and was built without that device.
        ConfigError: see `backend`.
    """
    if kind == "cpu" or backend() == "reference" or kind in _devices():
        return
    built_for = "cpu alone" if _devices() == ("cpu",) else " and ".join(_devices())
    raise ExtensionError(
        f"nsr: the native library {build_report()['library']} has no kernels for {kind}: it was built for {built_for}. "
        "Use --device cpu; for cuda, build it again where torch has CUDA and nvcc is found "
        "(`NSR_CUDA=1 pip install --no-build-isolation -e .` in the checkout); or set "
        "NSR_BACKEND=reference to run on plain PyTorch, slowly."
    )


def build_report() -> dict[str, str | None]:
    """What `nsr doctor` prints about the library, loading it if need be; never raises.

    Keys: library (path), error (why it does not load); torch, compiler, flags and cuda ("no" or the CUDA version) it
    was built with; backend (what NSR_BACKEND asks for). Values are None where unknown.
    """
    report: dict[str, str | None] = dict.fromkeys(("library", "error", "torch", "compiler", "flags", "cuda"))
    report["backend"] = os.environ.get("NSR_BACKEND") or "native when available"
    try:
        report["library"] = str(load())
    except ExtensionError as error:
        report["error"] = str(error)
        return report
    import torch

    for line in torch.ops.nsr.build_info().splitlines():
        key, _, value = line.partition("=")
        report[key] = value
    return report
