"""Adam over touched entries in plain PyTorch: the specification of nsr.ops.adam."""

from __future__ import annotations

import torch
from torch import Tensor


def adam_touched_(
    value: Tensor,
    grad: Tensor,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
    step: Tensor,
    lr: Tensor,
    beta1: float,
    beta2: float,
    eps: float,
    skip: Tensor | None = None,
) -> None:
    """Arguments of nsr.ops.adam.adam_touched_."""
    touched = grad != 0 if skip is None else (grad != 0) & (skip == 0)
    g = grad[touched]
    mean = beta1 * exp_avg[touched] + (1 - beta1) * g
    square = beta2 * exp_avg_sq[touched] + (1 - beta2) * g * g
    root = torch.sqrt(square) / torch.sqrt(1 - beta2**step)
    value[touched] -= lr / (1 - beta1**step) * mean / (root + eps)
    exp_avg[touched] = mean
    exp_avg_sq[touched] = square
