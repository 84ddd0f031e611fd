"""Colour networks in plain PyTorch: the specification of nsr.ops.color_network."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from nsr.ops.reference.dense_layers import split_layers
from nsr.ops.reference.hash_grid import hash_grid
from nsr.ops.reference.spherical_harmonics import spherical_harmonics


def color_network(
    points: Tensor,
    normals: Tensor | None,
    view_dirs: Tensor | None,
    features: Tensor,
    table: Tensor,
    *network: Any,
) -> Tensor:
    """rgb [N, 3] from the arguments of the native op of the same name.

    Inputs, each [N, ...]; network: a grid's arguments (nsr.ops.reference.hash_grid.Grid), then parameters and widths as in
    nsr.ops.reference.sdf_network, and the degree of the harmonics, 0 where view_dirs is None.
    """
    *grid, parameters, widths, view_degree = network
    parts = [points, hash_grid(points, table, *grid)]
    if view_dirs is not None:
        parts.append(spherical_harmonics(-view_dirs, view_degree))
    if normals is not None:
        parts.append(normals)
    value = torch.cat([*parts, features], dim=1)
    *hidden, (weight_out, bias_out) = split_layers(value.shape[1], parameters, widths)
    for weight, bias in hidden:
        value = torch.relu(F.linear(value, weight, bias))
    return 0.5 * (torch.tanh(F.linear(value, weight_out, bias_out)) + 1.0)
