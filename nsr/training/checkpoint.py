"""Checkpoints: one atomic file with everything a run needs to continue, and nothing that executes code when read.

The file is a safetensors file. Its metadata has one entry, `nsr`: JSON with the format version, a checksum and the
caller's `meta`. State dicts of any nesting are split by `flatten` into named tensors and JSON, and put together again,
bit for bit, by `unflatten`.
"""

from __future__ import annotations

import json
import math
import os
import re
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nsr.utils.errors import CheckpointError, RetriableError, is_transient
from nsr.utils.files import atomic_write, keep_as

FORMAT_VERSION = 1
_METADATA_KEY = "nsr"

# JSON has neither tensors, tuples, keys other than strings, nor NaN: each is an object with one of these keys.
_TENSOR, _TUPLE, _PAIRS, _FLOAT = "$tensor", "$tuple", "$pairs", "$float"


@dataclass(frozen=True)
class Checkpoint:
    """tensors: by name, on the CPU; meta: what was saved with them; checksum: of both, tells a checkpoint from others."""

    tensors: dict[str, Tensor]
    meta: dict[str, Any]
    checksum: str


class DamagedCheckpointError(CheckpointError):
    """A checkpoint that is cut off or garbled, and not one of another program or version: the one before it may be whole."""


def save_checkpoint(
    path: str | Path, tensors: Mapping[str, Tensor], meta: Mapping[str, Any], keep: str | Path | None = None
) -> None:
    """Write tensors (any device, shape and dtype; strides are not kept) and a JSON-able dict as one file, atomically.

    keep: another name for the file that is replaced, where there is one. A crash at any moment leaves the previous file or the
    new one. Raises CheckpointError when the file cannot be written, RetriableError when it may be at another time (a full
    disk), and TypeError or ValueError when meta is not strict JSON.
    """
    from safetensors.torch import save

    # Copies: safetensors refuses tensors that share memory, and the state may change while the file is written.
    stored = {name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in tensors.items()}
    meta_text = json.dumps(meta, allow_nan=False)
    header = {"version": FORMAT_VERSION, "crc32": _checksum(stored, meta_text), "meta": meta_text}
    data = save(stored, {_METADATA_KEY: json.dumps(header)})
    try:
        with atomic_write(path, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())  # the one that is kept gives way only to one that is whole
            if keep is not None and Path(path).is_file():
                keep_as(Path(path), Path(keep))
    except OSError as error:
        raise (RetriableError if is_transient(error) else CheckpointError)(
            f"cannot write the checkpoint {path}: {error.strerror or error}; the previous one, if any, is untouched. "
            "Free some space or choose another folder"
        ) from error


def load_checkpoint(path: str | Path) -> Checkpoint:
    """Read what save_checkpoint wrote. Nothing in the file is executed.

    Raises CheckpointError: no such file, a truncated or damaged file (DamagedCheckpointError), a file of another program (a
    pickle is recognised and not opened), a newer format. An OSError that may be gone at another time passes through.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load

    path = Path(path)
    _check_is_safetensors(path)
    try:
        # One read: safe_open opens the file twice, and a run may replace it in between.
        data = path.read_bytes()
        metadata = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")]).get("__metadata__", {})
        tensors = {name: tensor.clone() for name, tensor in load(data).items()}
    except (SafetensorError, OSError, ValueError) as error:
        if is_transient(error):
            raise
        raise DamagedCheckpointError(
            f"{path}: the checkpoint is truncated or damaged ({error}); use an earlier one or train again"
        ) from error
    if _METADATA_KEY not in metadata:
        raise CheckpointError(f"{path}: a safetensors file, but not an nsr checkpoint; expected one of `nsr train`")
    meta, crc = _read_meta(path, metadata[_METADATA_KEY], tensors)
    return Checkpoint(tensors, meta, f"{crc:08x}")


def _read_meta(path: Path, text: str, tensors: Mapping[str, Tensor]) -> tuple[dict[str, Any], int]:
    """The caller's metadata and the checksum, once version and checksum are found right."""
    try:
        header = json.loads(text)
        version, crc, meta_text = header["version"], header["crc32"], header["meta"]
    except (ValueError, KeyError, TypeError) as error:
        raise DamagedCheckpointError(f"{path}: the checkpoint's header is damaged; use an earlier one") from error
    if version != FORMAT_VERSION:
        raise CheckpointError(
            f"{path}: checkpoint format {version}, this nsr reads {FORMAT_VERSION}; use the nsr that wrote it"
        )
    if _checksum(tensors, meta_text) != crc:
        raise DamagedCheckpointError(f"{path}: the checkpoint is damaged (wrong checksum); use an earlier one or train again")
    return json.loads(meta_text), crc


def _check_is_safetensors(path: Path) -> None:
    """Tell apart, by its first bytes, what is worth opening; a pickle must not be."""
    if not path.is_file():
        what = "is a folder" if path.is_dir() else "does not exist"
        raise CheckpointError(f"checkpoint {path} {what}; expected a .safetensors file that `nsr train` wrote")
    with open(path, "rb") as file:
        start = file.read(9)
    header_bytes = int.from_bytes(start[:8], "little")
    if start[8:] == b"{" and header_bytes < path.stat().st_size:
        return
    if start[:4] == b"PK\x03\x04" or start[:1] == b"\x80":
        raise CheckpointError(
            f"{path}: a pickle (torch.save), not an nsr checkpoint; it was not opened, since a pickle can run code. "
            "Weights of the original IDR are read by `nsr train --init_weights FILE.pth` (load_legacy_idr)"
        )
    raise DamagedCheckpointError(
        f"{path}: truncated, or not an nsr checkpoint (no safetensors header); use an earlier one or train again"
    )


