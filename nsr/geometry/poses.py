"""Rotations, similarity alignment, trainable cameras (IDR), and where a camera looks."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from nsr.types import Cameras

# Below this ratio of the second to the first principal extent, camera centres lie on a line and cannot fix a rotation.
_COLLINEAR = 1e-3
# The cameras' x axes span a plane (and are level in it) where their smallest variances are in these proportions.
_LEVEL = 0.05


# --------------------------------------------------------------------------------------------------------- rotations


def quaternion_to_rotation(quaternion: Float[Tensor, "*batch 4"]) -> Float[Tensor, "*batch 3 3"]:
    """Rotation matrices of quaternions (w, x, y, z) of any non-zero length; differentiable."""
    w, x, y, z = nn.functional.normalize(quaternion, dim=-1).unbind(-1)
    entries = [
        1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y),
        2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x),
        2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y),
    ]  # fmt: skip
    return torch.stack(entries, dim=-1).unflatten(-1, (3, 3))


def rotation_to_quaternion(rotation: Float[Tensor, "*batch 3 3"]) -> Float[Tensor, "*batch 4"]:
    """Unit quaternions (w, x, y, z) with w >= 0 of rotation matrices; differentiable.

    Shepperd's method: of the four equivalent formulas, each row takes the one that divides by the largest component.
    """
    m = rotation
    xx, yy, zz = m[..., 0, 0], m[..., 1, 1], m[..., 2, 2]
    # Row k of `candidates` is 4 q_k (w, x, y, z).
    wx, wy, wz = m[..., 2, 1] - m[..., 1, 2], m[..., 0, 2] - m[..., 2, 0], m[..., 1, 0] - m[..., 0, 1]
    xy, xz, yz = m[..., 0, 1] + m[..., 1, 0], m[..., 0, 2] + m[..., 2, 0], m[..., 1, 2] + m[..., 2, 1]
    rows = [
        [1 + xx + yy + zz, wx, wy, wz],
        [wx, 1 + xx - yy - zz, xy, xz],
        [wy, xy, 1 - xx + yy - zz, yz],
        [wz, xz, yz, 1 - xx - yy + zz],
    ]
    candidates = torch.stack([torch.stack(row, dim=-1) for row in rows], dim=-2)
    largest = candidates.diagonal(dim1=-2, dim2=-1).argmax(-1)
    index = largest[..., None, None].expand(*largest.shape, 1, 4)
    quaternion = nn.functional.normalize(candidates.gather(-2, index)[..., 0, :], dim=-1)
    return torch.where(quaternion[..., :1] < 0, -quaternion, quaternion)


def rotation_error_degrees(
    estimated: Float[Tensor, "*batch 3 3"], reference: Float[Tensor, "*batch 3 3"]
) -> Float[Tensor, "*batch"]:
    """Angle of the rotation between two rotation matrices, in degrees.

    2 asin(|A - B|_F / sqrt(8)) is used because acos of the trace loses all digits of small angles.
    """
    chord = torch.linalg.matrix_norm(estimated - reference) / 8**0.5
    return torch.rad2deg(2 * torch.asin(chord.clamp(max=1)))


# --------------------------------------------------------------------------------------------------------- alignment


def umeyama(source: np.ndarray | Tensor, target: np.ndarray | Tensor) -> np.ndarray:
    """The similarity [4, 4] float64 that maps source points onto target points with the least squared error.

    Umeyama 1991, equations 40-42; reflections are excluded, so the rotation is proper even where a mirror image would
    fit better. Points [N, 3] on a line leave the rotation about that line open: one of the best ones is returned.

    Raises:
        ValueError: the shapes differ or are not [N, 3] with N >= 1, or an entry is not finite.
    """
    source, target = _to_numpy(source), _to_numpy(target)
    if source.shape != target.shape or source.ndim != 2 or source.shape[1] != 3 or len(source) == 0:
        raise ValueError(f"umeyama: expected two arrays [N, 3], N >= 1; got {source.shape} and {target.shape}")
    if not (np.isfinite(source).all() and np.isfinite(target).all()):
        raise ValueError("umeyama: the points have NaN or infinite coordinates")
    source_mean, target_mean = source.mean(0), target.mean(0)
    source_centred, target_centred = source - source_mean, target - target_mean
    u, spread, vt = np.linalg.svd(target_centred.T @ source_centred / len(source))
    proper = np.array([1.0, 1.0, np.linalg.det(u) * np.linalg.det(vt)]).round()
    rotation = (u * proper) @ vt
    variance = np.square(source_centred).sum() / len(source)
    scale = float((spread * proper).sum() / variance) if variance > 0 else 1.0
    return _similarity(scale, rotation, target_mean - scale * rotation @ source_mean)


def align_cameras(estimated: Cameras, reference: Cameras) -> np.ndarray:
    """The similarity [4, 4] that maps the frame of `estimated` onto the frame of `reference`, view by view.

    The camera centres decide; where they lie on a line (two views, a slider) the orientations fix the rotation.
    """
    source, target = _to_numpy(estimated.centers), _to_numpy(reference.centers)
    if len(source) != len(target):
        raise ValueError(f"align_cameras: expected as many views in both, got {len(source)} and {len(target)}")
    extents = np.linalg.svd(source - source.mean(0), compute_uv=False)
    if len(source) >= 3 and extents[1] > _COLLINEAR * extents[0]:
        return umeyama(source, target)
    # Chordal mean of the relative rotations, then scale and offset for that rotation.
    relative = _to_numpy(reference.camera_to_world)[:, :3, :3] @ np.swapaxes(
        _to_numpy(estimated.camera_to_world)[:, :3, :3], -1, -2
    )
    u, _, vt = np.linalg.svd(relative.sum(0))
    rotation = (u * [1, 1, np.linalg.det(u @ vt)]) @ vt
    source_centred = (source - source.mean(0)) @ rotation.T
    variance = np.square(source_centred).sum()
    scale = float((source_centred * (target - target.mean(0))).sum() / variance) if variance > 0 else 1.0
    return _similarity(scale, rotation, target.mean(0) - scale * rotation @ source.mean(0))


def transform_cameras(cameras: Cameras, similarity: np.ndarray) -> Cameras:
    """The same cameras in the frame that `similarity` [4, 4] maps to: x_new = similarity @ x; poses stay rigid."""
    scale = np.cbrt(np.linalg.det(similarity[:3, :3]))
    pose = similarity @ _to_numpy(cameras.camera_to_world)
    pose[:, :3, :3] /= scale
    return replace(cameras, camera_to_world=torch.as_tensor(pose).to(cameras.camera_to_world))


def _similarity(scale: float, rotation: np.ndarray, translation: np.ndarray) -> np.ndarray:
    matrix = np.eye(4)
    matrix[:3, :3] = scale * rotation
    matrix[:3, 3] = translation
    return matrix


def _to_numpy(values: np.ndarray | Tensor) -> np.ndarray:
    if isinstance(values, Tensor):
        values = values.detach().cpu().numpy()
    return np.asarray(values, dtype=np.float64)


# --------------------------------------------------------------------------------------------------- trainable cameras


class TrainableCameras(nn.Module):
    """Camera poses as parameters: one quaternion (w, x, y, z) and one centre per view (Yariv et al. 2020, section 3).

    The seven numbers of a view are a row of an embedding, so with `sparse=True` a step touches only the views it drew
    and torch.optim.SparseAdam keeps separate moments for each of them, as IDR does.
    """

    def __init__(self, cameras: Cameras, sparse: bool = True):
        super().__init__()
        pose = cameras.camera_to_world
        rows = torch.cat([rotation_to_quaternion(pose[:, :3, :3]), pose[:, :3, 3]], dim=-1)
        self.poses = nn.Embedding.from_pretrained(rows.detach().clone(), freeze=False, sparse=sparse)
        self.register_buffer("intrinsics", cameras.intrinsics.detach().clone())
        self.width, self.height = cameras.width, cameras.height

    def forward(self, view: Int[Tensor, " N"]) -> Float[Tensor, "N 4 4"]:
        """camera_to_world [N, 4, 4] of the views, differentiable with respect to their poses."""
        row = self.poses(view)
        top = torch.cat([quaternion_to_rotation(row[:, :4]), row[:, 4:, None]], dim=-1)
        bottom = row.new_tensor([0.0, 0.0, 0.0, 1.0]).expand(len(row), 1, 4)
        return torch.cat([top, bottom], dim=-2)

    def cameras(self) -> Cameras:
        """All cameras as they are now; gradients reach the poses through it."""
        view = torch.arange(self.poses.num_embeddings, device=self.intrinsics.device)
        return Cameras(self.intrinsics, self.forward(view), self.width, self.height)


# ----------------------------------------------------------------------------------------------- where a camera looks


def look_at(eye: Float[Tensor, "N 3"], target: Float[Tensor, " 3"], up: Float[Tensor, " 3"]) -> Float[Tensor, "N 4 4"]:
    """camera_to_world of cameras at `eye` that look at `target` with the image's top towards `up`."""
    forward = nn.functional.normalize(target - eye, dim=-1)
    right = torch.linalg.cross(forward, up.expand_as(forward))
    # Looking along the up direction leaves the roll open: any direction across will do.
    spare = torch.linalg.cross(forward, forward.roll(1, dims=-1) * forward.new_tensor([1.0, -1.0, 1.0]))
    right = nn.functional.normalize(torch.where(right.norm(dim=-1, keepdim=True) > 1e-6, right, spare), dim=-1)
    pose = torch.eye(4, dtype=eye.dtype, device=eye.device).repeat(len(eye), 1, 1)
    pose[:, :3, 0] = right
    pose[:, :3, 1] = torch.linalg.cross(forward, right)
    pose[:, :3, 2] = forward
    pose[:, :3, 3] = eye
    return pose


