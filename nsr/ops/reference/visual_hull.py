"""Visual hull in plain PyTorch: the specification of nsr.ops.visual_hull."""

from __future__ import annotations

import torch
from torch import Tensor


def visual_hull(
    masks: Tensor, projections: Tensor, focals: Tensor, axis: Tensor, reach: float, min_views: int, max_misses: int
) -> Tensor:
    """Occupancy [R, R, R]; arguments of nsr.ops.visual_hull.visual_hull, the letters of csrc/kernels/visual_hull.h."""
    resolution, (height, width) = len(axis), masks.shape[1:]
    rows = _rows_to_object(masks, axis.dtype)
    index = torch.arange(resolution**3, device=axis.device)  # of the vertices that may still stay
    seen_by = torch.zeros_like(index)
    misses = torch.zeros_like(index)
    for view, (projection, focal) in enumerate(zip(projections, focals, strict=True)):
        x, y, z = axis[index // resolution**2], axis[index // resolution % resolution], axis[index % resolution]
        u, v, depth = (row[0] * x + row[1] * y + row[2] * z + row[3] for row in projection)
        column, row = u / depth + 0.5, v / depth + 0.5  # whole numbers below are the nearest pixel
        seen = (depth > 0) & (column >= 0) & (column < width) & (row >= 0) & (row < height)
        seen_by += seen
        radius = reach * focal / depth[seen] + 0.5
        misses[seen] += ~_disc_meets_mask(rows[view], column[seen].long(), row[seen].long(), radius)
        alive = misses <= max_misses
        index, seen_by, misses = index[alive], seen_by[alive], misses[alive]
    occupied = torch.zeros(resolution**3, dtype=torch.bool, device=axis.device)
    occupied[index[seen_by >= min_views]] = True
    return occupied.view(resolution, resolution, resolution)


def _rows_to_object(masks: Tensor, dtype: torch.dtype) -> Tensor:
    """[V, H, W] how many rows away the nearest object pixel of the same column is; infinity where there is none."""
    row = torch.arange(masks.shape[1], dtype=dtype, device=masks.device)[:, None]
    above = torch.where(masks, row, -torch.inf).cummax(1).values
    below = torch.where(masks, row, torch.inf).flip(1).cummin(1).values.flip(1)
    return torch.minimum(row - above, below - row)


def _disc_meets_mask(rows: Tensor, column: Tensor, row: Tensor, radius: Tensor) -> Tensor:
    """[N] whether an object pixel's centre lies within radius [N] of the centre of pixel (column, row), each [N]."""
    width = rows.shape[1]
    meets = torch.zeros_like(radius, dtype=torch.bool)
    furthest = int(radius.max().clamp(max=width)) if len(radius) else 0
    for away in range(-furthest, furthest + 1):
        beside = column + away
        along = rows[row, beside.clamp(0, width - 1)]
        meets |= (beside >= 0) & (beside < width) & (away**2 + along.square() <= radius.square())
    return meets
