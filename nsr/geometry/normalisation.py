"""Where the object is, from silhouettes or from the cameras alone: the scene frame for data that comes without a scale_mat.

The purpose is that of IDR's camera preprocessing (Yariv et al. 2020): put the object into the unit sphere.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from nsr.geometry.masks import is_object
from nsr.geometry.poses import transform_cameras
from nsr.geometry.visual_hull import carve, grid_axis
from nsr.types import Cameras, Sphere
from nsr.utils.errors import DataError

OBJECT_MASK_RADIUS = 0.88  # of the unit sphere, taken by the object
_HULL_RESOLUTION = 64
_REWEIGHTINGS = 10
_SMALLEST_PIECE = 0.02  # share of the largest piece of the hull that another one must have to count
_CLEAR_OF_CAMERAS = 0.7  # of the nearest camera's distance, reached by a sphere that cameras alone tell
_MARGIN = 1.1  # by which a sphere is widened before the hull is looked for in it


def scene_normalisation(cameras_world: Cameras, masks: Tensor) -> np.ndarray:
    """world_from_scene [4, 4] float64 (a scale and an offset) that puts the object into the unit sphere with a margin.

    The rays through the mask centroids meet in a first centre (robust least squares), the extents of the silhouettes
    give a first radius; then a coarse visual hull in that sphere gives centre and radius, twice.

    Args:
        cameras_world: V >= 2 cameras in the world frame.
        masks: [V, H, W] bool, or uint8 where 128 and above is object.

    Raises:
        DataError: fewer than two usable views, parallel views, or silhouettes and cameras that do not agree.
    """
    masks = is_object(masks)
    used = masks.flatten(1).any(1).nonzero()[:, 0]
    if len(used) < 2:
        raise DataError(
            f"scene normalisation: expected at least 2 views with a mask, got {len(used)}; "
            "add views, or give scale_mat_i in the camera file"
        )
    masks = masks[used]
    cameras = cameras_world[used.to(cameras_world.intrinsics.device)]
    cameras = replace(cameras, intrinsics=cameras.intrinsics.double(), camera_to_world=cameras.camera_to_world.double())

    centroids, extents = _silhouettes(masks, cameras)
    center = _meeting_point(cameras.centers, centroids)
    depth = ((center - cameras.centers) * cameras.camera_to_world[:, :3, 2]).sum(-1)
    if not (depth > 0).float().mean() > 0.5:
        raise DataError(
            "scene normalisation: most cameras look away from the point where the silhouettes meet; the poses are "
            "probably camera-to-world where world-to-camera is expected, or look along -z (OpenGL): "
            "see docs/own_photos.md"
        )
    # A part nearer than the centre looks larger, so this bounds the object from above, up to a few wrong masks.
    bound = _MARGIN * float((depth * extents)[depth > 0].quantile(0.9))
    coarse_center, coarse_radius = _hull_sphere(masks, cameras, center, bound, (center, bound))
    center, radius = _hull_sphere(masks, cameras, coarse_center, _MARGIN * coarse_radius, (center, bound))
    return sphere_frame((*center.tolist(), radius / OBJECT_MASK_RADIUS))


def camera_normalisation(cameras_world: Cameras) -> np.ndarray:
    """world_from_scene [4, 4] float64 for an object without masks, at which all cameras look.

    The sphere's centre is the point nearest to all optical axes; it is as large as the longer side of the images shows
    there, by the median over the views, but stays clear of the cameras.

    Raises:
        DataError: fewer than two views, parallel views, or a point that most cameras look away from.
    """
    if len(cameras_world) < 2:
        raise DataError(
            f"scene normalisation: expected at least 2 views, got {len(cameras_world)}; add views, or give the object's "
            "sphere with --sphere X Y Z R"
        )
    origins, axes = cameras_world.centers.double(), cameras_world.camera_to_world[:, :3, 2].double()
    center = _meeting_point(origins, axes)
    depth = ((center - origins) * axes).sum(-1)
    if not (depth > 0).float().mean() > 0.5:
        raise DataError(
            "scene normalisation: most cameras look away from the point where their optical axes meet; expected cameras around "
            "an object: check the poses (docs/own_photos.md), or give the object's sphere with --sphere X Y Z R"
        )
    focal = cameras_world.intrinsics[:, [0, 1], [0, 1]].double().mean(-1)
    shown = 0.5 * max(cameras_world.width, cameras_world.height) / focal * depth
    radius = min(float(shown[depth > 0].median()), _CLEAR_OF_CAMERAS * float((center - origins).norm(dim=-1).min()))
    return sphere_frame((*center.tolist(), radius))


def sphere_frame(sphere: Sphere) -> np.ndarray:
    """world_from_scene [4, 4] float64 that puts the unit sphere where `sphere` is: centre x, y, z and radius, world units."""
    world_from_scene = np.eye(4)
    world_from_scene[:3, :3] *= sphere[3]
    world_from_scene[:3, 3] = sphere[:3]
    return world_from_scene


def _silhouettes(masks: Tensor, cameras: Cameras) -> tuple[Tensor, Tensor]:
    """Per view: the unit direction [V, 3] (world) to the mask's centroid, and how far [V] the silhouette reaches around
    it, at depth 1."""
    directions, extents = [], []
    for view, mask in enumerate(masks):
        v, u = mask.nonzero().double().unbind(1)
        k = cameras.intrinsics[view]
        y = (v - k[1, 2]) / k[1, 1]
        x = (u - k[0, 2] - k[0, 1] * y) / k[0, 0]
        plane = torch.stack([x, y], dim=-1)  # where the pixels' rays cross the plane at depth 1
        middle = plane.mean(0)
        extents.append((plane - middle).norm(dim=-1).max())
        directions.append(cameras.camera_to_world[view, :3, :3] @ torch.cat([middle, middle.new_ones(1)]))
    return torch.nn.functional.normalize(torch.stack(directions), dim=-1), torch.stack(extents)


def _meeting_point(origins: Tensor, directions: Tensor) -> Tensor:
    """The point [3] nearest to all lines, by least squares with Cauchy weights, which forgive a few wrong views."""
    across = torch.eye(3, dtype=origins.dtype) - directions[:, :, None] * directions[:, None, :]
    weights = torch.ones(len(origins), dtype=origins.dtype)
    for _ in range(_REWEIGHTINGS):
        normal_matrix = (weights[:, None, None] * across).sum(0)
        eigenvalues = torch.linalg.eigvalsh(normal_matrix)
        if eigenvalues[0] < 1e-6 * eigenvalues[-1]:
            raise DataError(
                "scene normalisation: all cameras look along one direction, so the distance of the object is unknown; "
                "give scale_mat_i in the camera file"
            )
        right = (weights[:, None, None] * across @ origins[..., None]).sum(0)
        point = torch.linalg.solve(normal_matrix, right)[:, 0]
        miss = (across @ (point - origins)[..., None])[..., 0].norm(dim=-1)
        weights = 1 / (1 + (miss / miss.median().clamp_min(1e-12)).square())
    return point


def _hull_sphere(
    masks: Tensor, cameras: Cameras, center: Tensor, reach: float, bound: tuple[Tensor, float]
) -> tuple[Tensor, float]:
    """Centre and radius of a sphere around the visual hull, carved in the cube of half side `reach` about `center`.

    Of the hull only what is inside the sphere `bound` counts, because behind an object that is seen from one side only
    the hull is a cone without end; and of this not the crumbs, which are left where few views look. A few views that
    disagree with all others are tolerated.
    """
    from scipy import ndimage

    world_from_grid = np.diag([reach, reach, reach, 1.0])
    world_from_grid[:3, 3] = center.numpy()
    in_grid = transform_cameras(cameras, np.linalg.inv(world_from_grid))
    axis = reach * grid_axis(_HULL_RESOLUTION, 1.0).double()
    grid = center + torch.stack(torch.meshgrid(axis, axis, axis, indexing="ij"), dim=-1)
    allowed = (grid - bound[0]).norm(dim=-1) <= bound[1]
    half_voxel = 3**0.5 / 2 * float(axis[1] - axis[0])
    most_misses = len(masks) // 5
    for misses in sorted({0, min(1, most_misses), most_misses}):
        # Where few views look, little is carved: such corners say nothing about the object.
        hull = carve(masks, in_grid, _HULL_RESOLUTION, min_views=max(2, len(masks) // 2), max_misses=misses)
        pieces, count = ndimage.label((hull & allowed).numpy())
        if count:
            sizes = np.bincount(pieces.ravel())
            sizes[0] = 0  # what is not hull
            kept = (sizes >= _SMALLEST_PIECE * sizes.max())[pieces]
            sphere_center, radius = bounding_sphere(grid[torch.from_numpy(kept)])
            return sphere_center, radius + half_voxel
    raise DataError(
        "scene normalisation: no point lies inside all silhouettes, so masks and cameras do not belong together "
        "(other order, other image size, world-to-camera against camera-to-world); "
        "see docs/own_photos.md"
    )


def bounding_sphere(points: Tensor, iterations: int = 200) -> tuple[Tensor, float]:
    """Centre [3] and radius of the smallest sphere around points [N, 3] to about 1 %.

    Badoiu and Clarkson 2003: step towards the farthest point by 1 / (i + 1).
    """
    center = (points.amin(0) + points.amax(0)) / 2
    for i in range(1, iterations + 1):
        farthest = points[(points - center).square().sum(-1).argmax()]
        center = center + (farthest - center) / (i + 1)
    return center, float((points - center).norm(dim=-1).max())
