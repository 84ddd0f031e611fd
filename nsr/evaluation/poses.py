"""How far estimated cameras are from reference ones, once the free similarity between their frames is removed."""

from __future__ import annotations

import numpy as np

from nsr.geometry.poses import align_cameras, rotation_error_degrees, transform_cameras
from nsr.types import Cameras
from nsr.utils.errors import DataError


def evaluate_cameras(estimated: Cameras, reference: Cameras) -> dict[str, float]:
    """Rotation and translation errors after the similarity alignment of the camera centres (Umeyama 1991).

    View i of one is compared with view i of the other.

    Returns:
        rotation_error_degrees_{mean,median,max}: angle between the orientations.
        translation_error_{mean,median,max}: distance between the centres, in units of the reference frame.
        translation_error_percent_mean: the same, in percent of the mean distance of the reference centres from their
            centroid (absent for a single view, where it is not defined).
        alignment_scale: how much the estimate had to be enlarged.

    Raises:
        DataError: the numbers of views differ, or are zero, or a camera is not finite.
    """
    if len(estimated) != len(reference) or len(reference) == 0:
        raise DataError(
            "evaluate_cameras: expected as many estimated as reference cameras, at least one, "
            f"got {len(estimated)} and {len(reference)}"
        )
    estimated, reference = (_double(cameras) for cameras in (estimated, reference))
    for what, cameras in (("estimated", estimated), ("reference", reference)):
        if not cameras.camera_to_world.isfinite().all():
            raise DataError(f"evaluate_cameras: an {what} camera has NaN or infinite entries")
    similarity = align_cameras(estimated, reference)
    aligned = transform_cameras(estimated, similarity)
    rotation = rotation_error_degrees(aligned.camera_to_world[:, :3, :3], reference.camera_to_world[:, :3, :3]).numpy()
    translation = (aligned.centers - reference.centers).norm(dim=-1).numpy()
    errors = {}
    for name, values in (("rotation_error_degrees", rotation), ("translation_error", translation)):
        errors[f"{name}_mean"] = float(values.mean())
        errors[f"{name}_median"] = float(np.median(values))
        errors[f"{name}_max"] = float(values.max())
    spread = float((reference.centers - reference.centers.mean(dim=0)).norm(dim=-1).mean())
    if spread > 0:
        errors["translation_error_percent_mean"] = 100 * errors["translation_error_mean"] / spread
    errors["alignment_scale"] = float(np.cbrt(np.linalg.det(similarity[:3, :3])))
    return errors


def _double(cameras: Cameras) -> Cameras:
    intrinsics, poses = (t.detach().double().cpu() for t in (cameras.intrinsics, cameras.camera_to_world))
    return Cameras(intrinsics, poses, cameras.width, cameras.height)
