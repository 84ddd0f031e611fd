"""Building blocks that the two networks share: activations with their derivative, and optionally weight-normalised layers."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

SQUAREPLUS_WIDTH = 1e-3


def softplus_100(z: Tensor) -> tuple[Tensor, Tensor]:
    """Softplus with beta 100 (IDR, sec. B.2) and its derivative."""
    return F.softplus(z, beta=100.0), torch.sigmoid(100.0 * z)


def squareplus(z: Tensor) -> tuple[Tensor, Tensor]:
    """(z + sqrt(z^2 + b)) / 2 (Barron 2021, eq. 1) and its derivative: a smooth ReLU without transcendental functions."""
    root = torch.sqrt(z * z + SQUAREPLUS_WIDTH)
    value = 0.5 * (z + root)
    return value, value / root


ACTIVATIONS = {"softplus": softplus_100, "squareplus": squareplus}


def linear(inputs: int, outputs: int, use_weight_norm: bool) -> nn.Linear:
    layer = nn.Linear(inputs, outputs)
    return weight_norm(layer) if use_weight_norm else layer
