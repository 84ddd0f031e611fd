"""Tests of the ops on every device: the CPU always, CUDA under the marker `gpu` (pytest -m gpu)."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from nsr import _ext

CPU = "cpu"
CUDA = pytest.param("cuda", marks=pytest.mark.gpu)
DEVICES = [CPU, CUDA]


def need_device(device: str) -> None:
    """Skips where there is no such device; fails where there is one that the library was not built for."""
    if device == "cuda" and not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    _ext.check_device_served(device)


def to(value, device: str, dtype: torch.dtype):
    """Tensors, alone or in (named) tuples, as leaves on a device; floating-point ones with a dtype."""
    if isinstance(value, Tensor):
        value = value.detach().to(device=device, dtype=dtype if value.is_floating_point() else None)
        return value.requires_grad_(value.is_floating_point())
    if isinstance(value, tuple):
        items = [to(item, device, dtype) for item in value]
        return type(value)(*items) if hasattr(value, "_fields") else tuple(items)
    return value


def leaves_of(value) -> list[Tensor]:
    """The tensors in it that can be differentiated by."""
    if isinstance(value, Tensor):
        return [value] if value.requires_grad else []
    return [leaf for item in value for leaf in leaves_of(item)] if isinstance(value, tuple) else []


def error(ours: list[Tensor], exact: list[Tensor]) -> list[float]:
    """The largest difference of each pair, measured against the largest value of the exact one."""
    errors = []
    for a, b in zip(ours, exact, strict=True):
        assert a.shape == b.shape
        difference = (a.detach().cpu().double() - b.detach()).abs().max().item() if b.numel() else 0.0
        errors.append(difference / max(b.abs().max().item() if b.numel() else 1.0, 1e-3))
    return errors
