"""Visual hull: the largest shape that the silhouettes allow (Laurentini 1994), as a grid and as a signed distance.

The hull starts the network close to the object, tells cameras that do not fit their masks, and normalises scenes.
"""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from nsr.geometry.masks import is_object
from nsr.ops.visual_hull import visual_hull
from nsr.types import Cameras
from nsr.utils.errors import DataError


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
        tolerance: a mask reaches this many voxels further (in the image: their projected size at the vertex's depth), so
            that parts thinner than a voxel stay. The hull is larger by as much; nsr.ops.visual_hull says exactly how.

    Returns:
        [R, R, R] bool occupancy, indexed [x, y, z].

    Raises:
        DataError: the masks are not one per camera at its image size.
    """
    if masks.shape != (len(cameras), cameras.height, cameras.width):
        expected = f"[{len(cameras)}, {cameras.height}, {cameras.width}]"
        raise DataError(f"carve: expected one mask per camera at its image size, {expected}, got {list(masks.shape)}")
    masks = is_object(masks)
    axis = grid_axis(resolution, extent, masks.device)
    reach = tolerance * 2 * extent / max(resolution - 1, 1)
    return visual_hull(masks, _projections(cameras).to(axis), cameras.focals.to(axis), axis, reach, min_views, max_misses)


def hull_signed_distance(occupancy: Bool[Tensor, "R R R"], extent: float = 1.0) -> Float[Tensor, "R R R"]:
    """Signed distance in scene units at the grid vertices of `carve`, negative inside.

    The surface lies half a voxel outside the occupied vertices; the staircase of the voxels is blurred by a Gaussian of
    one voxel.

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
    voxels = ndimage.gaussian_filter(signed_cell_distance(inside), 1.0, mode="nearest")
    spacing = 2 * extent / (len(inside) - 1)
    return torch.from_numpy(voxels * np.float32(spacing)).to(occupancy.device)


def signed_cell_distance(inside: np.ndarray, sides: tuple[float, ...] | None = None) -> np.ndarray:
    """Distance, float32, from each cell's centre to the surface half way between cells inside and outside; negative inside.

    inside: bool, of any dimension; some cells have to be outside. sides: of the cells, along each axis (1).
    """
    from scipy import ndimage

    half = 0.5 * float(np.mean(sides)) if sides else 0.5
    outwards = ndimage.distance_transform_edt(~inside, sampling=sides)
    inwards = np.zeros_like(outwards)
    for extent in ndimage.find_objects(inside.astype(np.uint8)):  # one or none; the cells around it are the nearest outside
        box = tuple(slice(max(s.start - 1, 0), s.stop + 1) for s in extent)
        inwards[box] = ndimage.distance_transform_edt(inside[box], sampling=sides)
    return np.where(inside, half - inwards, outwards - half).astype(np.float32)


def _projections(cameras: Cameras) -> Float[Tensor, "V 3 4"]:
    """K [R | t] in float64, whose third row gives the depth."""
    rotation = cameras.camera_to_world[:, :3, :3].double().transpose(-1, -2)
    translation = -rotation @ cameras.centers.double()[..., None]
    return cameras.intrinsics.double() @ torch.cat([rotation, translation], dim=-1)
