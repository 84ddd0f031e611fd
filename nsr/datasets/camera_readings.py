"""The ways in which camera files are misread, and which of them makes sense of silhouettes that do not agree."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch

from nsr.datasets.consistency import HullConsistency
from nsr.geometry.normalisation import scene_normalisation
from nsr.geometry.poses import transform_cameras
from nsr.types import Cameras, Scene
from nsr.utils.errors import DataError

AS_WRITTEN = "the scene frame (scale_mat) is another one"
_FITS = 0.9  # mean share of the masks that the hull must fill for a reading to be the right one
_SIMPLE_RATIOS = (1 / 8, 1 / 4, 1 / 3, 1 / 2, 2 / 3, 3 / 4, 4 / 3, 3 / 2, 2, 3, 4, 8)
_MOST_VIEWS = 16  # views a reading is tried on


@dataclass(frozen=True)
class Reading:
    """Cameras in the world frame under one reading of the file; its cause, and how to write the file instead."""

    cameras: Cameras
    cause: str
    advice: str


def find_reading(scene: Scene) -> Reading | None:
    """The usual reading under which a common object fills the silhouettes best, None when none fills them well."""
    chosen = np.linspace(0, len(scene) - 1, min(len(scene), _MOST_VIEWS)).round().astype(int).tolist()
    masks = scene.masks[chosen].cpu()
    cameras = scene.cameras.to("cpu")
    cameras = replace(cameras, intrinsics=cameras.intrinsics.double(), camera_to_world=cameras.camera_to_world.double())
    best, best_coverage = None, _FITS
    for reading in camera_readings(transform_cameras(cameras, scene.world_from_scene)):
        world = reading.cameras[chosen]
        try:
            world_from_scene = scene_normalisation(world, masks)
        except DataError:
            continue
        normalised = transform_cameras(world, np.linalg.inv(world_from_scene))
        normalised = replace(
            normalised,
            intrinsics=normalised.intrinsics.float(),
            camera_to_world=normalised.camera_to_world.float(),
        )
        consistency = HullConsistency(masks, normalised, resolution=40)
        coverage = consistency.coverage(consistency.hull(torch.ones(len(chosen), dtype=torch.bool)))
        if coverage.mean() > best_coverage + 0.01:
            best, best_coverage = reading, float(coverage.mean())
    return best


def camera_readings(world: Cameras) -> list[Reading]:
    """The cameras as written and as they would be under each usual mistake, likeliest first."""
    pose, k = world.camera_to_world, world.intrinsics
    opengl = torch.diag(pose.new_tensor([1, -1, -1, 1]))  # its cameras look along -z with y up
    inverse = torch.linalg.inv(pose)
    scale = _likely_scale(k, world.width, world.height)
    resized = k.clone()
    resized[:, :2] *= scale
    return [
        Reading(world, AS_WRITTEN, "remove the scale_mat keys to have it computed from the masks"),
        Reading(
            replace(world, camera_to_world=inverse),
            "the poses are inverted: camera-to-world was written where world-to-camera is expected",
            "write world_mat_i = K @ inverse(camera_to_world)[:3]",
        ),
        Reading(
            replace(world, camera_to_world=pose @ opengl),
            "the cameras look along -z with y up (OpenGL, Blender, NeRF)",
            "write world_mat_i = K @ diag(1, -1, -1) @ [R | t], or negate columns 1 and 2 of camera_to_world",
        ),
        Reading(
            replace(world, camera_to_world=inverse @ opengl),
            "the poses are inverted and look along -z: OpenGL camera-to-world where world-to-camera is expected",
            "write world_mat_i = K @ diag(1, -1, -1) @ inverse(camera_to_world)[:3]",
        ),
        Reading(
            replace(world, intrinsics=k.flip(0), camera_to_world=pose.flip(0)),
            "the cameras are in reversed order",
            "number the cameras in the natural order of the images",
        ),
        Reading(
            replace(world, intrinsics=resized),
            f"the cameras were made for images of another size (factor {scale:.3g})",
            f"multiply fx, fy, cx, cy (the first two rows of K) by {scale:.3g}",
        ),
    ]


def _likely_scale(intrinsics: torch.Tensor, width: int, height: int) -> float:
    """By how much the images were resized after K was made: what brings the principal point to the middle of the image.

    Principal points are off the middle by a few percent, so a simple ratio nearby is likelier than the figure itself.
    """
    across, down = (width - 1) / 2 / intrinsics[:, 0, 2], (height - 1) / 2 / intrinsics[:, 1, 2]
    scale = float(torch.stack([across, down]).median())
    nearest = min(_SIMPLE_RATIOS, key=lambda ratio: abs(ratio - scale) / ratio)
    return nearest if abs(nearest - scale) < 0.08 * nearest else scale
