"""The evaluation of the H3DS data set (Ramon et al., ICCV 2021): how far a reconstructed head is from its scan, in mm.

The protocol, as `evaluate_scene` of the public package h3ds 0.4 runs it:

1. Where landmarks of the reconstruction are given, the similarity without reflection that carries them onto the scan's
   (Procrustes analysis, least squares) moves it first.
2. ICP carries the vertices of a region of the scan onto the vertices of the reconstruction: up to 20 times each goes to its
   nearest one, by the similarity (reflections allowed) that fits best, until the mean square distance falls by less than
   1e-5 mm². The inverse moves the reconstruction.
3. The distance from each vertex of the scan to the nearest vertex of the reconstruction.

head_mm is the mean over all vertices of the scan, after ICP over its `face`; face_mm the mean over its `face_sphere`, 95 mm
about the tip of the nose, after ICP over that.

Three things to know of these figures. Distances end at vertices, so a coarse mesh is further away than its surface is:
head_surface_mm and face_surface_mm are the same means to the nearest point on triangles, after the same alignments. They look
from the scan alone, and what the reconstruction has beyond it costs nothing: the *_accuracy_mm look back. And ICP fits the
scale: a head of the wrong size is not told from one of the right size, but for head_scale and face_scale.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from nsr.evaluation.chamfer import point_to_mesh
from nsr.geometry.meshes import to_world
from nsr.utils.errors import DataError

if TYPE_CHECKING:
    import trimesh

ICP_ROUNDS, ICP_THRESHOLD = 20, 1e-5  # mm²
HEAD, FACE = "face", "face_sphere"  # the regions that the two figures are aligned on


@dataclass(frozen=True)
class HeadReference:
    """What the data set says about one head.

    mesh: the scan, in mm; landmarks: vertices of it by name; regions: [N] vertices of it by name, HEAD and FACE among them.
    Raises DataError where these are not vertices of the mesh.
    """

    mesh: trimesh.Trimesh
    landmarks: Mapping[str, int]
    regions: Mapping[str, np.ndarray]
    name: str = "the scan"

    def __post_init__(self) -> None:
        count = len(self.mesh.vertices)
        named = {f"region {name}": vertices for name, vertices in self.regions.items()}
        for what, vertices in {**named, "landmarks": np.array([*self.landmarks.values()], dtype=np.int64)}.items():
            if len(vertices) and not 0 <= vertices.min() <= vertices.max() < count:
                raise DataError(
                    f"{self.name}: {what}: expected vertices from 0 to {count - 1} of the scan, found {vertices.min()} to "
                    f"{vertices.max()}; they belong to another mesh"
                )
        for region in (HEAD, FACE):
            if len(self.regions.get(region, ())) < 3:
                raise DataError(f"{self.name}: region {region}: expected three vertices or more to align on, found fewer")


@dataclass(frozen=True)
class AlignedHead:
    """A reconstruction laid on its scan, and measured there.

    mesh: in the frame of the scan; transform: [4, 4], what carried it there; vertices: [N] those of the scan that are measured;
    distances: [N] from them to the nearest vertex of the mesh, mm.
    """

    reference: HeadReference
    mesh: trimesh.Trimesh
    transform: np.ndarray
    vertices: np.ndarray
    distances: np.ndarray

    @property
    def scale(self) -> float:
        """By what the reconstruction was multiplied; negative where it was also mirrored."""
        return float(np.cbrt(np.linalg.det(self.transform[:3, :3])))

    @cached_property
    def surface_distances(self) -> np.ndarray:
        """[N] from the measured vertices of the scan to the nearest point on the triangles of the mesh, mm."""
        return point_to_mesh(np.asarray(self.reference.mesh.vertices)[self.vertices], self.mesh)[0]

    @cached_property
    def distances_back(self) -> np.ndarray:
        """[M] from each vertex of the mesh to the nearest measured vertex of the scan, mm."""
        return _to_nearest(self.mesh.vertices, self.reference.mesh.vertices[self.vertices])

    def surface_distances_back(self) -> np.ndarray:
        """[K] from those vertices of the mesh whose nearest triangle of the scan has measured corners alone to that, mm."""
        scan = self.reference.mesh
        distance, face = point_to_mesh(np.asarray(self.mesh.vertices), scan)
        measured = np.zeros(len(scan.vertices), dtype=bool)
        measured[self.vertices] = True
        return distance[measured[np.asarray(scan.faces)[face]].all(axis=1)]


@dataclass(frozen=True)
class HeadErrors:
    """What the protocol says about a reconstruction. head, face: the alignments that its two figures are measured in."""

    head: AlignedHead
    face: AlignedHead

    @property
    def head_mm(self) -> float:
        return float(self.head.distances.mean())

    @property
    def face_mm(self) -> float:
        return float(self.face.distances.mean())

    def figures(self) -> dict[str, float]:
        """In mm: head_mm and face_mm; head_surface_mm and face_surface_mm, to the surface instead of its vertices;
        head_accuracy_mm, from the reconstruction's vertices to the scan's; head_surface_accuracy_mm and
        face_surface_accuracy_mm, from its vertices to the scan's surface, those of the face being the ones that are nearest to
        the face. NaN where a mean is over nothing. And head_scale, face_scale, see AlignedHead.scale."""
        figures = {"face_mm": self.face_mm, "head_mm": self.head_mm}
        for name, aligned in (("face", self.face), ("head", self.head)):
            back = aligned.surface_distances_back()
            figures |= {
                f"{name}_surface_mm": float(aligned.surface_distances.mean()),
                f"{name}_surface_accuracy_mm": float(back.mean()) if len(back) else float("nan"),
                f"{name}_scale": aligned.scale,
            }
        return {**figures, "head_accuracy_mm": float(self.head.distances_back.mean())}


def evaluate_head(
    mesh: trimesh.Trimesh, reference: HeadReference, landmarks: Mapping[str, Sequence[float]] | None = None
) -> HeadErrors:
    """Measure a reconstruction of a head, in mm, by the protocol of this module.

    landmarks: points [3] of it by name, for a first alignment; without them it has to lie near the scan. Raises what align_head
    raises.
    """
    return HeadErrors(align_head(mesh, reference, None, landmarks), align_head(mesh, reference, FACE, landmarks))


def align_head(
    mesh: trimesh.Trimesh,
    reference: HeadReference,
    region: str | None,
    landmarks: Mapping[str, Sequence[float]] | None = None,
) -> AlignedHead:
    """Lay a reconstruction on its scan by a region, and measure there; None measures everywhere, aligned on HEAD.

    Raises DataError for a mesh without triangles or with vertices that are not finite, for landmarks that are missing or lie in
    one place, and where ICP comes to nothing.
    """
    if len(mesh.faces) == 0:
        raise DataError("H3DS evaluation: the mesh has no triangles; expected a surface to measure")
    if not np.isfinite(mesh.vertices).all():
        raise DataError("H3DS evaluation: the mesh has vertices with NaN or infinite coordinates")
    scan = np.asarray(reference.mesh.vertices, dtype=np.float64)
    coarse = np.eye(4) if landmarks is None else _by_landmarks(landmarks, reference)
    placed = to_world(mesh, coarse)
    fine = _by_icp(scan[reference.regions[region or HEAD]], placed)
    aligned = to_world(placed, fine)
    vertices = np.arange(len(scan)) if region is None else np.asarray(reference.regions[region])
    return AlignedHead(reference, aligned, fine @ coarse, vertices, _to_nearest(scan[vertices], aligned.vertices))


def _by_landmarks(landmarks: Mapping[str, Sequence[float]], reference: HeadReference) -> np.ndarray:
    """[4, 4] that carries landmarks of a reconstruction onto those of its scan."""
    from trimesh.registration import procrustes

    names = list(reference.landmarks)
    if missing := [name for name in names if name not in landmarks]:
        raise DataError(
            f"H3DS evaluation: landmarks of the mesh: expected {', '.join(names)}; {', '.join(missing)} missing; mark them"
        )
    ours = np.array([landmarks[name] for name in names], dtype=np.float64)
    if len(np.unique(ours, axis=0)) < 3:
        raise DataError("H3DS evaluation: landmarks of the mesh: expected three or more different places; mark them anew")
    theirs = np.asarray(reference.mesh.vertices)[list(reference.landmarks.values())]
    return procrustes(ours, theirs, reflection=False)[0]


def _by_icp(region: np.ndarray, mesh: trimesh.Trimesh) -> np.ndarray:
    """[4, 4] that carries a mesh onto points [N, 3]: the inverse of what carries these onto its vertices."""
    from scipy.spatial import cKDTree
    from trimesh.registration import icp

    try:
        with np.errstate(divide="ignore", invalid="ignore"):
            onto_mesh, moved, _ = icp(region, mesh.vertices, max_iterations=ICP_ROUNDS, threshold=ICP_THRESHOLD)
            held = len(np.unique(cKDTree(mesh.vertices).query(moved)[1]))
            found = np.linalg.inv(onto_mesh)
    except (np.linalg.LinAlgError, ValueError):  # shrunk to one vertex: a scale of 0, and NaN from the next round on
        held = 1
    if held < 3:
        raise DataError(
            f"H3DS evaluation: no alignment: the whole region is nearest to {held} of the mesh's vertices; expected a mesh in "
            "the frame of the scan, in mm, or landmarks that carry it there (--landmarks FILE)"
        )
    return found


def landmark_points(
    landmarks: Mapping[str, int | Sequence[float]], marked: Callable[[], trimesh.Trimesh], where: str = "landmarks"
) -> dict[str, np.ndarray]:
    """Points [3] of landmarks that are vertices of a mesh, or points already.

    marked: gives the mesh, and is called where there are vertices; where: what to call the landmarks in an error. Raises
    DataError where a vertex is not of the mesh.
    """
    mesh = marked() if any(isinstance(mark, int) for mark in landmarks.values()) else None
    points = {}
    for name, mark in landmarks.items():
        if isinstance(mark, int) and not 0 <= mark < len(mesh.vertices):
            raise DataError(
                f"{where}: {name}: vertex {mark}, but the mesh has {len(mesh.vertices)}; expected landmarks of this mesh, or "
                "lines NAME X Y Z, which hold for any"
            )
        points[name] = np.asarray(mesh.vertices[mark] if isinstance(mark, int) else mark, dtype=np.float64)
    return points


def _to_nearest(source: np.ndarray, target: np.ndarray) -> np.ndarray:
    """[N] distances from points [N, 3] to the nearest of [M, 3]."""
    from scipy.spatial import cKDTree

    return cKDTree(target).query(source, workers=-1)[0]
