"""Signed distances to sample from meshes as they come: open ones, and with surfaces inside, as scans and head models have."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from nsr.utils.errors import DataError

if TYPE_CHECKING:
    import trimesh

NEAR, NEARER = 0.05, 0.0158  # standard deviations around the surface (DeepSDF, sec. 5: variances 0.0025 and 0.00025)
NEAR_SHARE = 0.9  # of the points, half with each of these; the others lie anywhere in the ball
MARGIN = 1.06  # of the ball around all surfaces
ICP_POINTS = 4000  # of a surface that is aligned


class SdfSamples(NamedTuple):
    """points: [P, 3], prior frame; sdf: [P], prior units, negative inside."""

    points: Float[Tensor, "P 3"]
    sdf: Float[Tensor, " P"]


def common_frame(meshes: Sequence[trimesh.Trimesh]) -> np.ndarray:
    """world_from_prior [4, 4]: the unit ball about the mean of the meshes' centres that holds all of them, with a margin."""
    boxes = np.array([mesh.bounds for mesh in meshes])
    center = boxes.mean(axis=(0, 1))
    radius = max(float(np.linalg.norm(np.asarray(mesh.vertices) - center, axis=-1).max()) for mesh in meshes)
    frame = np.eye(4)
    frame[:3, :3] *= MARGIN * radius
    frame[:3, 3] = center
    return frame


def align_rigidly(mesh: trimesh.Trimesh, reference: trimesh.Trimesh, seed: int = 0) -> np.ndarray:
    """The rigid motion [4, 4] that brings a mesh onto another that it resembles, by ICP between points of their surfaces.

    Beginning where their boxes' centres coincide. No scale: the sizes of heads are part of what is learned.
    """
    from trimesh.registration import icp
    from trimesh.sample import sample_surface

    begin = np.eye(4)
    begin[:3, 3] = reference.bounds.mean(axis=0) - mesh.bounds.mean(axis=0)
    points, target = (
        sample_surface(of, count, seed=seed)[0] for of, count in ((mesh, ICP_POINTS), (reference, 5 * ICP_POINTS))
    )
    motion, _, _ = icp(np.asarray(points), np.asarray(target), initial=begin, max_iterations=50, scale=False, reflection=False)
    return motion


def sample_sdf(
    mesh: trimesh.Trimesh, world_from_prior: np.ndarray, count: int, rng: np.random.Generator, radius: float = 1.0
) -> SdfSamples:
    """Points around a mesh (world frame) and in the ball of a radius, with their signed distances, both in the prior frame.

    The sign is that of the generalised winding number (Barill et al. 2018), which needs no closed mesh: an open neck is closed
    by what the surface suggests, and surfaces inside others do not matter. Raises DataError for a mesh without triangles, or
    one whose triangles face inwards.
    """
    import igl
    from trimesh.sample import sample_surface

    if len(mesh.faces) == 0:
        raise DataError("sample_sdf: the mesh has no triangles; expected a surface")
    prior_from_world = np.linalg.inv(world_from_prior)
    vertices = np.ascontiguousarray(_moved(mesh.vertices, prior_from_world))
    faces = np.ascontiguousarray(mesh.faces, dtype=np.int64)
    near = round(NEAR_SHARE * count)
    on_surface, _ = sample_surface(mesh, near, seed=int(rng.integers(2**31)))
    on_surface = _moved(on_surface, prior_from_world)
    spread = np.where(np.arange(near) % 2 == 0, NEAR, NEARER)[:, None]
    anywhere = rng.normal(size=(count - near, 3))
    anywhere *= radius * rng.uniform(size=(count - near, 1)) ** (1 / 3) / np.linalg.norm(anywhere, axis=-1, keepdims=True)
    points = np.concatenate([on_surface + spread * rng.normal(size=(near, 3)), anywhere])
    points = points[np.linalg.norm(points, axis=-1) < radius]
    distance = np.sqrt(np.maximum(igl.point_mesh_squared_distance(points, vertices, faces)[0], 0.0))
    winding = np.asarray(igl.fast_winding_number(vertices, faces, points))
    certain = winding[np.abs(winding) > 0.5]
    if len(certain) and (certain < 0).mean() > 0.5:
        raise DataError(
            "sample_sdf: the triangles of the mesh face inwards (its winding number is -1 inside); expected them "
            "counter-clockwise seen from outside; flip its faces"
        )
    sdf = np.where(winding > 0.5, -distance, distance)
    return SdfSamples(torch.from_numpy(points.astype(np.float32)), torch.from_numpy(sdf.astype(np.float32)))


def _moved(points: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """Points [N, 3] under a similarity [4, 4]."""
    return np.asarray(points, dtype=np.float64) @ matrix[:3, :3].T + matrix[:3, 3]
