"""Pinhole cameras: pixels to rays, points to pixels, and projection matrices taken apart.

Everything here is differentiable and runs on the device of its inputs. Frames and pixel centres: nsr/CONVENTIONS.md.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from nsr.types import Cameras, Rays
from nsr.utils.errors import DataError

# Smallest admissible ratio between the entries of K's diagonal before a camera counts as not invertible.
_SINGULAR = 1e-12


def decompose_projection(projection: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Take projection matrices P ~ K [R | t] apart (RQ decomposition; Hartley and Zisserman 2004, section 6.2.4).

    P is defined up to scale: a negative factor is removed, so that the rotation is proper. The skew is kept.

    Args:
        projection: [..., 3, 4], world to pixel.

    Returns:
        intrinsics: [..., 3, 3] float64, upper triangular, positive diagonal, K[2, 2] = 1.
        camera_to_world: [..., 4, 4] float64, rigid with det(R) = +1.

    Raises:
        DataError: an entry is not finite, or the left 3x3 block cannot be inverted (no centre of projection).
    """
    projection = np.asarray(projection, dtype=np.float64)
    if projection.shape[-2:] != (3, 4):
        raise DataError(f"decompose_projection: expected matrices of shape [..., 3, 4], got {list(projection.shape)}")
    if not np.isfinite(projection).all():
        raise DataError("decompose_projection: the matrix has NaN or infinite entries; write the camera again")

    left = projection[..., :3]
    projection = projection * np.where(np.linalg.det(left) < 0, -1.0, 1.0)[..., None, None]
    left = projection[..., :3]

    # RQ from QR, with J the reversal of rows: (J M)^T = Q U  =>  M = (J U^T J) (J Q^T).
    q, upper = np.linalg.qr(np.swapaxes(left[..., ::-1, :], -1, -2))
    intrinsics = np.swapaxes(upper, -1, -2)[..., ::-1, ::-1]
    rotation = np.swapaxes(q, -1, -2)[..., ::-1, :]

    diagonal = np.diagonal(intrinsics, axis1=-2, axis2=-1)
    smallest, largest = np.abs(diagonal).min(-1), np.abs(diagonal).max(-1)
    if np.any(smallest <= _SINGULAR * largest):
        raise DataError(
            "decompose_projection: the left 3x3 block of the matrix is singular, so the camera has no centre; "
            "expected K [R | t] with an invertible K and a rotation R"
        )
    sign = np.sign(diagonal)
    intrinsics = intrinsics * sign[..., None, :]
    rotation = rotation * sign[..., :, None]

    camera_to_world = np.zeros((*projection.shape[:-2], 4, 4))
    camera_to_world[..., :3, :3] = np.swapaxes(rotation, -1, -2)
    camera_to_world[..., :3, 3] = -np.linalg.solve(left, projection[..., 3:])[..., 0]
    camera_to_world[..., 3, 3] = 1.0
    return intrinsics / intrinsics[..., 2:, 2:], camera_to_world


def compose_projection(intrinsics: np.ndarray, camera_to_world: np.ndarray) -> np.ndarray:
    """P = K [R | t], [..., 3, 4] float64, from K [..., 3, 3] and the rigid camera_to_world [..., 4, 4]."""
    rotation = np.swapaxes(np.asarray(camera_to_world, dtype=np.float64)[..., :3, :3], -1, -2)
    center = np.asarray(camera_to_world, dtype=np.float64)[..., :3, 3:]
    return np.asarray(intrinsics, dtype=np.float64) @ np.concatenate([rotation, -rotation @ center], axis=-1)


def image_pixels(width: int, height: int, device: torch.device | str = "cpu") -> Float[Tensor, "N 2"]:
    """[H*W, 2] all pixels (u, v) of an image, row by row."""
    v, u = torch.meshgrid(torch.arange(height, device=device), torch.arange(width, device=device), indexing="ij")
    return torch.stack([u, v], dim=-1).reshape(-1, 2).float()


def ray_matrices(cameras: Cameras) -> Float[Tensor, "V 3 3"]:
    """R K^-1: pixel (u, v, 1) to the direction of its ray in the frame of the cameras, not unit. Differentiable."""
    inverse = torch.linalg.inv_ex(cameras.intrinsics).inverse  # inv has the host wait for a GPU, to see whether it failed
    return cameras.camera_to_world[:, :3, :3] @ inverse


