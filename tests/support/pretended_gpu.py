"""A GPU that is none: tensors that say they are on another device, and have their data on the CPU.

Mixing them with tensors of the CPU fails as it does on a GPU, so code that forgets to move something is found without one. What
it does not show is whether the CUDA kernels are right (tests/cuda_emulation) or whether a GPU takes them.

The device is called "lazy:0", a kind that torch knows and nobody serves here: a CPU build of torch refuses to differentiate
what says it is on "cuda". Sparse gradients, and so trained cameras, are not pretended.
"""

from __future__ import annotations

import ctypes
import fcntl
import functools
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing
from torch.utils._pytree import tree_flatten, tree_map

from nsr import _ext

GPU = torch.device("lazy:0")
# These take tensors of both devices: copies, and what is indexed on the GPU by indices or written with values of the CPU.
MAY_MIX = ("_to_copy", "copy_", "index", "index_put", "index_put_")


CROSSINGS: list[str] = []  # operations that copied something from one device to the other, or looked at values


class PretendedTensor(Tensor):
    """data: on the CPU."""

    @staticmethod
    def __new__(cls, data: Tensor) -> PretendedTensor:
        made = Tensor._make_wrapper_subclass(
            cls, data.shape, strides=data.stride(), storage_offset=data.storage_offset(), dtype=data.dtype, device=GPU
        )
        made.on_cpu = data
        return made

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        return _run(func, args, kwargs or {})

    def tolist(self) -> list:
        CROSSINGS.append("tolist")
        return self.on_cpu.tolist()

    def numpy(self, **_) -> None:
        raise TypeError("can't convert a tensor of another device to numpy; use Tensor.cpu() first")

    def __repr__(self) -> str:
        return f"PretendedTensor({self.on_cpu})"


def _run(func, args, kwargs):
    flat = [value for value in tree_flatten((args, kwargs))[0] if isinstance(value, Tensor)]
    ours = [tensor for tensor in flat if isinstance(tensor, PretendedTensor)]
    name = func.overloadpacket.__name__
    others = [tensor for tensor in flat if not isinstance(tensor, PretendedTensor) and tensor.dim() > 0]
    indexed_by_ours = name.startswith("index") and ours and not isinstance(args[0], PretendedTensor)
    if ours and others and (name not in MAY_MIX or indexed_by_ours):
        raise RuntimeError(f"{name}: expected all tensors to be on the same device, found {GPU} and cpu")
    target = kwargs.get("device")
    to_gpu = torch.device(target) == GPU if target is not None else bool(ours)
    if name == "_local_scalar_dense" or (len(ours) < len(flat) if to_gpu else ours):
        CROSSINGS.append(name)
    kwargs = {**kwargs, "device": "cpu"} if target is not None else kwargs
    plain = tree_map(lambda value: value.on_cpu if isinstance(value, PretendedTensor) else value, (args, kwargs))
    result = func(*plain[0], **plain[1])
    if name in ("copy_", "index_put_"):
        to_gpu = isinstance(args[0], PretendedTensor)
    if not to_gpu:
        return result
    wrapped = tree_map(lambda value: PretendedTensor(value) if isinstance(value, Tensor) else value, result)
    return return_and_correct_aliasing(func, args, kwargs, wrapped) if ours else wrapped


class _OnPretendedGpu(TorchDispatchMode):
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return _run(func, args, kwargs or {})


class _Generator(torch.Generator):
    """On the CPU, and says of which device it is one."""

    def __new__(cls, device="cpu"):
        made = super().__new__(cls, "cpu")
        made.said = torch.device(device)
        return made

    @property
    def device(self) -> torch.device:
        return self.said


@functools.cache
def _device_guard() -> Path:
    """The compiled device_guard.cpp, for this torch."""
    source, of_torch = Path(__file__).with_name("device_guard.cpp"), Path(torch.__file__).parent
    folder = source.parents[2] / "build" / f"pretended_gpu_{torch.__version__}"
    folder.mkdir(parents=True, exist_ok=True)
    library = folder / "libdevice_guard.so"
    with open(folder / ".lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not library.exists() or library.stat().st_mtime < source.stat().st_mtime:
            flags = ["-std=c++20", "-shared", "-fPIC", "-I", str(of_torch / "include"), "-L", str(of_torch / "lib"), "-lc10"]
            command = [os.environ.get("CXX", "g++"), str(source), *flags, "-o", str(library)]
            done = subprocess.run(command, capture_output=True, text=True)
            assert done.returncode == 0, f"{' '.join(command)}\n{done.stderr}"
    return library


@contextmanager
def pretended_gpu(monkeypatch) -> Iterator[torch.device]:
    """Within the block, `torch.zeros(3, device=GPU)` and `.to(GPU)` give PretendedTensors."""
    ctypes.CDLL(str(_device_guard()))
    monkeypatch.setattr(_ext, "_devices", lambda: ("cpu", GPU.type))
    monkeypatch.setattr(torch, "Generator", _Generator)
    adam = sys.modules[torch.optim.Adam.__module__]  # torch.optim hides it
    monkeypatch.setattr(adam, "_device_dtype_check_for_fused", lambda *_, **__: None)
    torch._C._set_only_lift_cpu_tensors(True)  # torch.tensor(..., device=...) is made on the CPU and then moved, which we see
    try:
        with _OnPretendedGpu():
            yield GPU
    finally:
        torch._C._set_only_lift_cpu_tensors(False)
