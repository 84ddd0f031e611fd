"""The mesh metrics against closed forms, and what "seen by two views" means."""

from __future__ import annotations

import numpy as np
import pytest
import trimesh
from support.facing_cameras import cameras_at

from nsr.evaluation.chamfer import evaluate_mesh, object_radius, point_to_mesh, sample_surface
from nsr.geometry.meshes import new_mesh
from nsr.utils.errors import DataError

SAMPLES = 20_000


def sphere(radius: float, center=(0, 0, 0)) -> trimesh.Trimesh:
    mesh = trimesh.creation.icosphere(5, radius=radius)
    mesh.apply_translation(center)
    return mesh


def test_concentric_spheres_differ_by_their_radii():
    figures = evaluate_mesh(sphere(1.03), sphere(1.0), None, samples=SAMPLES)
    for key in ("chamfer", "accuracy", "completeness", "median"):
        assert figures[f"{key}_percent_all"] == pytest.approx(3.0, abs=2e-3)
    assert figures["chamfer_world_all"] == pytest.approx(0.03, abs=2e-5)
    assert figures["f_score_1percent_all"] == 0
    assert figures["normal_consistency_all"] == pytest.approx(1, abs=1e-4)
    assert "chamfer_percent" not in figures
    assert evaluate_mesh(sphere(1.009), sphere(1.0), None, samples=SAMPLES)["f_score_1percent_all"] == 1


def test_percent_do_not_depend_on_units_or_place():
    moved = evaluate_mesh(sphere(123.6, (500, -900, 70)), sphere(120, (500, -900, 70)), None, samples=SAMPLES)
    assert moved["chamfer_percent_all"] == pytest.approx(3.0, abs=2e-3)
    assert moved["chamfer_world_all"] == pytest.approx(3.6, abs=3e-3)
    assert moved["object_radius_world"] == pytest.approx(120)


def test_a_mesh_against_itself_is_zero():
    figures = evaluate_mesh(sphere(1), sphere(1), cameras_at((0, 0, 4), (1, 0, 4)), samples=SAMPLES)
    assert figures["chamfer_percent"] < 1e-6
    assert figures["chamfer_percent_all"] < 1e-6
    assert figures["f_score_1percent"] == 1
    assert figures["normal_consistency"] == pytest.approx(1, abs=1e-9)


def test_accuracy_and_completeness_are_told_apart():
    """A prediction that lacks one of two balls is accurate and incomplete; the other way round with one too many."""
    one, two = sphere(1), trimesh.util.concatenate([sphere(1), sphere(1, (10, 0, 0))])
    lacking = evaluate_mesh(one, two, None, samples=SAMPLES)
    # The mean distance from a ball of radius 1 at distance 10 to the other: E|p| - 1 = (10 + 1 / 30) - 1.
    assert lacking["accuracy_percent_all"] == pytest.approx(0, abs=1e-6)
    radius = object_radius(two)
    assert lacking["completeness_percent_all"] == pytest.approx(0.5 * (9 + 1 / 30) * 100 / radius, rel=0.02)
    assert lacking["f_score_1percent_all"] == pytest.approx(2 * 0.5 / 1.5, abs=0.01)
    extra = evaluate_mesh(two, one, None, samples=SAMPLES)
    assert extra["completeness_percent_all"] == pytest.approx(0, abs=1e-6)
    assert extra["accuracy_percent_all"] > 100


def test_normal_consistency_of_a_corrugated_plate():
    """A zigzag of 45 degree slopes against a flat plate: |cos| = sqrt(1/2) from the zigzag's side."""
    x = np.linspace(-1, 1, 2001)
    z = 1e-3 * (np.arange(2001) % 2)
    strip = np.concatenate([np.stack([x, np.full_like(x, y), z], axis=-1) for y in (-1, 1)])
    a = np.arange(2000)
    zigzag = new_mesh(strip, np.concatenate([np.stack([a, a + 1, a + 2001]), np.stack([a + 1, a + 2002, a + 2001])], axis=1).T)
    plate = new_mesh(np.array([[-1.0, -1, 0], [1, -1, 0], [1, 1, 0], [-1, 1, 0]]), np.array([[0, 1, 2], [0, 2, 3]]))
    figures = evaluate_mesh(zigzag, plate, None, samples=SAMPLES)
    assert figures["normal_consistency_all"] == pytest.approx(0.5**0.5, abs=1e-3)


def test_object_radius_is_about_the_centre_of_the_box():
    mesh = new_mesh(np.array([[0.0, 0, 0], [10, 0, 0], [1, 4, 0]]), np.array([[0, 1, 2]]))
    assert object_radius(mesh) == pytest.approx(np.hypot(5, 2))


def test_samples_are_uniform_by_area():
    box = trimesh.creation.box((1, 2, 3))
    points, face = sample_surface(box, 60_000, np.random.default_rng(0))
    share = np.bincount(face, minlength=12) / 60_000
    assert np.allclose(share, box.area_faces / box.area, atol=0.006)
    assert np.allclose(points.mean(axis=0), 0, atol=0.02)
    distance, nearest = point_to_mesh(points, box)
    assert distance.max() < 1e-12
    assert np.allclose(np.abs((box.face_normals[nearest] * box.face_normals[face]).sum(-1)), 1)
    again, _ = sample_surface(box, 60_000, np.random.default_rng(0))
    assert np.array_equal(points, again)


def test_distance_is_to_the_triangle_not_to_its_vertices():
    triangle = new_mesh(np.array([[0.0, 0, 0], [10, 0, 0], [0, 10, 0]]), np.array([[0, 1, 2]]))
    points = np.array([[3.0, 3, 2], [5, -4, 3], [-3, -4, 0], [10, 10, 0]])
    distance, _ = point_to_mesh(points, triangle)
    assert np.allclose(distance, [2, 5, 5, np.sqrt(50)])


class TestSeen:
    def test_only_what_two_cameras_see_counts(self):
        """Half of the prediction is wrong, on the side that no camera sees."""
        vertices = np.array(sphere(1).vertices)
        vertices[vertices[:, 2] < -0.05] *= 0.8
        predicted = new_mesh(vertices, sphere(1).faces)
        figures = evaluate_mesh(predicted, sphere(1), cameras_at((0, 0, 4), (0.4, 0, 4)), samples=SAMPLES)
        assert figures["chamfer_percent"] < 0.01
        assert figures["chamfer_percent_all"] > 5
        assert figures["seen_percent"] == pytest.approx(37, abs=3)  # of a cap cos > 1/4: 37.5 %, for one view
        once = evaluate_mesh(predicted, sphere(1), cameras_at((0, 0, 4)), samples=2000)
        assert np.isnan(once["chamfer_percent"])
        assert once["seen_percent"] == 0


def test_bad_meshes():
    empty = new_mesh(np.zeros((0, 3)), np.zeros((0, 3), dtype=int))
    with pytest.raises(DataError, match="predicted mesh has no triangles"):
        evaluate_mesh(empty, sphere(1), None)
    flat = new_mesh(np.zeros((3, 3)), np.array([[0, 1, 2]]))
    with pytest.raises(DataError, match="ground-truth mesh has no area"):
        evaluate_mesh(sphere(1), flat, None)
    broken = sphere(1)
    broken.vertices[3, 1] = np.inf
    with pytest.raises(DataError, match="NaN"):
        evaluate_mesh(broken, sphere(1), None)
