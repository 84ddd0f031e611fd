"""`nsr doctor`: what is installed, what was built, which devices there are, and what optional extras are missing."""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
import os
import platform
import shutil
import sys
from pathlib import Path

from nsr import __version__
from nsr.utils.errors import ExtensionError
from nsr.utils.extras import TINY_CUDA_NN
from nsr.utils.threads import THREAD_POLICY

EXAMPLES = """examples:
  nsr doctor
  NSR_BACKEND=reference nsr doctor      what runs without the native library

Exit codes: 0 usable; 6 the native library is missing or does not load."""

DEPENDENCIES = (
    "torch",
    "numpy",
    "scipy",
    "trimesh",
    "pyhocon",
    "scikit-image",
    "pillow",
    "imageio",
    "rich",
    "tensorboard",
    "safetensors",
    "embreex",
    "libigl",
    "jaxtyping",
)
# import name -> what it is for, how to get it
EXTRAS = {
    "imageio_ffmpeg": ("nsr render --out FILE.mp4", "pip install 'nsr[video]'"),
    "lpips": ("LPIPS in nsr eval", "pip install 'nsr[lpips]'"),
    "matplotlib": ("nsr plot, benchmarks/convergence.py", "pip install 'nsr[plot]'"),
    "plotly": ("nsr plot, benchmarks/convergence.py", "pip install 'nsr[plot]'"),
    "h3ds": ("the view splits of H3DS, where no config.toml has them", "pip install --no-deps h3ds"),
    "tinycudann": ("the encoders with _tcnn, and comparisons (GPU)", TINY_CUDA_NN),
    "pytorch3d": (
        "comparisons with pytorch3d (GPU)",
        "pip install 'git+https://github.com/facebookresearch/pytorch3d.git'",
    ),
}
MISSING = "missing"
CPU_FLAGS = ("sse4_2", "avx", "avx2", "fma", "avx512f", "avx512_bf16", "amx_bf16", "neon", "asimd", "sve")


def build_parser(prog: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=prog, description=__doc__, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.set_defaults(run=run_doctor)
    return parser


def run_doctor(args: argparse.Namespace) -> int:
    from nsr._ext import build_report

    missing = [name for name in DEPENDENCIES if _version(name) == MISSING]
    extension = build_report() if "torch" not in missing else {"error": "torch is missing"}
    _section("system", system_report())
    _section("dependencies", {name: _version(name) for name in DEPENDENCIES})
    _section("torch", torch_report())
    _section("extension nsr._C", {name: value or "-" for name, value in extension.items() if name != "error"})
    _section("optional extras", extras_report())
    if missing:
        print(f"\nmissing dependencies: {', '.join(missing)}. Run `make setup`.")
    if extension["error"]:
        print(f"\nthe extension is not usable: {extension['error']}")
    if missing or extension["error"]:
        return ExtensionError.exit_code
    print("\nnsr is ready.")
    return 0


def system_report() -> dict[str, str]:
    flags = cpu_flags()
    return {
        "nsr": f"{__version__} in {Path(__file__).resolve().parents[1]}",
        "python": f"{platform.python_version()} ({sys.executable})",
        "platform": platform.platform(),
        "cpu": f"{cpu_count()} usable cores, {cpu_model()}",
        "cpu flags": " ".join(flag for flag in CPU_FLAGS if flag in flags) or "unknown",
        "thread policy": " ".join(f"{name}={os.environ.get(name, 'unset')}" for name in THREAD_POLICY),
    }


def torch_report() -> dict[str, str]:
    """Empty when torch is missing, which the list of dependencies shows."""
    try:
        import torch
    except ImportError:
        return {}
    report = {
        "version": torch.__version__,
        "threads": str(torch.get_num_threads()),
        "built with CUDA": torch.version.cuda or "no",
    }
    for index in range(torch.cuda.device_count()):
        device = torch.cuda.get_device_properties(index)
        name = f"{device.name}, {device.total_memory / 2**30:.0f} GiB, sm_{device.major}{device.minor}"
        report[f"cuda:{index}"] = name
    return report


def extras_report() -> dict[str, str]:
    report = {}
    for name, (purpose, command) in EXTRAS.items():
        found = importlib.util.find_spec(name) is not None
        report[name] = "installed" if found else f"missing ({purpose}): {command}"
    how_to_get_nvcc = "install the CUDA toolkit that matches torch, then `make setup`"
    report["nvcc"] = shutil.which("nvcc") or f"missing (CUDA kernels): {how_to_get_nvcc}"
    return report


def cpu_count() -> int:
    """Cores that this process may use, which in a container may be fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def cpu_flags() -> set[str]:
    return set(_cpu_info("flags").split() or _cpu_info("Features").split())


def cpu_model() -> str:
    return _cpu_info("model name") or platform.machine()


def _cpu_info(key: str) -> str:
    """The first value of a key in /proc/cpuinfo; empty where there is no such file."""
    path = Path("/proc/cpuinfo")
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else ():
        name, _, value = line.partition(":")
        if name.strip() == key:
            return value.strip()
    return ""


def _version(distribution: str) -> str:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return MISSING


def _section(title: str, rows: dict[str, str]) -> None:
    print(f"\n{title}")
    for name, value in rows.items():
        print(f"  {name:<16} {value}")
