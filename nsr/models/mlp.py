"""Building blocks that the two networks share: activations with their derivative, and optionally weight-normalised layers."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

SQUAREPLUS_WIDTH = 1e-3


class Activation(NamedTuple):
    """value: z -> a(z); value_and_slope: z -> (a(z), a'(z)), both differentiable once more."""

    value: Callable[[Tensor], Tensor]
    value_and_slope: Callable[[Tensor], tuple[Tensor, Tensor]]


def softplus_100(z: Tensor) -> Tensor:
    """Softplus with beta 100 (IDR, sec. B.2)."""
    return F.softplus(z, beta=100.0)


def softplus_100_and_slope(z: Tensor) -> tuple[Tensor, Tensor]:
    return softplus_100(z), torch.sigmoid(100.0 * z)


def squareplus(z: Tensor) -> Tensor:
    """(z + sqrt(z^2 + b)) / 2 (Barron 2021, eq. 1): a smooth ReLU without transcendental functions."""
    return (z + (z * z).add_(SQUAREPLUS_WIDTH).sqrt_()).mul_(0.5)


class _SquareplusAndSlope(torch.autograd.Function):
    """Written out because half of a small network's time goes into the elementwise kernels that autograd would chain here."""

    @staticmethod
    def forward(ctx, z: Tensor) -> tuple[Tensor, Tensor]:
        root = (z * z).add_(SQUAREPLUS_WIDTH).sqrt_()
        value = (z + root).mul_(0.5)
        slope = value / root
        ctx.save_for_backward(root, slope)
        return value, slope

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad_value: Tensor, grad_slope: Tensor) -> Tensor:
        root, slope = ctx.saved_tensors
        curvature = (root * root).mul_(root).reciprocal_().mul_(0.5 * SQUAREPLUS_WIDTH)  # a'' = b / (2 root^3)
        return curvature.mul_(grad_slope).addcmul_(grad_value, slope)


ACTIVATIONS = {
    "softplus": Activation(softplus_100, softplus_100_and_slope),
    "squareplus": Activation(squareplus, _SquareplusAndSlope.apply),
}


def linear(inputs: int, outputs: int, use_weight_norm: bool) -> nn.Linear:
    layer = nn.Linear(inputs, outputs)
    return weight_norm(layer) if use_weight_norm else layer
