"""The CUDA kernels of csrc/cuda/, compiled for the CPU and put in the place of the library's own CPU kernels.

As a pytest plugin (`-p support.emulated_cuda`, with the library in $NSR_EMULATED_CUDA) it makes a test session run them: the
definitions of tests/cuda_emulation/as_cpu.cpp are loaded first and with global symbols, so the dynamic linker prefers them to
those of nsr/_C*.so. The adapters of csrc/torch/, the derivatives and the tests stay the same.
"""

from __future__ import annotations

import ctypes
import fcntl
import hashlib
import os
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SHIM = ROOT / "tests" / "cuda_emulation"
VARIABLE = "NSR_EMULATED_CUDA"
# Undefined behaviour ends the process: a misaligned load, say, which a GPU refuses and a CPU does not.
FLAGS = ["-std=c++20", "-O2", "-fPIC", "-Wno-unknown-pragmas", "-D__CUDA_ARCH__=900"]
FLAGS += ["-fsanitize=undefined", "-fno-sanitize=vptr", "-fno-sanitize-recover=all", "-I", str(SHIM)]


def build_library() -> Path:
    """Compiles csrc/cuda/ and the emulator, once per content, and returns the shared library."""
    sources = [*sorted(ROOT.glob("csrc/cuda/*.cu")), *sorted(SHIM.glob("*.cpp"))]
    headers = [*sorted(SHIM.glob("*.h")), *sorted(ROOT.glob("csrc/cuda/*.cuh")), *sorted(ROOT.glob("csrc/kernels/*.h"))]
    digest = hashlib.sha256(" ".join(FLAGS).encode())
    for path in (*sources, *headers):
        digest.update(path.read_bytes())
    folder = ROOT / "build" / "cuda_emulation" / digest.hexdigest()[:16]
    folder.mkdir(parents=True, exist_ok=True)
    library = folder / "libnsr_cuda_emulated.so"
    with open(folder / ".lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not library.exists():
            unfinished = folder / "unfinished.so"
            compile_and_link(sources, unfinished, "-shared")
            unfinished.rename(library)
    return library


def compile_and_link(sources: list[Path], target: Path, *link_flags: str) -> None:
    """Sources that know the runtime's functions only from the stand-in, beside the emulator."""

    def compiled(source: Path) -> str:
        file = target.with_name(f"{source.name}.o")
        _run_compiler(*FLAGS, "-x", "c++", "-c", str(source), "-o", str(file))
        return str(file)

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        _run_compiler(*link_flags, "-fsanitize=undefined", "-o", str(target), *pool.map(compiled, sources))


def _run_compiler(*arguments: str) -> None:
    done = subprocess.run([os.environ.get("CXX", "g++"), *arguments], capture_output=True, text=True)
    assert done.returncode == 0, f"{' '.join(done.args)}\n{done.stderr}"


_library: ctypes.CDLL | None = None


def pytest_configure() -> None:
    global _library
    _library = ctypes.CDLL(os.environ[VARIABLE], mode=ctypes.RTLD_GLOBAL)
    _library.nsr_emulated_calls.restype = ctypes.c_int64


def pytest_sessionfinish(session: pytest.Session) -> None:
    """A session in which the emulated kernels were never called has tested something else."""
    if _library.nsr_emulated_calls() == 0:
        session.exitstatus = 3
        print("no call reached the emulated CUDA kernels")
