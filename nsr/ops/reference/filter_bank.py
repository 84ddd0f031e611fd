"""Neural Fourier Filter Bank (Wu, Jin and Yi 2023), as published and modulated, in plain PyTorch: what the encoders evaluate,
and the specification of what nsr.ops.sdf_network does with its `bank`. Formulas: csrc/kernels/filter_bank.h."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

TINY_SQUARE = 1e-8
Vjp = Callable[[Tensor], tuple[Tensor, Tensor]]


def split_bank(bank: Tensor, width: int, levels: int, modulated: bool) -> tuple[Tensor, ...]:
    """first_weight [W, 3], first_bias [W], frequencies [L, W, F], weight [L, W, W], bias [L, W] and, modulated,
    style [L, W, W], score [L, W], score_bias [L]: views of the parameters."""
    square, row = (levels, width, width), (levels, width)
    shapes = [(width, 3), (width,), square, row] + [square, row, (levels,)] * modulated
    features = (len(bank) - sum(math.prod(shape) for shape in shapes)) // (levels * width)
    shapes.insert(2, (levels, width, features))
    parts = bank.split([math.prod(shape) for shape in shapes])
    return tuple(part.view(shape) for part, shape in zip(parts, shapes, strict=True))


def filter_bank(
    x: Tensor, features: Tensor, parts: Sequence[Tensor], omega: float, extent: float, shown: int
) -> tuple[Tensor, Vjp]:
    """Taps [N, L*W] of points [N, 3] and the features [N, L*F] of their grid, zero behind the first `shown` levels; and the map
    from the taps' cotangent to those of the points, [N, 3], and of the features.

    parts: as from split_bank, with three more where the bank is modulated; extent: of the grid.
    """
    first_weight, first_bias, frequencies, weight, bias, *more = parts
    levels, width, _ = frequencies.shape
    z = F.linear(x / extent, first_weight, first_bias)
    value, first_slope = torch.sin(omega * z), omega * torch.cos(omega * z)
    taps, layers, slopes = [], [], []
    for level, feature in enumerate(features.chunk(levels, dim=1)[:shown]):
        y = 2 * math.pi * (feature @ frequencies[level].T)
        gamma = torch.sin(y)
        if more:
            value, layer = _modulated_layer(value, gamma, weight[level], bias[level], more[0][level], omega)
        else:
            value, layer = _layer(value, gamma, weight[level], bias[level], omega)
        taps.append(value)
        layers.append(layer)
        slopes.append(2 * math.pi * torch.cos(y))
    weighed, through_attention = _attention(taps, more[1], more[2]) if more and taps else (taps, lambda grads: grads)
    hidden = [x.new_zeros(len(x), width)] * (levels - shown)

    def vjp(grad: Tensor) -> tuple[Tensor, Tensor]:
        of_taps = through_attention(list(grad.chunk(levels, dim=1)[:shown]))
        of_features = [torch.zeros_like(features[:, : frequencies.shape[2]])] * levels
        of_value = torch.zeros_like(value)
        for level in reversed(range(shown)):
            of_value, of_gamma = layers[level](of_taps[level] + of_value)
            of_features[level] = (of_gamma * slopes[level]) @ frequencies[level]
        return (of_value * first_slope) @ first_weight / extent, torch.cat(of_features, 1)

    return torch.cat([*weighed, *hidden], 1), vjp


def _layer(before: Tensor, gamma: Tensor, weight: Tensor, bias: Tensor, omega: float) -> tuple[Tensor, Vjp]:
    """A tap, and the map from its cotangent to those of the tap before and of gamma."""
    z = omega * F.linear(before, weight, bias)
    return torch.sin(z) + gamma, lambda grad: ((grad * omega * torch.cos(z)) @ weight, grad)


def _modulated_layer(
    before: Tensor, gamma: Tensor, weight: Tensor, bias: Tensor, style: Tensor, omega: float
) -> tuple[Tensor, Vjp]:
    """The same of the modulated bank."""
    v = 1 + gamma @ style.T
    squares = weight.square()
    w, n = (before * v) @ weight.T, v.square() @ squares.T + TINY_SQUARE
    k = torch.sqrt((squares.sum(1) + TINY_SQUARE) / n)
    z = omega * (k * w + bias)

    def vjp(grad: Tensor) -> tuple[Tensor, Tensor]:
        of_z = grad * omega * torch.cos(z)
        of_m = (of_z * k) @ weight
        of_n = -0.5 * k / n * w * of_z
        of_v = before * of_m + 2 * v * (of_n @ squares)
        return v * of_m, of_v @ style

    return torch.sin(z), vjp


def _attention(
    taps: list[Tensor], score: Tensor, score_bias: Tensor
) -> tuple[list[Tensor], Callable[[list[Tensor]], list[Tensor]]]:
    """The taps, each times its weight, 1 on average over the levels; and the map from their cotangents to those of the taps."""
    scores = torch.stack([tap @ score[level] + score_bias[level] for level, tap in enumerate(taps)])
    alpha = len(taps) * torch.softmax(scores, 0)  # [L, N]

    def vjp(grads: list[Tensor]) -> list[Tensor]:
        of_alpha = torch.stack([(tap * grad).sum(1) for tap, grad in zip(taps, grads, strict=True)])
        of_scores = alpha * (of_alpha - (alpha * of_alpha).mean(0))
        return [a[:, None] * grad + s[:, None] * row for a, grad, s, row in zip(alpha, grads, of_scores, score, strict=False)]

    return [a[:, None] * tap for a, tap in zip(alpha, taps, strict=True)], vjp