def pixel_rays(
    cameras: Cameras,
    view: Int[Tensor, " N"],
    pixels: Float[Tensor, "N 2"],
    matrices: Float[Tensor, "V 3 3"] | None = None,
) -> Rays:
    """The rays through pixels (u, v) of the given views, from the camera centres along unit directions.

    Differentiable with respect to the cameras and the pixels. matrices: the cameras' ray_matrices, where they are known.
    """
    matrices = ray_matrices(cameras) if matrices is None else matrices
    # index_select and the sum of products are several times faster here than indexing with [], matmul and normalize are.
    matrices = matrices.flatten(1).index_select(0, view).view(-1, 3, 3)
    directions = matrices[..., 0] * pixels[:, :1] + matrices[..., 1] * pixels[:, 1:] + matrices[..., 2]
    directions = directions / directions.square().sum(dim=-1, keepdim=True).sqrt()
    return Rays(cameras.camera_to_world[:, :3, 3].index_select(0, view), directions)


def project(
    cameras: Cameras, view: Int[Tensor, " N"], points: Float[Tensor, "N 3"]
) -> tuple[Float[Tensor, "N 2"], Float[Tensor, " N"]]:
    """Pixels (u, v) [N, 2] and depth [N] of point i seen by camera view[i].

    The depth is measured along the optical axis; where it is not positive the point is behind the camera and the pixel
    has no meaning (it stays finite).
    """
    pose = cameras.camera_to_world[view]
    in_camera = (pose[:, :3, :3].transpose(-1, -2) @ (points - pose[:, :3, 3])[..., None])[..., 0]
    return _to_pixels(cameras.intrinsics[view], in_camera)


def project_all(cameras: Cameras, points: Float[Tensor, "P 3"]) -> tuple[Float[Tensor, "V P 2"], Float[Tensor, "V P"]]:
    """Pixels [V, P, 2] and depth [V, P] of every point in every view; see `project`."""
    pose = cameras.camera_to_world
    in_camera = (points[None] - pose[:, None, :3, 3]) @ pose[:, :3, :3]  # rows times R = R^T times columns
    return _to_pixels(cameras.intrinsics[:, None], in_camera)


def _to_pixels(intrinsics: Tensor, in_camera: Tensor) -> tuple[Tensor, Tensor]:
    """Pixels and depth of points [..., 3] in the camera frame under K [..., 3, 3]."""
    depth = in_camera[..., 2]
    tiny = torch.finfo(depth.dtype).tiny ** 0.5
    divisor = torch.where(depth.abs() > tiny, depth, torch.full_like(depth, tiny))
    x, y = in_camera[..., 0] / divisor, in_camera[..., 1] / divisor
    u = intrinsics[..., 0, 0] * x + intrinsics[..., 0, 1] * y + intrinsics[..., 0, 2]
    v = intrinsics[..., 1, 1] * y + intrinsics[..., 1, 2]
    return torch.stack([u, v], dim=-1), depth


def ray_sphere(rays: Rays, radius: float) -> tuple[Float[Tensor, " N"], Float[Tensor, " N"], Bool[Tensor, " N"]]:
    """Where N rays enter and leave the sphere of a radius about the origin.

    Returns:
        near, far: [N] distances along the rays, near clamped to >= 0 (an origin inside the sphere starts at 0). Where
            the ray misses, both are the distance of the closest approach to the origin, clamped to >= 0.
        hits: [N] bool, whether some part of the ray ahead of its origin lies inside.
    """
    closest = -(rays.origins * rays.directions).sum(-1)
    # |o + closest d| is computed from the point itself: o.o - closest^2 would cancel for far cameras.
    half_chord_squared = radius**2 - rays.at(closest).square().sum(-1)
    crosses = half_chord_squared > 0
    half_chord = torch.where(crosses, half_chord_squared, torch.ones_like(half_chord_squared)).sqrt()
    hits = crosses & (closest + half_chord > 0)
    miss = closest.clamp_min(0)
    near = torch.where(hits, (closest - half_chord).clamp_min(0), miss)
    far = torch.where(hits, closest + half_chord, miss)
    return near, far, hits


def level_cameras(cameras: Cameras, level: int) -> Cameras:
    """The cameras of the images halved `level` times: pixel centres are integers there too (nsr/CONVENTIONS.md)."""
    scale = 0.5**level
    # u' + 1/2 = (u + 1/2) / 2^level
    to_level = torch.tensor(
        [[scale, 0.0, 0.5 * scale - 0.5], [0.0, scale, 0.5 * scale - 0.5], [0.0, 0.0, 1.0]],
        dtype=cameras.intrinsics.dtype,
        device=cameras.intrinsics.device,
    )
    return replace(
        cameras, intrinsics=to_level @ cameras.intrinsics, width=cameras.width >> level, height=cameras.height >> level
    )
