"""Colour networks in plain PyTorch: the specification of nsr.ops.color_network."""

from __future__ import annotations

from collections.abc import Sequence

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
    resolutions: Sequence[int],
    offsets: Sequence[int],
    smoothstep: bool,
    extent: float,
    active_levels: int,
    parameters: Tensor,
    widths: Sequence[int],
    view_degree: int,
) -> Tensor:
    """rgb [N, 3] from the arguments of the native op of the same name.

    Inputs, each [N, ...]; a grid (nsr.ops.reference.hash_grid); `parameters` and `widths` as in nsr.ops.reference.sdf_network;
    view_degree: of the harmonics, 0 where view_dirs is None.
    """
    parts = [points, hash_grid(points, table, resolutions, offsets, smoothstep, extent, active_levels)]
    if view_dirs is not None:
        parts.append(spherical_harmonics(-view_dirs, view_degree))
    if normals is not None:
        parts.append(normals)
    value = torch.cat([*parts, features], dim=1)
    *hidden, (weight_out, bias_out) = split_layers(value.shape[1], parameters, widths)
    for weight, bias in hidden:
        value = torch.relu(F.linear(value, weight, bias))
    return 0.5 * (torch.tanh(F.linear(value, weight_out, bias_out)) + 1.0)
