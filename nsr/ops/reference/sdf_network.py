"""Signed distance networks in plain PyTorch: the specification of nsr.ops.sdf_network.

Each function takes the arguments of the native op of the same name: points, then `network`: a grid's arguments
(nsr.ops.reference.hash_grid.Grid), then parameters, weight [outputs, inputs] and bias [outputs] of each layer in turn,
flattened into one tensor, widths, the outputs of each, and the activation's index in ACTIVATIONS; last, of the filter bank,
its parameters in one tensor (None: there is no bank), its width, whether it is modulated, and omega.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from nsr.ops.reference.dense_layers import split_layers
from nsr.ops.reference.filter_bank import Vjp, filter_bank, split_bank
from nsr.ops.reference.hash_grid import Grid, hash_grid, hash_grid_jac

SQUAREPLUS_WIDTH = 1e-3


def _softplus_100(z: Tensor) -> tuple[Tensor, Tensor]:
    return F.softplus(z, beta=100.0), torch.sigmoid(100.0 * z)


def _squareplus(z: Tensor) -> tuple[Tensor, Tensor]:
    root = torch.sqrt(z * z + SQUAREPLUS_WIDTH)
    value = 0.5 * (z + root)
    return value, value / root


ACTIVATIONS = (_softplus_100, _squareplus)  # z -> value, slope; Activation of csrc/kernels/sdf_network.h


def sdf_network(x: Tensor, table: Tensor, *network: Any) -> Tensor:
    """SDF [N]."""
    *grid, parameters, widths, activation, bank, width, modulated, omega = network
    features = hash_grid(x, table, *grid)
    if bank is not None:
        features, _ = _bank_of(x, features, Grid(*grid), bank, width, modulated, omega)
    value = torch.cat([x, features], 1)
    *hidden, (weight_out, bias_out) = split_layers(value.shape[1], parameters, widths)
    for weight, bias in hidden:
        value, _ = ACTIVATIONS[activation](F.linear(value, weight, bias))
    return value @ weight_out[0] + bias_out[0]


def sdf_and_normal(x: Tensor, table: Tensor, *network: Any) -> tuple[Tensor, Tensor, Tensor]:
    """SDF [N], feature [N, outputs - 1], and the SDF's gradient [N, 3] by a reverse pass written as forward code."""
    *grid, parameters, widths, activation, bank, width, modulated, omega = network
    features, jacobian = hash_grid_jac(x, table, *grid)
    if bank is not None:
        features, bank_vjp = _bank_of(x, features, Grid(*grid), bank, width, modulated, omega)
    value, slopes = torch.cat([x, features], 1), []
    *hidden, (weight_out, bias_out) = split_layers(value.shape[1], parameters, widths)
    for weight, bias in hidden:
        value, slope = ACTIVATIONS[activation](F.linear(value, weight, bias))
        slopes.append(slope)
    output = F.linear(value, weight_out, bias_out)
    grad = weight_out[0].expand(x.shape[0], -1)
    for (weight, _), slope in zip(reversed(hidden), reversed(slopes), strict=True):
        grad = (grad * slope) @ weight
    gradient, of_features = grad[:, :3], grad[:, 3:]
    if bank is not None:
        from_bank, of_features = bank_vjp(of_features)
        gradient = gradient + from_bank
    return output[:, 0], output[:, 1:], gradient + torch.einsum("nc,ncd->nd", of_features, jacobian)


def _bank_of(
    x: Tensor, features: Tensor, grid: Grid, bank: Tensor, width: int, modulated: bool, omega: float
) -> tuple[Tensor, Vjp]:
    parts = split_bank(bank, width, len(grid.resolutions), modulated)
    return filter_bank(x, features, parts, omega, grid.extent, grid.active_levels)
