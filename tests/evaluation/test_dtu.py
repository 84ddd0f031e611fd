"""The DTU protocol against closed forms, and against a brute-force version of it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import trimesh
from scipy.io import savemat
from scipy.spatial.distance import cdist
from support.dtu_reference import write_reference

from nsr.evaluation.dtu import (
    DtuReference,
    evaluate_dtu,
    evaluate_points,
    is_observed,
    load_dtu_reference,
    sample_triangles,
    scan_number,
    thin_out,
)
from nsr.geometry.meshes import new_mesh
from nsr.utils.errors import DataError

BOX = np.array([[-30.0, -20.0, 0.0], [30.0, 20.0, 40.0]])
EVERYWHERE = np.array([[-1e3] * 3, [1e3] * 3])


def lattice(x0: float, x1: float, y0: float, y1: float, z: float, spacing: float = 0.5) -> np.ndarray:
    x, y = np.meshgrid(np.arange(x0, x1, spacing), np.arange(y0, y1, spacing), indexing="ij")
    return np.stack([x.ravel(), y.ravel(), np.full(x.size, z)], axis=-1)


def square(x0: float, x1: float, y0: float, y1: float, z: float) -> trimesh.Trimesh:
    corners = np.array([[x0, y0, z], [x1, y0, z], [x1, y1, z], [x0, y1, z]])
    return new_mesh(corners, np.array([[0, 1, 2], [0, 2, 3]]))


def reference(points: np.ndarray, **changes) -> DtuReference:
    observed = np.ones((61, 41, 41), dtype=bool)
    return replace(DtuReference(points, observed, BOX, 1.0, np.array([0, 0, 1.0, -1.0])), **changes)


def test_a_plane_beside_the_scan_is_as_far_as_it_is():
    """Above the table at z = 1; what of the scan lies below it, or beyond the last block of 60 mm, must not count."""
    scan = np.concatenate([lattice(-10, 10, -10, 10, 5.0), lattice(-10, 10, -10, 10, 0.5), lattice(95, 99, 0, 5, 5.0)])
    figures = evaluate_dtu(square(-10, 9.5, -10, 9.5, 8.0), reference(scan))
    # Between the points of the scan lie up to half a millimetre; the mesh has points every 0.2.
    assert figures["dtu_accuracy_mm"] == pytest.approx(3.0, abs=0.02)
    assert figures["dtu_completeness_mm"] == pytest.approx(3.0, abs=0.005)
    assert figures["dtu_overall_mm"] == pytest.approx((figures["dtu_accuracy_mm"] + figures["dtu_completeness_mm"]) / 2)
    assert figures["dtu_completeness_median_mm"] == pytest.approx(3.0, abs=0.005)
    assert figures["dtu_accuracy_share"] == figures["dtu_completeness_share"] == 1


def test_distances_of_twenty_millimetres_are_left_out_not_clipped():
    scan = np.concatenate([lattice(-10, 0, -5, 5, 10.0), lattice(-10, 0, -5, 5, 38.0)])
    figures = evaluate_dtu(square(-10, -0.5, -5, 4.5, 12.0), reference(scan))
    assert figures["dtu_completeness_mm"] == pytest.approx(2.0, abs=0.005)
    assert figures["dtu_completeness_share"] == 0.5
    exactly = np.array([[0, 0, 5.0]])
    assert np.isnan(evaluate_points(exactly + np.array([0, 0, 20.0]), reference(exactly))["dtu_accuracy_mm"])
    assert evaluate_points(exactly + np.array([0, 0, 19.9]), reference(exactly))["dtu_accuracy_mm"] == pytest.approx(19.9)


def test_only_observed_voxels_count_for_accuracy():
    observed = np.zeros((61, 41, 41), dtype=bool)
    observed[30:] = True  # voxels are centred at whole numbers: from x = -0.5 on
    scan = lattice(-20, 20, -10, 10, 5.0)
    points = np.array([[-0.51, 0, 6], [-0.5, 0, 7], [10, 0, 8], [30.4, 0, 5], [30.6, 0, 5], [0, 0, -0.6]])
    assert is_observed(points, reference(scan, observed=observed)).tolist() == [False, True, True, True, False, False]
    figures = evaluate_points(points[:3], reference(scan, observed=observed))
    assert figures["dtu_accuracy_mm"] == pytest.approx(2.5)
    # All points serve as what the scan is near to, wherever the scanner saw nothing.
    alone = evaluate_points(points[:1], reference(np.array([[-0.5, 0, 5.0]]), observed=observed))
    assert alone["dtu_completeness_mm"] == pytest.approx(1.0, abs=1e-3)
    assert np.isnan(alone["dtu_accuracy_mm"])


def test_equal_to_brute_force_on_scattered_points():
    rng = np.random.default_rng(3)
    scan, points = rng.uniform(-40, 40, (700, 3)), rng.uniform(-40, 40, (800, 3))
    observed = rng.random((31, 21, 21)) < 0.5
    plane = np.array([0.3, -0.2, 0.9, -4.0])
    truth = DtuReference(scan, observed, BOX, 2.0, plane)
    thinned = thin_out(points, 4.0, np.random.default_rng(0))

    kept: list[np.ndarray] = []
    for point in points[np.random.default_rng(0).permutation(len(points))]:  # one by one
        if not kept or np.linalg.norm(np.array(kept) - point, axis=1).min() >= 4.0:
            kept.append(point)
    assert np.array_equal(thinned, np.array(kept))

    far = cdist(thinned, scan)
    counts = []
    for point in thinned:
        cell = [int(np.floor((c - low) / 2.0 + 0.5)) for c, low in zip(point, BOX[0], strict=True)]
        inside = all(0 <= c < n for c, n in zip(cell, observed.shape, strict=True))
        counts.append(inside and observed[tuple(cell)])
    to_scan = far.min(axis=1)[np.array(counts)]
    # MaxDistCP, called with 60 mm, goes through blocks of that size, as many as begin within the box or at its end.
    in_box = np.ones(len(scan), dtype=bool)
    for axis in range(3):
        blocks = [BOX[0, axis] + 60 * k for k in range(100) if BOX[0, axis] + 60 * k <= BOX[1, axis]]
        in_box &= [any(low <= c < low + 60 for low in blocks) for c in scan[:, axis]]
    assert 0 < (in_box & (scan >= BOX[1]).any(axis=1)).sum() < (~in_box).sum()
    to_points = far.min(axis=0)[in_box & (np.column_stack([scan, np.ones(len(scan))]) @ plane > 0)]
    figures = evaluate_points(thinned, truth)
    for name, distance in (("accuracy", to_scan), ("completeness", to_points)):
        near = distance[distance < 20]
        assert len(near) > 20
        assert figures[f"dtu_{name}_mm"] == pytest.approx(near.mean())
        assert figures[f"dtu_{name}_median_mm"] == pytest.approx(np.median(near))
        assert figures[f"dtu_{name}_share"] == pytest.approx(len(near) / len(distance))


def test_triangles_are_covered_and_thinned_to_the_spacing():
    corners = np.array([[0, 0, 0], [3.0, 0, 0], [0, 1.0, 0]])
    mesh = new_mesh(np.concatenate([corners, corners + np.array([100.0, 0, 0])]), np.arange(6).reshape(2, 3))
    points = sample_triangles(mesh, 0.2, np.array([[-1.0] * 3, [4.0] * 3]))
    assert points[:, 0].max() == 3  # with its vertices, without what lies outside the box
    rng = np.random.default_rng(0)
    u, v = rng.random((2, 4000))
    inside = np.stack([3 * u, v, np.zeros(4000)], axis=-1)[u + v < 1]
    assert cdist(inside, points).min(axis=1).max() < 0.2
    assert (points[:, 0] / 3 + points[:, 1] <= 1 + 1e-12).all()
    thinned = thin_out(points, 0.2, rng)
    apart = cdist(thinned, thinned) + 9 * np.eye(len(thinned))
    assert apart.min() >= 0.2
    assert cdist(points, thinned).min(axis=1).max() < 0.2  # nothing more could have stayed
    assert len(thin_out(np.empty((0, 3)), 0.2, rng)) == 0


def test_an_empty_mesh_is_refused_and_one_far_away_has_no_figures():
    scan = lattice(-5, 5, -5, 5, 5.0)
    with pytest.raises(DataError, match="no triangles"):
        sample_triangles(new_mesh(np.zeros((0, 3)), np.zeros((0, 3), int)), 0.2, EVERYWHERE)
    far = evaluate_dtu(square(500, 501, 0, 1, 5.0), reference(scan))
    assert np.isnan(far["dtu_overall_mm"])
    assert far["dtu_completeness_share"] == 0


def test_the_data_sets_files_are_read(tmp_path):
    truth = reference(lattice(-10, 10, -10, 10, 5.0))
    write_reference(tmp_path, 24, truth)
    read = load_dtu_reference(tmp_path, 24)
    assert np.allclose(read.points, truth.points)
    assert np.array_equal(read.observed, truth.observed)
    assert read.observed.dtype == bool
    assert np.array_equal(read.box, BOX)
    assert (read.voxel, read.plane.tolist()) == (1.0, truth.plane.tolist())


def test_missing_and_damaged_files_are_named(tmp_path):
    with pytest.raises(
        DataError, match=r"no .*stl024_total\.ply, no .*ObsMask24_10\.mat, no .*Plane24\.mat; expected the data set's folders"
    ):
        load_dtu_reference(tmp_path, 24)
    write_reference(tmp_path, 24, reference(lattice(0, 5, 0, 5, 5.0)))
    plane = tmp_path / "ObsMask" / "Plane24.mat"
    savemat(plane, {"Q": np.zeros(4)})
    with pytest.raises(DataError, match=r"Plane24\.mat: expected P, found Q"):
        load_dtu_reference(tmp_path, 24)
    plane.write_bytes(b"no Matlab file")
    with pytest.raises(DataError, match="not a readable Matlab file"):
        load_dtu_reference(tmp_path, 24)
    savemat(plane, {"P": np.zeros(3)})
    with pytest.raises(DataError, match="the four numbers of a plane"):
        load_dtu_reference(tmp_path, 24)
    savemat(plane, {"P": np.zeros(4)})
    (tmp_path / "Points" / "stl" / "stl024_total.ply").write_bytes(b"ply\nformat ascii 1.0\nelement vertex 0\nend_header\n")
    with pytest.raises(DataError, match=r"stl024_total\.ply"):
        load_dtu_reference(tmp_path, 24)


def test_the_number_of_a_scan():
    assert [scan_number(name) for name in ("scan24", "dtu_scan024_half", "Scan_106")] == [24, 24, 106]
    with pytest.raises(DataError, match="house: expected a scene whose name holds its number"):
        scan_number("house")
