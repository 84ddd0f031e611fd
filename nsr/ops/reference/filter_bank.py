"""Neural Fourier Filter Bank (Wu, Jin and Yi 2023) in plain PyTorch: the specification of what nsr.ops.sdf_network does with
its `bank`. Formulas: csrc/kernels/filter_bank.h."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from nsr.ops.reference.hash_grid import Grid


def split_bank(bank: Tensor, width: int, levels: int) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """first_weight [W, 3], first_bias [W], frequencies [L, W, F], weight [L, W, W], bias [L, W]: views of the parameters."""
    features = (len(bank) - 4 * width) // (levels * width) - width - 1
    shapes = ((width, 3), (width,), (levels, width, features), (levels, width, width), (levels, width))
    parts = bank.split([math.prod(shape) for shape in shapes])
    return tuple(part.view(shape) for part, shape in zip(parts, shapes, strict=True))


def filter_bank(
    x: Tensor, features: Tensor, grid: Grid, bank: Tensor, width: int, omega: float
) -> tuple[Tensor, Callable[[Tensor], tuple[Tensor, Tensor]]]:
    """Taps [N, L*W] of points [N, 3] and the features [N, L*F] of their grid, zero for levels that are not active; and the map
    from the taps' cotangent to those of the points, [N, 3], and of the features."""
    levels = len(grid.resolutions)
    first_weight, first_bias, frequencies, weight, bias = split_bank(bank, width, levels)
    z = F.linear(x / grid.extent, first_weight, first_bias)
    value, slopes_z, slopes_y = torch.sin(omega * z), [omega * torch.cos(omega * z)], []
    taps = []
    for level, feature in enumerate(features.chunk(levels, dim=1)[: grid.active_levels]):
        y = feature @ frequencies[level].T
        z = F.linear(value, weight[level], bias[level])
        value = torch.sin(omega * z) + torch.sin(2 * math.pi * y)
        slopes_y.append(2 * math.pi * torch.cos(2 * math.pi * y))
        slopes_z.append(omega * torch.cos(omega * z))
        taps.append(value)
    hidden = [x.new_zeros(len(x), width)] * (levels - len(taps))

    def vjp(grad: Tensor) -> tuple[Tensor, Tensor]:
        of_taps = grad.chunk(levels, dim=1)
        of_features = [torch.zeros_like(features[:, : frequencies.shape[2]])] * levels
        of_value = torch.zeros_like(of_taps[0])
        for level in reversed(range(len(taps))):
            of_value = of_value + of_taps[level]
            of_features[level] = (of_value * slopes_y[level]) @ frequencies[level]
            of_value = (of_value * slopes_z[level + 1]) @ weight[level]
        return (of_value * slopes_z[0]) @ first_weight / grid.extent, torch.cat(of_features, 1)

    return torch.cat([*taps, *hidden], 1), vjp
