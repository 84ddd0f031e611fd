"""How far a mesh is from the true one: accuracy, completeness, symmetric Chamfer distance, F-score, normal consistency.

The protocol, as `evaluate_mesh` runs it:

1. No alignment: both meshes are compared in the world frame as they are.
2. 100 000 points are drawn on each mesh, uniformly by area, from a seed.
3. Distances are exact, from a point to the nearest triangle of the other mesh (not to its samples or vertices).
   Accuracy is measured from the prediction to the truth, completeness from the truth to the prediction.
4. Percent are of the object radius: the largest distance of a ground-truth vertex from the centre of the ground truth's
   axis-aligned bounding box.
5. Every figure is given twice: over the samples seen by at least two of the cameras, and, with the suffix `_all`, over
   all of them. A sample is seen by a camera when it projects into the image, its triangle faces the camera, and no part
   of its own mesh lies in between. The other mesh, to which distances go, is always whole.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from nsr.geometry.visibility import Viewpoints, count_views, face_areas_and_normals
from nsr.types import Cameras
from nsr.utils.errors import DataError

if TYPE_CHECKING:
    import trimesh

MIN_VIEWS = 2
F_SCORE_THRESHOLD_PERCENT = 1.0


def evaluate_mesh(
    predicted: trimesh.Trimesh,
    ground_truth: trimesh.Trimesh,
    cameras_world: Cameras | None,
    *,
    samples: int = 100_000,
    seed: int = 0,
) -> dict[str, float]:
    """Compare a mesh with the true one by the protocol of this module. Meshes and cameras are in the world frame.

    Args:
        cameras_world: the cameras that were used for reconstruction; None leaves out the figures over the seen surface.
        samples: points drawn on each mesh.

    Returns:
        Over the seen surface, and with suffix `_all` over everything (NaN where no sample is seen by two cameras):
        accuracy_percent, completeness_percent: mean distance from the prediction to the truth, and back.
        chamfer_percent: the mean of these two; chamfer_world: the same in world units.
        median_percent: the median over the distances of both directions together.
        f_score_1percent: harmonic mean, in [0, 1], of the shares of predicted and of true samples within 1 % of the
            other mesh (Knapitsch et al. 2017).
        normal_consistency: |cos| between the normals of a sample's triangle and of the nearest triangle of the other
            mesh, averaged over the samples of each direction, then over both.
        And once: object_radius_world, seen_percent (share of the true surface that two cameras see).

    Raises:
        DataError: a mesh is empty, has no area, or has a vertex that is not finite.
    """
    for what, mesh in (("predicted", predicted), ("ground-truth", ground_truth)):
        _check_mesh(what, mesh)
    radius = object_radius(ground_truth)
    rng = np.random.default_rng(seed)
    drawn = {
        "accuracy": sample_surface(predicted, samples, rng),
        "completeness": sample_surface(ground_truth, samples, rng),
    }
    measured = {
        "accuracy": _distances(predicted, *drawn["accuracy"], ground_truth),
        "completeness": _distances(ground_truth, *drawn["completeness"], predicted),
    }
    everything = {direction: np.ones(samples, dtype=bool) for direction in measured}
    figures = {f"{key}_all": value for key, value in _figures(measured, everything, radius).items()}
    figures["object_radius_world"] = radius
    if cameras_world is not None:
        seen = {
            direction: _seen(mesh, *drawn[direction], cameras_world)
            for direction, mesh in (("accuracy", predicted), ("completeness", ground_truth))
        }
        figures |= _figures(measured, seen, radius)
        figures["seen_percent"] = 100.0 * float(seen["completeness"].mean())
    return figures


def object_radius(mesh: trimesh.Trimesh) -> float:
    """The largest distance of a vertex from the centre of the mesh's axis-aligned bounding box."""
    vertices = np.asarray(mesh.vertices, dtype=np.float64)
    center = (vertices.min(axis=0) + vertices.max(axis=0)) / 2
    return float(np.linalg.norm(vertices - center, axis=-1).max())


