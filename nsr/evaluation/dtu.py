"""The evaluation of the DTU data set (Jensen et al., CVPR 2014; Aanæs et al., IJCV 2016): millimetres against its scans.

The protocol, as the data set's own Matlab programs run it and `evaluate_dtu` does:

1. The reconstruction is a set of points: those of a surface lie 0.2 mm apart or less on all its triangles. They are visited
   in random order, and of any two that are closer than 0.2 mm the later one goes.
2. Accuracy is the mean distance from these points to the nearest point of the structured-light scan. Only points whose voxel of
   the observability mask (ObsMask) is set count: elsewhere the scanner saw nothing.
3. Completeness is the mean distance from the points of the scan to the nearest point of the reconstruction. Only points above
   the table (Plane) count, in the blocks of 60 mm, counted from the lower corner of the mask's bounding box, that begin within
   the box: the last of them reach beyond it.
4. Distances of 20 mm or more are left out of both means, not clipped. Overall is the mean of the two.

No alignment, and no cutting of the mesh by the photographs' masks, which papers on neural surfaces add: trim it before
(nsr mesh --unseen trim) if that is what you compare with. All is in the world frame of the data set, in millimetres.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from nsr.utils.errors import DataError, is_transient

if TYPE_CHECKING:
    import trimesh

SPACING = 0.2  # mm between the points of a reconstruction
CAP = 20.0  # mm from which on a distance is left out
BLOCK = 60.0  # mm along the side of the blocks that points are gone through in, which say how far beyond the box they count
_POINTS_AT_A_TIME = 2**22


@dataclass(frozen=True)
class DtuReference:
    """What the data set says about one scan, in mm.

    points: [N, 3] of the structured-light scan; observed: [X, Y, Z] bool, voxels of side `voxel` that the scanner saw, the
    first of which is centred at box[0]; box: [2, 3] corners of their bounding box; plane: [4] of the table, p . (x, 1) > 0
    above it.
    """

    points: np.ndarray
    observed: np.ndarray
    box: np.ndarray
    voxel: float
    plane: np.ndarray


def scan_number(name: str) -> int:
    """The number of the scan in a scene's name, such as scan24 or dtu_scan24_half. Raises DataError where there is none."""
    found = re.search(r"scan_?0*(\d+)", name, re.IGNORECASE)
    if found is None:
        raise DataError(f"DTU evaluation: {name}: expected a scene whose name holds its number, such as scan24")
    return int(found[1])


def load_dtu_reference(folder: str | Path, scan: int) -> DtuReference:
    """The ground truth of a scan, from the folders Points/ and ObsMask/ of the data set (SampleSet/MVS Data and Points).

    Raises DataError when a file is missing or does not hold what it should.
    """
    folder = Path(folder)
    files = {
        "scan": folder / "Points" / "stl" / f"stl{scan:03}_total.ply",
        "mask": folder / "ObsMask" / f"ObsMask{scan}_10.mat",
        "plane": folder / "ObsMask" / f"Plane{scan}.mat",
    }
    missing = [str(path) for path in files.values() if not path.is_file()]
    if missing:
        raise DataError(
            f"DTU evaluation of scan {scan}: no {', no '.join(missing)}; expected the data set's folders Points and ObsMask "
            "(Points.zip and SampleSet.zip of its page) below the folder given"
        )
    mask = _read_mat(files["mask"], "ObsMask", "BB", "Res")
    observed, box, voxel = mask["ObsMask"] != 0, mask["BB"].astype(np.float64), float(np.squeeze(mask["Res"]))
    plane = _read_mat(files["plane"], "P")["P"].astype(np.float64).ravel()
    if observed.ndim != 3 or box.shape != (2, 3) or not voxel > 0 or not (box[1] > box[0]).all():
        raise DataError(
            f"{files['mask']}: expected a volume ObsMask, corners BB [2, 3] and a voxel size Res; got shapes "
            f"{observed.shape}, {box.shape} and Res = {voxel:g}; fetch the file again"
        )
    if plane.shape != (4,) or not np.isfinite(plane).all():
        raise DataError(
            f"{files['plane']}: expected the four numbers of a plane, got shape {plane.shape}; fetch the file again"
        )
    return DtuReference(_read_points(files["scan"]), observed, box, voxel, plane)


def evaluate_dtu(mesh: trimesh.Trimesh, reference: DtuReference, *, seed: int = 0) -> dict[str, float]:
    """Compare a mesh in the data set's world frame (mm) with its scan by the protocol of this module.

    seed: of the order in which points are thinned out. Returns dtu_accuracy_mm, dtu_completeness_mm, dtu_overall_mm, the
    medians dtu_accuracy_median_mm and dtu_completeness_median_mm, and dtu_accuracy_share, dtu_completeness_share: the shares of
    the points that count which are nearer than the cap. A mean over no points is NaN. Raises DataError for an empty mesh.
    """
    box = _blocks(reference.box) + np.array([[-BLOCK], [BLOCK]])  # as far as blocks look for neighbours
    points = sample_triangles(mesh, SPACING, box)
    points = points[((points >= box[0]) & (points < box[1])).all(axis=1)]
    return evaluate_points(thin_out(points, SPACING, np.random.default_rng(seed)), reference)


