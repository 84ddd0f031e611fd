"""Visual hull: the points that no view sees beside its mask (Laurentini 1994). Maths: csrc/kernels/visual_hull.h."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from nsr import _ext
from nsr.ops.reference import visual_hull as reference

MAX_SIDE = 32766  # kFarRows - 1 of csrc/kernels/visual_hull.h


@torch.no_grad()
def visual_hull(
    masks: Bool[Tensor, "V H W"],
    projections: Float[Tensor, "V 3 4"],
    focals: Float[Tensor, " V"],
    axis: Float[Tensor, " R"],
    reach: float = 0.0,
    min_views: int = 1,
    max_misses: int = 0,
) -> Bool[Tensor, "R R R"]:
    """Which vertices of a cubic grid stay when every view carves what it sees beside its mask. No derivative.

    A view sees a vertex that lies in front of it (depth > 0) and whose nearest pixel lies in its image; of others it knows
    nothing. It misses a vertex that it sees when the nearest object pixel is further from the vertex's nearest pixel than
    reach * focal / depth + 1/2 pixels, between centres: a mask begins at the edge of its pixels and reaches, at the
    vertex's depth, a length `reach` beyond it. With reach 0 the nearest pixel itself has to be object. This holds exactly,
    for any reach, up to the rounding of the projection. The result does not depend on the number of threads.

    Args:
        masks: [V, H, W], True is object; at most 32766 rows and columns.
        projections: [V, 3, 4] K [R | t], grid frame to pixel (u, v) times depth; pixel centres at integers. float32 or float64.
        focals: [V] pixels per unit of length at depth 1.
        axis: [R] ascending coordinates of the vertices along each of x, y and z.
        reach: length in the grid's units, 0 or more.
        min_views: how many views have to see a vertex that stays.
        max_misses: how many views may miss it.

    Returns:
        [R, R, R] bool, indexed [x, y, z].

    Raises:
        ValueError: a tensor's shape, dtype or device does not fit, reach or max_misses is negative, or axis descends (looked at
            on the CPU only: elsewhere looking would wait for the device).
    """
    _check(masks, projections, focals, axis, reach, max_misses)
    call = reference.visual_hull if _ext.backend() == "reference" else torch.ops.nsr.visual_hull
    return call(masks, projections, focals, axis, reach, min_views, max_misses)


def _check(masks: Tensor, projections: Tensor, focals: Tensor, axis: Tensor, reach: float, max_misses: int) -> None:
    if masks.dim() != 3 or masks.dtype != torch.bool or not all(1 <= size <= MAX_SIDE for size in masks.shape[1:]):
        found = f"{masks.dtype} of shape {tuple(masks.shape)}"
        raise ValueError(f"visual_hull: masks is {found}; expected bool [V, H, W] of 1 to {MAX_SIDE} rows and columns")
    if projections.dtype not in (torch.float32, torch.float64):
        raise ValueError(f"visual_hull: projections is {projections.dtype}; expected float32 or float64")
    views, resolution = masks.shape[0], axis.numel()
    wanted = {"projections": (projections, (views, 3, 4)), "focals": (focals, (views,)), "axis": (axis, (resolution,))}
    for name, (tensor, shape) in wanted.items():
        if tuple(tensor.shape) != shape:
            found = f"{tuple(tensor.shape)}; expected {list(shape)} for {views} masks"
            raise ValueError(f"visual_hull: {name} has shape {found}")
        if tensor.dtype != projections.dtype or tensor.device != masks.device:
            found, expected = f"{tensor.dtype} on {tensor.device}", f"{projections.dtype} on {masks.device}"
            raise ValueError(f"visual_hull: {name} is {found}; expected {expected}, as projections and masks")
    if not reach >= 0:
        raise ValueError(f"visual_hull: reach is {reach}; expected 0 or more")
    if max_misses < 0:
        raise ValueError(f"visual_hull: max_misses is {max_misses}; expected 0 or more")
    if axis.device.type == "cpu" and not bool((axis.diff() > 0).all()):
        raise ValueError("visual_hull: axis does not ascend; expected the coordinates of the vertices in ascending order")


@_ext.on_load
def _register() -> None:
    """Attaches the shape for tracing to the native op; it has no derivative."""

    @torch.library.register_fake("nsr::visual_hull")
    def _(masks, projections, focals, axis, *rules):
        resolution = axis.shape[0]
        return masks.new_empty(resolution, resolution, resolution)
