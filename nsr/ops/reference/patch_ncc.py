"""Photometric consistency of surface points in plain PyTorch: the specification of nsr.ops.patch_ncc.

The function takes the arguments of the native op of the same name; autograd gives the derivatives.
"""

from __future__ import annotations

import torch
from torch import Tensor

MIN_COSINE = 0.01  # kMinPatchCosine of csrc/kernels/patch_ncc.h


def _patch_offsets(patch: int, like: Tensor) -> Tensor:
    """[P^2, 2] offsets (a, b) of the pixels from the centre of the patch, row by row."""
    steps = torch.arange(patch, dtype=like.dtype, device=like.device) - patch // 2
    b, a = torch.meshgrid(steps, steps, indexing="ij")
    return torch.stack([a, b], -1).reshape(-1, 2)


def _interpolate(images: Tensor, view: Tensor, pixels: Tensor) -> tuple[Tensor, Tensor]:
    """Bilinear values [...] of images [V, H, W] at pixels [..., 2] of view [...] (broadcast), and which are good [...].

    Good: between the pixel centres of the image, with four finite pixels around. Others are 0, without derivative.
    """
    height, width = images.shape[1:]
    u, v = pixels.unbind(-1)
    good = (u >= 0) & (u <= width - 1) & (v >= 0) & (v <= height - 1)
    u, v = torch.where(good, u, 0.0), torch.where(good, v, 0.0)
    column, row = u.detach().long().clamp(max=width - 2), v.detach().long().clamp(max=height - 2)
    first = (view * height + row) * width + column
    corners = torch.stack([images.flatten()[first + step] for step in (0, 1, width, width + 1)], -1)
    good = good & corners.isfinite().all(-1)
    v00, v10, v01, v11 = torch.where(good[..., None], corners, 0.0).unbind(-1)
    fu, fv = u - column, v - row
    return (1 - fv) * ((1 - fu) * v00 + fu * v10) + fv * ((1 - fu) * v01 + fu * v11), good


def _divide(numerator: Tensor, denominator: Tensor, good: Tensor) -> Tensor:
    """The quotient where good, elsewhere a finite number without derivative in the denominator."""
    return numerator / torch.where(good, denominator, 1.0)


def patch_ncc(
    x: Tensor,
    normal: Tensor,
    pixels: Tensor,
    view: Tensor,
    sources: Tensor,
    images: Tensor,
    ray_matrices: Tensor,
    projections: Tensor,
    centers: Tensor,
    patch: int,
    variance_floor: float,
    min_std: float,
) -> tuple[Tensor, Tensor]:
    """ncc [N, K] and valid [N, K]; see nsr.ops.patch_ncc and, for the letters, csrc/kernels/patch_ncc.h."""
    views = images.shape[0]
    in_range = (view >= 0) & (view < views), (sources >= 0) & (sources < views)
    view, sources = view.clamp(0, views - 1), sources.clamp(0, views - 1)

    finite = torch.cat([x, normal, pixels], 1).isfinite().all(1)  # NaN would return from where() as the derivative's NaN
    x, normal, pixels = (torch.where(finite[:, None], t, 0.0) for t in (x, normal, pixels))

    places = pixels[:, None] + _patch_offsets(patch, pixels)  # [N, P^2, 2]
    homogeneous = torch.cat([places, torch.ones_like(places[..., :1])], -1)
    rays = torch.einsum("nij,npj->npi", ray_matrices[view], homogeneous)
    central = (ray_matrices[view] @ torch.nn.functional.pad(pixels, (0, 1), value=1.0)[..., None])[..., 0]
    slope = (rays * normal[:, None]).sum(-1)
    height = (normal * (x - centers[view])).sum(-1)
    edge_on = -MIN_COSINE * (normal.square().sum(-1) * central.square().sum(-1)).sqrt()
    meets = (height < 0)[:, None] & (slope < edge_on[:, None])  # [N, P^2]
    distance = _divide(height[:, None], slope, meets)
    points = centers[view][:, None] + distance[..., None] * rays

    faces = ((centers[sources] - x[:, None]) * normal[:, None]).sum(-1) > 0  # [N, K]
    seen = torch.einsum("nkij,nkpj->nkpi", projections[sources], points[:, None] - centers[sources][:, :, None])
    ahead = seen[..., 2] > 0  # [N, K, P^2]
    warped = _divide(seen[..., :2], seen[..., 2:], ahead[..., None])

    reference, reference_good = _interpolate(images, view[:, None], places)
    source, source_good = _interpolate(images, sources[..., None], warped)
    reference = reference - reference.mean(-1, keepdim=True)
    source = source - source.mean(-1, keepdim=True)
    variance = reference.square().mean(-1)[:, None]
    covariance = (reference[:, None] * source).mean(-1)
    ncc = covariance / ((variance + variance_floor) * (source.square().mean(-1) + variance_floor)).sqrt()

    point_valid = in_range[0] & finite & (meets & reference_good).all(-1) & (variance[:, 0] >= min_std**2)
    valid = in_range[1] & point_valid[:, None] & faces & (ahead & source_good).all(-1)
    return torch.where(valid, ncc, 0.0), valid
