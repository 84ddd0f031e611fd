"""Visual hull: the largest shape that the silhouettes allow (Laurentini 1994), as a grid and as a signed distance.

The hull starts the network close to the object, tells cameras that do not fit their masks, and normalises scenes.
"""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from nsr.types import OBJECT_MASK, Cameras
from nsr.utils.errors import DataError

_BLOCK = 4  # vertices per side of the blocks that the coarse pass drops whole
_UNSEEN = -1  # value of pixels outside the image
_CHUNK = 2**16  # vertices carved at once: a chunk stays in the cache while it meets all views


def grid_axis(resolution: int, extent: float, device: torch.device | str = "cpu") -> Float[Tensor, " R"]:
    """[R] coordinates of the grid vertices along one axis, from -extent to extent."""
    return torch.linspace(-extent, extent, resolution, device=device)


def carve(
    masks: Tensor,
    cameras: Cameras,
    resolution: int,
    extent: float = 1.0,
    *,
    min_views: int = 1,
    max_misses: int = 0,
    tolerance: float = 0.5,
) -> Bool[Tensor, "R R R"]:
    """Which vertices of a grid over [-extent, extent]^3 lie inside the silhouettes of all views that see them.

    A view sees a vertex that lies in front of it and projects inside its image; beyond the image border a view knows
    nothing, so objects cut by the border are handled. Vertices that fewer than `min_views` views see are carved.

    Args:
        masks: [V, H, W] bool, or uint8 where 128 and above is object.
        cameras: V cameras in the frame of the grid.
        resolution: R, vertices per axis.
        min_views: how many views have to see a vertex that stays.
        max_misses: how many views may see background there (0: none; a few tolerate wrong masks).
        tolerance: a mask reaches this many voxels further (in the image: their projected size), so that parts thinner
            than a voxel stay. The hull is larger by as much.

    Returns:
        [R, R, R] bool occupancy, indexed [x, y, z].
    """
    if masks.shape != (len(cameras), cameras.height, cameras.width):
        expected = f"[{len(cameras)}, {cameras.height}, {cameras.width}]"
        raise DataError(f"carve: expected one mask per camera at its image size, {expected}, got {list(masks.shape)}")
    masks = masks if masks.dtype == torch.bool else masks >= OBJECT_MASK
    axis = grid_axis(resolution, extent, masks.device)
    spacing = 2 * extent / max(resolution - 1, 1)
    projections = _projections(cameras).to(masks.device)
    focal = cameras.intrinsics[:, [0, 1], [0, 1]].amax(-1).to(projections)

    masks, projections, focal = _no_finer_than_needed(masks, projections, focal, extent, tolerance * spacing)
    kept, open_ = _sort_blocks(masks, projections, focal, axis, spacing, tolerance, min_views, max_misses)
    distance = _pixels_to_mask(masks, _reach_in_pixels(projections, focal, extent, tolerance * spacing))
    # A vertex is looked up in its nearest pixel; shrunk masks have grown by about that half pixel already.
    slack = 0.5 if tolerance > 0 and masks.shape[2] == cameras.width else 0.0
    lookup = torch.nn.functional.pad(distance.view(torch.int8), (1, 1, 1, 1), value=_UNSEEN)
    occupied = torch.zeros(resolution**3, dtype=torch.bool, device=masks.device)
    occupied[kept] = True
    for flat in open_.split(_CHUNK):
        points = axis[torch.stack(_unflatten(flat, resolution))]
        reach = tolerance * spacing * focal
        kept = _carve_points(points, flat, lookup, projections, reach, slack, min_views, max_misses)
        occupied[kept] = True
    return occupied.reshape(resolution, resolution, resolution)


def hull_signed_distance(
    occupancy: Bool[Tensor, "R R R"], extent: float = 1.0, *, smoothing: float = 1.0
) -> Float[Tensor, "R R R"]:
    """Signed distance in scene units at the grid vertices of `carve`, negative inside.

    The surface lies half a voxel outside the occupied vertices; the staircase of the voxels is blurred by a Gaussian of
    `smoothing` voxels (0 leaves it).

    Raises:
        DataError: the hull is empty or fills the whole grid.
    """
    from scipy import ndimage

    inside = occupancy.cpu().numpy()
    if not inside.any() or inside.all():
        state = "empty" if not inside.any() else "the whole grid"
        raise DataError(
            f"visual hull: it is {state}, so the masks and the cameras do not belong together, or the object does not "
            "lie in the unit sphere; run `nsr data check` on the scene"
        )
    outwards = ndimage.distance_transform_edt(~inside)
    inwards = np.zeros_like(outwards)
    box = tuple(slice(max(s.start - 1, 0), s.stop + 1) for s in ndimage.find_objects(inside.astype(np.uint8))[0])
    inwards[box] = ndimage.distance_transform_edt(inside[box])
    voxels = np.where(inside, 0.5 - inwards, outwards - 0.5).astype(np.float32)
    if smoothing > 0:
        voxels = ndimage.gaussian_filter(voxels, smoothing, mode="nearest")
    spacing = 2 * extent / (len(inside) - 1)
    return torch.from_numpy(voxels * np.float32(spacing)).to(occupancy.device)


