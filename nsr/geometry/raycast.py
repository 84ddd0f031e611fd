"""Rays against triangle meshes on the CPU (Embree through `embreex`): first hits, and which points an eye sees.

The mesh is moved to the origin and scaled to unit size before Embree's single precision sees it, so that results do not
depend on the mesh's units or on how far from the origin it lies.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from embreex.mesh_construction import TriangleMesh
from embreex.rtcore_scene import EmbreeScene

from nsr.utils.errors import DataError

if TYPE_CHECKING:
    import trimesh

# A point counts as seen when nothing lies in front of it by more than this share of the mesh's half diagonal:
# well above the rounding of single precision (6e-8 times a camera distance of a few half diagonals).
_SEEN_TOLERANCE = 1e-4


class RayHits(NamedTuple):
    """First hits of N rays.

    hit: [N] bool.
    distance: [N] float64 along the unit direction, inf where the ray misses.
    triangle: [N] int64 index of the face, -1 where the ray misses.
    uv: [N, 2] float64 barycentric weights of the face's second and third vertex, 0 where the ray misses.
    """

    hit: np.ndarray
    distance: np.ndarray
    triangle: np.ndarray
    uv: np.ndarray


class Raycaster:
    """A mesh prepared for ray queries. Rays and results are in the frame and units of the mesh.

    Raises:
        DataError: the mesh has no triangles or a vertex that is not finite.
    """

    def __init__(self, mesh: trimesh.Trimesh):
        if len(mesh.faces) == 0 or not np.isfinite(mesh.vertices).all():
            raise DataError(
                f"Raycaster: expected a mesh with triangles and finite vertices, got {len(mesh.faces)} triangles and "
                f"{int((~np.isfinite(mesh.vertices)).sum())} coordinates that are not finite"
            )
        vertices = np.asarray(mesh.vertices, dtype=np.float64)
        self.faces = np.asarray(mesh.faces, dtype=np.int64)
        low, high = vertices.min(axis=0), vertices.max(axis=0)
        self._center = (low + high) / 2
        self._half_diagonal = max(float(np.linalg.norm(high - low)) / 2, np.finfo(np.float32).tiny)
        self._scene = EmbreeScene(robust=True)
        scaled = (vertices - self._center) / self._half_diagonal
        TriangleMesh(self._scene, scaled.astype(np.float32), self.faces.astype(np.int32))

    def first_hit(self, origins: np.ndarray, directions: np.ndarray) -> RayHits:
        """Where rays first meet the mesh, from either side of its triangles.

        Args:
            origins: [N, 3], or [3] when all rays start at one point.
            directions: [N, 3], of any length other than zero.
        """
        directions = _unit(directions)
        found = self._scene.run(self._scaled(origins, len(directions)), directions, output=1)
        triangle = found["primID"].astype(np.int64)
        hit = triangle >= 0
        distance = np.where(hit, found["tfar"].astype(np.float64) * self._half_diagonal, np.inf)
        uv = np.stack([found["u"], found["v"]], axis=-1).astype(np.float64)
        return RayHits(hit, distance, triangle, np.where(hit[:, None], uv, 0.0))

    def visible(self, points: np.ndarray, eye: np.ndarray) -> np.ndarray:
        """[N] bool: whether the segment from each surface point [N, 3] to the eye [3] is free of the mesh."""
        sight = np.asarray(points, dtype=np.float64) - np.asarray(eye, dtype=np.float64)
        length = np.linalg.norm(sight, axis=-1) / self._half_diagonal
        limit = np.maximum(length - _SEEN_TOLERANCE, 0).astype(np.float32)
        blocked = self._scene.run(self._scaled(eye, len(sight)), _unit(sight), dists=limit, query="OCCLUDED")
        return blocked < 0

    def interpolate(self, hits: RayHits, values: np.ndarray) -> np.ndarray:
        """Values [M, C] of the M vertices, interpolated at the hits: [K, C] for the K rays that hit, in their order."""
        corners = self.faces[hits.triangle[hits.hit]]
        u, v = hits.uv[hits.hit, :1].astype(values.dtype), hits.uv[hits.hit, 1:].astype(values.dtype)
        return values[corners[:, 0]] * (1 - u - v) + values[corners[:, 1]] * u + values[corners[:, 2]] * v

    def _scaled(self, origins: np.ndarray, count: int) -> np.ndarray:
        """Ray origins [count, 3] float32 in the frame that Embree works in."""
        scaled = (np.asarray(origins, dtype=np.float64) - self._center) / self._half_diagonal
        return np.ascontiguousarray(np.broadcast_to(scaled, (count, 3)), dtype=np.float32)


def _unit(vectors: np.ndarray) -> np.ndarray:
    """[N, 3] float32 unit vectors."""
    vectors = np.asarray(vectors, dtype=np.float64)
    length = np.linalg.norm(vectors, axis=-1, keepdims=True)
    return (vectors / np.where(length > 0, length, 1.0)).astype(np.float32)