def mean_up(cameras: Cameras) -> Float[Tensor, " 3"]:
    """[3] unit vector that is up for all cameras together.

    Cameras held level have their x axes horizontal, so up is the direction that is most nearly perpendicular to all of
    them, wherever the cameras stand. Where they do not fix it (few views, or cameras turned on their side) it is the mean
    of the directions towards the images' tops; where these cancel as well, the normal of the plane of the camera centres.
    """
    mean = -cameras.camera_to_world[:, :3, 1].mean(0)
    spread, axes = torch.linalg.eigh(cameras.camera_to_world[:, :3, 0].T @ cameras.camera_to_world[:, :3, 0])
    level = axes[:, 0] * torch.sign(axes[:, 0] @ mean)
    if spread[1] > _LEVEL * spread[2] and spread[0] < _LEVEL * spread[1] and level @ mean > 0.5:
        return level
    if mean.norm() < 0.5 and len(cameras) >= 3:
        centers = cameras.centers - cameras.centers.mean(0)
        normal = torch.linalg.svd(centers, full_matrices=False).Vh[-1]
        return torch.where(normal @ mean < 0, -normal, normal)
    return nn.functional.normalize(mean if mean.norm() > 1e-3 else -cameras.camera_to_world[0, :3, 1], dim=-1)
