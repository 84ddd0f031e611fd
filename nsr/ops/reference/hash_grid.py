"""Multi-resolution hash grid in plain PyTorch: the specification of nsr.ops.hash_grid.

Each function takes the arguments of the native op of the same name: points, the table, and what Grid names, in its order.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

PRIMES = (1, 2654435761, 805459861)
_CORNERS = tuple((c & 1, (c >> 1) & 1, c >> 2) for c in range(8))


class Grid(NamedTuple):
    """What follows the table in the arguments of every op on a grid.

    resolutions: cells per axis of each level; offsets: first entry of each, and the total at the end; extent: half the side
    of the cube.
    """

    resolutions: Sequence[int]
    offsets: Sequence[int]
    smoothstep: bool
    extent: float
    active_levels: int


def _locate(x: Tensor, extent: float, resolution: int, smoothstep: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Cell [N, 3] int64, weight s [N, 3] of its upper vertex per axis, ds/dx [N, 3]."""
    x = x * (1 / extent)
    u = torch.clamp((x + 1) * 0.5, 0, 1)
    p = u * resolution
    cell = torch.nan_to_num(p.detach(), nan=0.0).floor().long().clamp(max=resolution - 1)
    t = p - cell
    dt = 0.5 * resolution / extent * (~((x < -1) | (x > 1))).to(x.dtype)
    if smoothstep:
        return cell, t * t * (3 - 2 * t), 6 * t * (1 - t) * dt
    return cell, t, dt


def _entries(vertex: Tensor, resolution: int, entries: int) -> Tensor:
    """Entry [N] within the level of the vertices [N, 3]: row-major (x fastest) where all fit, hashed otherwise."""
    x, y, z = vertex.unbind(-1)
    side = resolution + 1
    if side**3 <= entries:
        return x + side * (y + side * z)
    mask32 = 0xFFFFFFFF
    hashed = (x * PRIMES[0]) ^ ((y * PRIMES[1]) & mask32) ^ ((z * PRIMES[2]) & mask32)
    return hashed & (entries - 1)


def hash_grid_jac(x: Tensor, table: Tensor, *arguments: Any) -> tuple[Tensor, Tensor]:
    """h [N, L*F] and J = dh/dx [N, L*F, 3]; arguments: those of a Grid."""
    grid, table = Grid(*arguments), table.to(x.dtype)
    features = table.shape[1]
    values, jacobians = [], []
    for level, resolution in enumerate(grid.resolutions):
        h = x.new_zeros(x.shape[0], features)
        jacobian = x.new_zeros(x.shape[0], features, 3)
        if level < grid.active_levels:
            cell, s, ds = _locate(x, grid.extent, resolution, grid.smoothstep)
            for value, weight, upper in _corners(cell, s, table, grid, level):
                slope = torch.where(upper, ds, -ds)
                wx, wy, wz = weight.unbind(-1)
                gradient = torch.stack((slope[:, 0] * wy * wz, wx * slope[:, 1] * wz, wx * wy * slope[:, 2]), -1)
                h = h + (wx * wy * wz)[:, None] * value
                jacobian = jacobian + gradient[:, None] * value[:, :, None]
        values.append(h)
        jacobians.append(jacobian)
    return torch.cat(values, 1), torch.cat(jacobians, 1)


def hash_grid(x: Tensor, table: Tensor, *arguments: Any) -> Tensor:
    """h [N, L*F]; arguments: those of a Grid."""
    grid, table = Grid(*arguments), table.to(x.dtype)
    values = []
    for level, resolution in enumerate(grid.resolutions):
        h = x.new_zeros(x.shape[0], table.shape[1])
        if level < grid.active_levels:
            cell, s, _ = _locate(x, grid.extent, resolution, grid.smoothstep)
            for value, weight, _ in _corners(cell, s, table, grid, level):
                h = h + (weight[:, 0] * weight[:, 1] * weight[:, 2])[:, None] * value
        values.append(h)
    return torch.cat(values, 1)


def _corners(cell: Tensor, s: Tensor, table: Tensor, grid: Grid, level: int) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Of each corner of the cells the values [N, F], the weights per axis [N, 3], and which of its axes are upper [3]."""
    resolution, begin, end = grid.resolutions[level], grid.offsets[level], grid.offsets[level + 1]
    for offset in torch.tensor(_CORNERS, device=s.device):
        upper = offset.bool()
        yield table[begin + _entries(cell + offset, resolution, end - begin)], torch.where(upper, s, 1 - s), upper