def sample_surface(mesh: trimesh.Trimesh, count: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Points [count, 3] uniform by area on the mesh, and the face [count] each lies on."""
    corners = np.asarray(mesh.vertices, dtype=np.float64)[np.asarray(mesh.faces)]
    area = np.cumsum(np.linalg.norm(np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]), axis=-1))
    face = np.minimum(np.searchsorted(area, rng.uniform(0, area[-1], count), side="right"), len(area) - 1)
    a, b, c = corners[face].transpose(1, 0, 2)
    # Uniform in a triangle (Osada et al. 2002, section 4.1).
    root, along = np.sqrt(rng.uniform(size=(count, 1))), rng.uniform(size=(count, 1))
    return (1 - root) * a + root * (1 - along) * b + root * along * c, face


def point_to_mesh(points: np.ndarray, mesh: trimesh.Trimesh) -> tuple[np.ndarray, np.ndarray]:
    """Exact distance [N] of points [N, 3] to the nearest triangle of a mesh, and that triangle's index [N]."""
    import igl

    vertices = np.ascontiguousarray(mesh.vertices, dtype=np.float64)
    faces = np.ascontiguousarray(mesh.faces, dtype=np.int64)
    # Around the origin of the object no digits are spent on where it lies in the world.
    center = vertices.mean(axis=0)
    squared, face, _ = igl.point_mesh_squared_distance(np.ascontiguousarray(points - center), vertices - center, faces)
    return np.sqrt(np.maximum(squared, 0)), np.asarray(face, dtype=np.int64)


def _seen(mesh: trimesh.Trimesh, points: np.ndarray, face: np.ndarray, cameras: Cameras) -> np.ndarray:
    """[N] bool: whether MIN_VIEWS of the cameras see each sample of the mesh's surface."""
    from nsr.geometry.raycast import Raycaster

    normals = face_areas_and_normals(mesh)[1][face]
    return count_views(Viewpoints(cameras), Raycaster(mesh), points, normals, enough=MIN_VIEWS) >= MIN_VIEWS


def _distances(
    source: trimesh.Trimesh, points: np.ndarray, face: np.ndarray, target: trimesh.Trimesh
) -> tuple[np.ndarray, np.ndarray]:
    """Distance [N] of the samples of source to target, and |cos| [N] of the normals at both ends."""
    distance, nearest = point_to_mesh(points, target)
    cosine = np.abs((face_areas_and_normals(source)[1][face] * face_areas_and_normals(target)[1][nearest]).sum(axis=-1))
    return distance, cosine


def _figures(
    measured: dict[str, tuple[np.ndarray, np.ndarray]], chosen: dict[str, np.ndarray], radius: float
) -> dict[str, float]:
    """The figures over the chosen samples of each direction."""
    keys = ("accuracy", "completeness")
    distance = [measured[key][0][chosen[key]] for key in keys]
    cosine = [measured[key][1][chosen[key]] for key in keys]
    accuracy, completeness = (_mean(d) * 100 / radius for d in distance)
    within = [_mean(d <= F_SCORE_THRESHOLD_PERCENT / 100 * radius) for d in distance]
    both = np.concatenate(distance)
    return {
        "chamfer_percent": (accuracy + completeness) / 2,
        "chamfer_world": (accuracy + completeness) / 2 * radius / 100,
        "accuracy_percent": accuracy,
        "completeness_percent": completeness,
        "median_percent": float(np.median(both)) * 100 / radius if len(both) else float("nan"),
        "f_score_1percent": 0.0 if sum(within) == 0 else 2 * within[0] * within[1] / sum(within),
        "normal_consistency": (_mean(cosine[0]) + _mean(cosine[1])) / 2,
    }


def _mean(values: np.ndarray) -> float:
    return float(values.mean()) if len(values) else float("nan")


def _check_mesh(what: str, mesh: trimesh.Trimesh) -> None:
    if len(mesh.faces) == 0:
        raise DataError(f"evaluate_mesh: the {what} mesh has no triangles; expected a surface to measure")
    if not np.isfinite(mesh.vertices).all():
        raise DataError(f"evaluate_mesh: the {what} mesh has vertices with NaN or infinite coordinates")
    if not mesh.area > 0:
        raise DataError(f"evaluate_mesh: the {what} mesh has no area: all its triangles are degenerate")