def evaluate_points(points: np.ndarray, reference: DtuReference) -> dict[str, float]:
    """The same for points [N, 3] that have been thinned out already."""
    from scipy.spatial import cKDTree

    counts = points[is_observed(points, reference)]
    scan = reference.points
    low, high = _blocks(reference.box)
    inside = ((scan >= low) & (scan < high)).all(axis=1)
    above = scan @ reference.plane[:3] + reference.plane[3] > 0
    directions = {"accuracy": (counts, scan), "completeness": (scan[inside & above], points)}
    figures = {}
    for name, (source, target) in directions.items():
        distance, _ = cKDTree(target).query(source, distance_upper_bound=CAP, workers=-1)  # infinite from the cap on
        near = distance[distance < CAP]
        figures[f"dtu_{name}_mm"] = float(near.mean()) if len(near) else float("nan")
        figures[f"dtu_{name}_median_mm"] = float(np.median(near)) if len(near) else float("nan")
        figures[f"dtu_{name}_share"] = len(near) / len(source) if len(source) else float("nan")
    return {"dtu_overall_mm": (figures["dtu_accuracy_mm"] + figures["dtu_completeness_mm"]) / 2, **figures}


def _blocks(box: np.ndarray) -> np.ndarray:
    """[2, 3] corners of all blocks that begin within a box [2, 3], from its lower corner on."""
    low, high = box
    return np.stack([low, low + (np.floor((high - low) / BLOCK) + 1) * BLOCK])


def is_observed(points: np.ndarray, reference: DtuReference) -> np.ndarray:
    """[N] bool: whether points [N, 3] lie in voxels that the scanner saw."""
    # Matlab's round: halves away from zero, which for the points that have a voxel is up.
    voxel = np.floor((points - reference.box[0]) / reference.voxel + 0.5).astype(np.int64)
    exists = ((voxel >= 0) & (voxel < reference.observed.shape)).all(axis=1)
    observed = np.zeros(len(points), dtype=bool)
    observed[exists] = reference.observed[tuple(voxel[exists].T)]
    return observed


def sample_triangles(mesh: trimesh.Trimesh, spacing: float, box: np.ndarray) -> np.ndarray:
    """Points [N, 3] on all triangles that reach into a box [2, 3]: the vertices, and points no further than `spacing` apart.

    A triangle is cut into n^2 equal ones, n = its longest edge over the spacing, rounded up; their centres are the points.
    """
    corners = np.asarray(mesh.vertices, dtype=np.float64)[np.asarray(mesh.faces)]  # [M, 3, 3]
    if len(corners) == 0:
        raise DataError("DTU evaluation: the mesh has no triangles; expected a surface to measure")
    corners = corners[(corners.max(axis=1) >= box[0]).all(axis=1) & (corners.min(axis=1) < box[1]).all(axis=1)]
    longest = np.linalg.norm(corners - np.roll(corners, 1, axis=1), axis=-1).max(axis=1)
    cuts = np.maximum(np.ceil(longest / spacing), 1).astype(np.int64)
    parts = [np.unique(corners.reshape(-1, 3), axis=0)]
    for n in np.unique(cuts):
        weights = _centre_weights(int(n))
        chosen = corners[cuts == n]
        for some in np.array_split(chosen, -(-len(chosen) * len(weights) // _POINTS_AT_A_TIME)):
            parts.append(np.einsum("kc,mcd->mkd", weights, some).reshape(-1, 3))
    return np.concatenate(parts)


def _centre_weights(n: int) -> np.ndarray:
    """Barycentric coordinates [n^2, 3] of the centres of the n^2 equal triangles that a triangle is cut into."""
    i, j = (axis.ravel() for axis in np.meshgrid(np.arange(n), np.arange(n), indexing="ij"))
    upright = np.stack([i, j], axis=-1)[i + j < n] + 1 / 3
    upturned = np.stack([i, j], axis=-1)[i + j < n - 1] + 2 / 3
    two = np.concatenate([upright, upturned]) / n
    return np.column_stack([two, 1 - two.sum(axis=1)])


def thin_out(points: np.ndarray, distance: float, rng: np.random.Generator) -> np.ndarray:
    """Some of points [N, 3], none closer to another than `distance`: visited in random order, a point that is closer to one
    that was kept goes.

    Points that come before all their neighbours are kept together, and their neighbours go; what is left has a round of its
    own. That keeps the same points as visiting them one by one.
    """
    from scipy.spatial import cKDTree

    points = points[rng.permutation(len(points))]
    kept, open_ = np.zeros(len(points), dtype=bool), np.ones(len(points), dtype=bool)
    pairs = np.empty((0, 2), dtype=np.int64)
    if len(points):
        pairs = cKDTree(points).query_pairs(np.nextafter(distance, 0), output_type="ndarray")
    first, second = pairs.min(axis=1), pairs.max(axis=1)
    while open_.any():
        chosen = open_.copy()
        chosen[second] = False
        kept |= chosen
        open_ &= ~chosen
        open_[second[chosen[first]]] = False
        left = open_[first] & open_[second]
        first, second = first[left], second[left]
    return points[kept]


def _read_mat(path: Path, *names: str) -> dict[str, np.ndarray]:
    from scipy.io import loadmat

    try:
        content = loadmat(path)
    except Exception as error:  # scipy raises whatever a damaged file leads it to
        if is_transient(error):
            raise
        raise DataError(f"{path}: not a readable Matlab file ({error}); fetch it again") from error
    missing = [name for name in names if name not in content]
    if missing:
        found = ", ".join(name for name in content if not name.startswith("__")) or "nothing"
        raise DataError(f"{path}: expected {', '.join(names)}, found {found}; is it the data set's own?")
    return {name: np.asarray(content[name]) for name in names}


def _read_points(path: Path) -> np.ndarray:
    import trimesh

    try:
        points = np.asarray(trimesh.load(path, process=False).vertices, dtype=np.float64)
    except Exception as error:  # as above
        if is_transient(error):
            raise
        raise DataError(f"{path}: not a readable point cloud ({error}); fetch it again") from error
    if len(points) == 0 or not np.isfinite(points).all():
        raise DataError(f"{path}: expected points with finite coordinates, got {len(points)}; fetch the file again")
    return points