# ------------------------------------------------------------------------------------------------------------- details


def _projections(cameras: Cameras) -> Tensor:
    """[V, 3, 4] float32 K [R | t], whose third row gives the depth."""
    rotation = cameras.camera_to_world[:, :3, :3].double().transpose(-1, -2)
    translation = -rotation @ cameras.centers.double()[..., None]
    return (cameras.intrinsics.double() @ torch.cat([rotation, translation], dim=-1)).float()


def _no_finer_than_needed(
    masks: Tensor, projections: Tensor, focal: Tensor, extent: float, reach: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Masks, projections and focal lengths at the size where the tolerance `reach` still spans at least four pixels.

    A pixel of a shrunk mask is object where any of its pixels is; an incomplete last row or column counts as unseen.
    """
    factor = 1
    while _reach_in_pixels(projections, focal, extent, reach) >= 8 * factor:
        factor *= 2
    if factor == 1:
        return masks, projections, focal
    height, width = (size - size % factor for size in masks.shape[1:])
    scale = torch.diag(projections.new_tensor([1 / factor, 1 / factor, 1]))
    scale[:2, 2] = 0.5 / factor - 0.5  # pixel centres at integers in both images
    return _shrink_any(masks[:, :height, :width], factor), scale @ projections, focal / factor


def _unflatten(flat: Tensor, resolution: int) -> tuple[Tensor, Tensor, Tensor]:
    """Indices x, y, z of flat positions in [R, R, R]."""
    x, rest = flat // (resolution * resolution), flat % (resolution * resolution)
    return x, rest // resolution, rest % resolution


def _sort_blocks(
    masks: Tensor,
    projections: Tensor,
    focal: Tensor,
    axis: Tensor,
    spacing: float,
    tolerance: float,
    min_views: int,
    max_misses: int,
) -> tuple[Tensor, Tensor]:
    """Flat indices of the vertices in blocks that are wholly occupied, and in blocks that have to be looked at closer.

    Around a block's projected centre lies a disc that covers all its vertices and their tolerance. Where the disc lies
    inside the image and touches no object, the view misses the whole block; where it touches no background, the view
    keeps it. Both are looked up in masks shrunk by the block size; one more small pixel covers the rounding.
    """
    resolution, shrink = len(axis), _BLOCK
    blocks = -(-resolution // _BLOCK)
    center = axis[0] + (torch.arange(blocks, device=axis.device) * _BLOCK + (_BLOCK - 1) / 2) * spacing
    points = torch.stack(torch.meshgrid(center, center, center, indexing="ij")).reshape(3, -1)
    covering = (3**0.5 * (_BLOCK - 1) / 2 + tolerance) * spacing
    height, width = masks.shape[1:]
    small_reach = -(-_reach_in_pixels(projections, focal, float(axis[-1]), covering) // shrink) + 1
    to_object = _pixels_to_mask(_shrink_any(masks, shrink), small_reach)
    to_background = _pixels_to_mask(_shrink_any(~masks, shrink), small_reach)

    misses = torch.zeros(points.shape[1], dtype=torch.int16, device=axis.device)
    keeps, blind = torch.zeros_like(misses), torch.zeros_like(misses)
    for view in range(len(masks)):
        u, v, depth = _to_image(projections[view], points)
        radius = covering * focal[view] / (depth - covering).clamp_min(1e-6)
        ahead = depth > 2 * covering
        within = (u >= radius) & (u < width - 1 - radius) & (v >= radius) & (v < height - 1 - radius)
        outside = (u < -1 - radius) | (u > width + radius) | (v < -1 - radius) | (v > height + radius)
        column = (u / shrink).long().clamp_(0, to_object.shape[2] - 1)
        row = (v / shrink).long().clamp_(0, to_object.shape[1] - 1)
        small_radius = radius / shrink + 1
        misses += ahead & within & (to_object[view, row, column] > small_radius)
        keeps += ahead & within & (to_background[view, row, column] > small_radius)
        blind += torch.where(ahead, outside, depth < -covering)
    alive = misses <= max_misses
    whole = alive & (keeps + blind == len(masks)) & (keeps >= min_views)
    return _block_vertices(whole, blocks, resolution), _block_vertices(alive & ~whole, blocks, resolution)


def _shrink_any(masks: Tensor, factor: int) -> Tensor:
    """Masks [V, H, W] at 1 / factor of their size; a small pixel is True where any of its pixels is."""
    padded = torch.nn.functional.pad(masks, (0, -masks.shape[2] % factor, 0, -masks.shape[1] % factor))
    return padded.unflatten(2, (-1, factor)).unflatten(1, (-1, factor)).any(4).any(2)


def _block_vertices(selected: Tensor, blocks: int, resolution: int) -> Tensor:
    """Flat indices of the vertices of the selected blocks [blocks^3]."""
    selected = selected.reshape(blocks, blocks, blocks)
    for dim in range(3):
        selected = selected.repeat_interleave(_BLOCK, dim).narrow(dim, 0, resolution)
    return selected.reshape(-1).nonzero()[:, 0]


def _carve_points(
    points: Tensor,
    flat: Tensor,
    lookup: Tensor,
    projections: Tensor,
    reach: Tensor,
    slack: float,
    min_views: int,
    max_misses: int,
) -> Tensor:
    """Those of `flat` whose points [3, N] survive all views; lost points are dropped every few views.

    lookup: [V, H + 2, W + 2] int8 pixels to the mask, framed by _UNSEEN: clamping to the frame is the inside test.
    reach: [V] how far the mask reaches further, in pixels at depth 1; slack: and at any depth.
    """
    height, width = lookup.shape[1:]
    # Adding 1.5 pixels makes truncation a rounding to the nearest pixel of the framed image.
    projections = projections.clone()
    projections[:, :2] += 1.5 * projections[:, 2:]
    seen_by = torch.zeros(len(flat), dtype=torch.int16, device=flat.device)
    misses = torch.zeros_like(seen_by)
    for view in range(len(lookup)):
        u, v, depth = torch.addmm(projections[view, :, 3:], projections[view, :, :3], points)
        inverse = depth.clamp_min_(1e-6).reciprocal_()  # behind the camera: far outside the image
        pixel = v.mul_(inverse).clamp_(0, height - 0.5).int() * width
        pixel += u.mul_(inverse).clamp_(0, width - 0.5).int()
        distance = lookup[view].view(-1).index_select(0, pixel)
        misses += distance > inverse.mul_(reach[view]).add_(slack)
        seen_by += distance > _UNSEEN
        if view % 4 == 3:
            alive = (misses <= max_misses).nonzero()[:, 0]
            if len(alive) < 0.9 * len(flat):
                points, flat = points[:, alive], flat[alive]
                seen_by, misses = seen_by[alive], misses[alive]
    return flat[(misses <= max_misses) & (seen_by >= min_views)]


def _to_image(projection: Tensor, points: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """u, v and depth, each [N], of points [3, N]; u and v mean nothing where the depth is not positive."""
    u, v, depth = torch.addmm(projection[:, 3:], projection[:, :3], points)
    inverse = depth.clamp_min(1e-6).reciprocal()
    return u * inverse, v * inverse, depth


def _reach_in_pixels(projections: Tensor, focal: Tensor, extent: float, reach: float) -> int:
    """The largest projected size, over all views, of a length `reach` anywhere in the grid."""
    depth_at_origin = projections[:, 2, 3]
    nearest = (depth_at_origin - 3**0.5 * extent).clamp_min(0.25 * depth_at_origin.abs().clamp_min(1e-6))
    return int(torch.ceil(reach * focal / nearest).max())


def _pixels_to_mask(masks: Tensor, up_to: int) -> Tensor:
    """[V, H, W] uint8 distance from each pixel to the mask in pixels, exact to a few percent; up_to + 1 is "further".

    Growing by a cross and by a square in turn makes octagons, the cheapest good discs.
    """
    up_to = min(up_to, 126)
    distance = torch.full(masks.shape, up_to + 1, dtype=torch.uint8, device=masks.device)
    distance -= masks.view(torch.uint8)
    grown = masks
    for step in range(1, up_to + 1):
        grown = _grow(grown, square=step % 2 == 0)
        distance -= grown.view(torch.uint8)
    return distance


def _grow(masks: Tensor, square: bool) -> Tensor:
    """Masks [V, H, W] grown by one pixel to the four (square: eight) neighbours."""
    grown = masks.clone()
    grown[:, :, 1:] |= masks[:, :, :-1]
    grown[:, :, :-1] |= masks[:, :, 1:]
    across = grown.clone() if square else masks
    grown[:, 1:] |= across[:, :-1]
    grown[:, :-1] |= across[:, 1:]
    return grown
