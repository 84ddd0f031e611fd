"""Which cameras see which parts of a mesh. Meshes, points and cameras share one frame."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from nsr.geometry.cameras import project
from nsr.geometry.masks import dilate, is_object
from nsr.types import Cameras
from nsr.utils.errors import DataError

if TYPE_CHECKING:
    import trimesh

    from nsr.geometry.raycast import Raycaster

MASK_MARGIN = 2  # pixels beyond a mask that still count as it: masks and silhouettes agree to about one


@dataclass(frozen=True)
class Viewpoints:
    """V cameras and, where they are known, their masks.

    masks: [V, H, W] bool, or uint8 where 128 and above is object; None: everything in an image may be object.
    Raises DataError when the masks are not those of the cameras.
    """

    cameras: Cameras
    masks: Tensor | None = None

    def __post_init__(self) -> None:
        shape = (len(self.cameras), self.cameras.height, self.cameras.width)
        if self.masks is not None and tuple(self.masks.shape) != shape:
            raise DataError(
                f"visibility: expected one mask per camera at its image size, {list(shape)}, got {list(self.masks.shape)}; "
                "give the masks of these views, or none"
            )

    def __len__(self) -> int:
        return len(self.cameras)

    def in_double(self) -> Viewpoints:
        """On the CPU and in double precision, as the functions of this module want the cameras."""
        intrinsics, poses = (t.detach().double().cpu() for t in (self.cameras.intrinsics, self.cameras.camera_to_world))
        return replace(self, cameras=replace(self.cameras, intrinsics=intrinsics, camera_to_world=poses))


def seen_from(
    views: Viewpoints, view: int, raycaster: Raycaster, points: np.ndarray, normals: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Which of N surface points one view sees: in the image, facing the camera, not occluded.

    Args:
        views: in double precision.
        raycaster: of the mesh that may stand in between.
        points, normals: [N, 3]; the length of the normals does not matter.

    Returns:
        seen: indices [K] of the points seen.
        on_object: [K] bool, whether the mask shows object there, give or take MASK_MARGIN pixels; True without masks.
    """
    eye = views.cameras.centers[view].numpy()
    facing = np.flatnonzero(((eye - points) * normals).sum(axis=-1) > 0)
    pixels, depth = project(views.cameras, torch.full((len(facing),), view), torch.from_numpy(points[facing]))
    # An image covers [-0.5, size - 0.5]: pixel centres are integers.
    size = torch.tensor([views.cameras.width, views.cameras.height])
    inside = (((pixels >= -0.5) & (pixels <= size - 0.5)).all(dim=-1) & (depth > 0)).numpy()
    candidates, pixels = facing[inside], pixels[inside]
    visible = raycaster.visible(points[candidates], eye)
    seen, pixels = candidates[visible], pixels[visible]
    if views.masks is None:
        return seen, np.ones(len(seen), dtype=bool)
    column, row = torch.minimum(pixels.round().clamp(min=0), size - 1).long().unbind(-1)
    return seen, dilate(is_object(views.masks[view].cpu()), MASK_MARGIN)[row, column].numpy()


def count_views(
    views: Viewpoints,
    raycaster: Raycaster,
    points: np.ndarray,
    normals: np.ndarray,
    *,
    enough: int | None = None,
) -> np.ndarray:
    """[N] how many views see each surface point, on the object where there are masks. See `seen_from`.

    enough: stop counting a point there, which saves most of the work; None counts all.
    """
    views = views.in_double()
    count = np.zeros(len(points), dtype=np.int64)
    for view in range(len(views)):
        open_points = np.flatnonzero(count < enough) if enough is not None else np.arange(len(points))
        seen, on_object = seen_from(views, view, raycaster, points[open_points], normals[open_points])
        count[open_points[seen[on_object]]] += 1
    return count


def vertex_views(mesh: trimesh.Trimesh, views: Viewpoints, *, enough: int | None = None) -> np.ndarray:
    """[M] how many views see each vertex of a mesh.

    Vertices, not faces, are asked: marching cubes makes slivers, whose normals are noise, but around a vertex the large
    faces outweigh them; and a number per vertex is what mesh files and viewers understand.
    """
    from nsr.geometry.raycast import Raycaster

    points = np.asarray(mesh.vertices, dtype=np.float64)
    return count_views(views, Raycaster(mesh), points, area_weighted_normals(mesh), enough=enough)


def face_areas_and_normals(mesh: trimesh.Trimesh) -> tuple[np.ndarray, np.ndarray]:
    """[F] areas and [F, 3] unit normals, 0 for triangles without area; Trimesh.face_normals may drop such faces."""
    corners = np.asarray(mesh.vertices, dtype=np.float64)[np.asarray(mesh.faces)]
    normal = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    length = np.linalg.norm(normal, axis=-1)
    return length / 2, normal / np.where(length > 0, length, 1.0)[:, None]


def area_weighted_normals(mesh: trimesh.Trimesh) -> np.ndarray:
    """[M, 3] the sum of the normals of the faces around each vertex, as long as their areas."""
    area, normal = face_areas_and_normals(mesh)
    faces = np.asarray(mesh.faces)
    return np.stack([_at_vertices(faces, area * normal[:, axis], len(mesh.vertices)) for axis in range(3)], axis=-1)


def vertex_areas(mesh: trimesh.Trimesh) -> np.ndarray:
    """[M] a third of the area of the faces around each vertex; they sum to the area of the mesh."""
    return _at_vertices(np.asarray(mesh.faces), face_areas_and_normals(mesh)[0] / 3, len(mesh.vertices))


def _at_vertices(faces: np.ndarray, values: np.ndarray, count: int) -> np.ndarray:
    """[count] the sum of the faces' values [F] at each vertex."""
    return np.bincount(faces.ravel(), weights=np.repeat(values, 3), minlength=count)
