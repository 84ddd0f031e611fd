"""A stand-in for the Python binding of tiny-cuda-nn: `tinycudann.Encoding` for hash grids in plain PyTorch, on the CPU.

Its documented interface (DOCUMENTATION.md and bindings/torch of its repository): keys of the configuration, layout of the
parameters, batches padded to 256, the derivatives that it has, and the one that it drops. Unlike the real one it refuses what
the real one would ignore or misread, and computes in double where points are.
"""

from __future__ import annotations

import math
import sys
from types import ModuleType

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

KEYS = {"otype", "n_levels", "n_features_per_level", "log2_hashmap_size", "base_resolution", "per_level_scale", "interpolation"}
GRANULARITY = 256  # of batches
PRIMES = (1, 2654435761, 805459861)


def install(monkeypatch) -> None:
    """For a test: `import tinycudann` finds the stand-in, and the encoders on it take tensors on the CPU."""
    module = ModuleType("tinycudann")
    module.Encoding = Encoding
    monkeypatch.setitem(sys.modules, "tinycudann", module)
    monkeypatch.setattr("nsr.encoders.tiny_cuda_nn.DEVICES", ("cpu",))


class Encoding(nn.Module):
    def __init__(self, n_input_dims: int, encoding_config: dict, seed: int = 1337, dtype: torch.dtype | None = None) -> None:
        super().__init__()
        if encoding_config.keys() != KEYS or encoding_config["otype"] != "HashGrid" or n_input_dims != 3:
            raise RuntimeError(f"the stand-in knows three-dimensional hash grids by {sorted(KEYS)}, not {encoding_config}")
        if dtype not in (torch.float32, torch.float16):
            raise ValueError(f"Encoding only supports fp32 or fp16 precision, but got {dtype}")
        if encoding_config["n_features_per_level"] not in (1, 2, 4, 8):
            raise RuntimeError("Encoding: n_features_per_level must be 1, 2, 4, or 8")
        if (
            encoding_config["interpolation"] not in ("Linear", "Smoothstep")
            or type(encoding_config["base_resolution"]) is not int
        ):
            raise RuntimeError(f"Encoding: cannot read {encoding_config}")
        self.config, self.dtype = encoding_config, dtype
        self.n_output_dims = encoding_config["n_levels"] * encoding_config["n_features_per_level"]
        growth = math.log2(encoding_config["per_level_scale"])
        scales = [encoding_config["base_resolution"] * 2 ** (growth * i) - 1 for i in range(encoding_config["n_levels"])]
        self.scales = [round(scale, 4) for scale in scales]  # of float32, whose rounding must not add a vertex
        largest = 2 ** encoding_config["log2_hashmap_size"]
        self.entries = [min(-(-(self.side(scale) ** 3) // 8) * 8, largest) for scale in self.scales]
        generator = torch.Generator().manual_seed(seed)
        values = torch.rand(sum(self.entries) * encoding_config["n_features_per_level"], generator=generator)
        self.params = nn.Parameter((2e-4 * values - 1e-4).float())

    @staticmethod
    def side(scale: float) -> int:
        return math.ceil(scale) + 1

    def forward(self, x: Tensor) -> Tensor:
        count = len(x)
        padded = (F.pad(x, [0, 0, 0, -count % GRANULARITY]) if count % GRANULARITY else x).contiguous()
        params = self.params.to(torch.float16).to(x.dtype) if self.dtype == torch.float16 else self.params.to(x.dtype)
        value = _Encode.apply(self, padded, params.contiguous())
        return value[:count].to(self.dtype if x.dtype == torch.float32 else x.dtype)

    def encode(self, x: Tensor, params: Tensor) -> Tensor:
        if not len(x) or len(x) % GRANULARITY or params.numel() != sum(self.entries) * self.config["n_features_per_level"]:
            raise RuntimeError(f"batch of {len(x)} points with {params.numel()} parameters")
        levels = params.view(-1, self.config["n_features_per_level"]).split(self.entries)
        return torch.cat([self.level(x, table, scale) for table, scale in zip(levels, self.scales, strict=True)], dim=1)

    def level(self, x: Tensor, table: Tensor, scale: float) -> Tensor:
        position = x * scale + 0.5
        cell = position.detach().floor()
        weight = position - cell
        if self.config["interpolation"] == "Smoothstep":
            weight = weight * weight * (3 - 2 * weight)
        value = 0
        for corner in range(8):
            upper = torch.tensor([corner & 1, corner >> 1 & 1, corner >> 2], dtype=x.dtype)
            share = (upper * weight + (1 - upper) * (1 - weight)).prod(dim=1)
            value = value + share[:, None] * table[self.entry((cell + upper).long(), self.side(scale), len(table))]
        return value

    @staticmethod
    def entry(vertex: Tensor, side: int, entries: int) -> Tensor:
        x, y, z = vertex.unbind(dim=1)
        if side**3 <= entries:
            return (x + side * (y + side * z)) % entries
        return (x ^ (y * PRIMES[1] & 0xFFFFFFFF) ^ (z * PRIMES[2] & 0xFFFFFFFF)) % entries


class _Encode(torch.autograd.Function):
    @staticmethod
    def forward(ctx, encoding: Encoding, x: Tensor, params: Tensor) -> Tensor:
        ctx.set_materialize_grads(False)
        ctx.encoding = encoding
        ctx.save_for_backward(x, params)
        return encoding.encode(x, params)

    @staticmethod
    def backward(ctx, grad: Tensor | None):
        if grad is None:
            return None, None, None
        return None, *_EncodeBackward.apply(ctx.encoding, grad, *ctx.saved_tensors)


class _EncodeBackward(torch.autograd.Function):
    """Differentiable by the gradient at the points alone: what arrives for the parameters' gradient is dropped."""

    @staticmethod
    def forward(ctx, encoding: Encoding, grad: Tensor, x: Tensor, params: Tensor) -> tuple[Tensor, Tensor]:
        _need_rows(grad)
        ctx.encoding = encoding
        ctx.save_for_backward(grad, x, params)
        with torch.enable_grad():
            leaves = x.detach().requires_grad_(), params.detach().requires_grad_()
            return torch.autograd.grad(encoding.encode(*leaves), leaves, grad)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_grad_x: Tensor, _dropped: Tensor):
        _need_rows(grad_grad_x)
        with torch.enable_grad():
            grad, x, params = (saved.detach().requires_grad_() for saved in ctx.saved_tensors)
            (grad_x,) = torch.autograd.grad(ctx.encoding.encode(x, params), x, grad, create_graph=True)
            return None, *torch.autograd.grad(grad_x, (grad, x, params), grad_grad_x, allow_unused=True)


def _need_rows(tensor: Tensor) -> None:
    if not tensor.is_contiguous():
        raise RuntimeError("tensor must be contiguous")