def _checksum(tensors: Mapping[str, Tensor], meta_text: str) -> int:
    """CRC-32 over the metadata and every tensor's name, type, shape and bytes; safetensors itself checks sizes only."""
    crc = zlib.crc32(meta_text.encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        crc = zlib.crc32(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode(), crc)
        crc = zlib.crc32(tensor.contiguous().reshape(-1).view(torch.uint8).numpy(), crc)
    return crc


def flatten(prefix: str, state: Any) -> tuple[dict[str, Tensor], Any]:
    """Split nested dicts, lists and tuples into tensors, named by their path under `prefix`, and JSON for the rest.

    Leaves may be tensors, numbers, bools, strings and None; TypeError names the path of anything else.
    """
    tensors: dict[str, Tensor] = {}
    return tensors, _flatten(prefix, state, tensors)


def _flatten(path: str, value: Any, tensors: dict[str, Tensor]) -> Any:
    if isinstance(value, Tensor):
        name = path
        while name in tensors:  # the keys 0 and "0" of one dict, say
            name += "'"
        tensors[name] = value
        return {_TENSOR: name}
    if isinstance(value, Mapping):
        items = {key: _flatten(f"{path}.{key}", item, tensors) for key, item in value.items()}
        if all(isinstance(key, str) and not key.startswith("$") for key in items):
            return items
        return {_PAIRS: [[_flatten(f"{path}.{key}", key, tensors), item] for key, item in items.items()]}
    if isinstance(value, list | tuple):
        items = [_flatten(f"{path}.{i}", item, tensors) for i, item in enumerate(value)]
        return {_TUPLE: items} if isinstance(value, tuple) else items
    if isinstance(value, float) and not math.isfinite(value):
        return {_FLOAT: repr(value)}
    if value is None or type(value) in (bool, int, float, str):
        return value
    raise TypeError(f"{path}: a {type(value).__name__} does not go into a checkpoint; store a tensor or a number")


def unflatten(prefix: str, tensors: Mapping[str, Tensor], rest: Any) -> Any:
    """Put together what `flatten` took apart. CheckpointError when a tensor is missing."""
    if isinstance(rest, list):
        return [unflatten(prefix, tensors, item) for item in rest]
    if not isinstance(rest, dict):
        return rest
    if _TENSOR in rest:
        if rest[_TENSOR] not in tensors:
            raise CheckpointError(f"the checkpoint lacks the tensor {rest[_TENSOR]} of {prefix}; use an earlier one")
        return tensors[rest[_TENSOR]]
    if _TUPLE in rest:
        return tuple(unflatten(prefix, tensors, item) for item in rest[_TUPLE])
    if _PAIRS in rest:
        return {unflatten(prefix, tensors, key): unflatten(prefix, tensors, item) for key, item in rest[_PAIRS]}
    if _FLOAT in rest:
        return float(rest[_FLOAT])
    return {key: unflatten(prefix, tensors, item) for key, item in rest.items()}


_LEGACY_KEY = re.compile(r"(implicit_network|rendering_network)\.lin\d+\.(weight|weight_g|weight_v|bias)")
# Where torch.nn.utils.parametrizations.weight_norm keeps what the older torch.nn.utils.weight_norm called g and v.
_WEIGHT_NORM = {"weight_g": "parametrizations.weight.original0", "weight_v": "parametrizations.weight.original1"}


def load_legacy_idr(path: str | Path) -> dict[str, Tensor]:
    """The weights in a model checkpoint of the original IDR (ModelParameters/latest.pth), under our names.

    The file is a torch.save of {"epoch", "model_state_dict"}; it is read with weights_only, so a pickle that would run
    code is refused. Raises CheckpointError: missing, damaged or refused file, no model_state_dict, unknown parameters.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"checkpoint {path} does not exist; expected a .pth file of the original IDR")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch.load raises whatever a damaged archive leads it to
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise CheckpointError(f"{path}: not readable as weights of the original IDR: {reason}") from error
    state = content.get("model_state_dict") if isinstance(content, dict) else None
    if not isinstance(state, Mapping) or not all(isinstance(value, Tensor) for value in state.values()):
        raise CheckpointError(f"{path}: expected a dict with 'model_state_dict', as the original IDR saves it")
    names = {key: key.removeprefix("module.") for key in state}
    unknown = [key for key, name in names.items() if not _LEGACY_KEY.fullmatch(name)]
    if unknown:
        raise CheckpointError(
            f"{path}: unknown parameters {', '.join(unknown)}; "
            "expected those of implicit_network and rendering_network of the original IDR"
        )
    return {_rename_legacy(name): state[key] for key, name in names.items()}


def _rename_legacy(name: str) -> str:
    layer, _, parameter = name.rpartition(".")
    return f"{layer}.{_WEIGHT_NORM.get(parameter, parameter)}"
