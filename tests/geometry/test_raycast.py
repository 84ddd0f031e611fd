"""Ray casting against closed forms, and its independence of units and position."""

from __future__ import annotations

import numpy as np
import pytest
import trimesh

from nsr.geometry.raycast import Raycaster
from nsr.utils.errors import DataError


@pytest.fixture(params=[(1.0, 0.0), (1e4, 1e6), (1e-3, -2.0)], ids=["unit", "large and far", "small"])
def placed_box(request):
    """A box of side 2 about the origin, scaled and moved along x, y and z alike."""
    scale, offset = request.param
    box = trimesh.creation.box((2, 2, 2))
    box.vertices = box.vertices * scale + offset
    return box, scale, offset


def test_first_hit_of_a_box(placed_box):
    box, scale, offset = placed_box
    rng = np.random.default_rng(0)
    across = rng.uniform(-1.5, 1.5, (2000, 2))
    origins = np.column_stack([across, np.full(2000, -4.0)]) * scale + offset
    hits = Raycaster(box).first_hit(origins, np.tile([0, 0, 7.0], (2000, 1)))  # length does not matter
    inside = (np.abs(across) < 1).all(axis=1)
    assert np.array_equal(hits.hit, inside)
    assert np.allclose(hits.distance[inside], 3 * scale, rtol=1e-5)
    assert np.isinf(hits.distance[~inside]).all()
    assert (hits.triangle[~inside] == -1).all()


def test_barycentric_weights_give_the_point_back(placed_box):
    box, scale, offset = placed_box
    rng = np.random.default_rng(1)
    directions = rng.normal(size=(500, 3))
    raycaster = Raycaster(box)
    eye = np.full(3, offset)
    hits = raycaster.first_hit(eye, directions)
    assert hits.hit.all()
    unit = directions / np.linalg.norm(directions, axis=1, keepdims=True)
    expected = unit * hits.distance[:, None]
    assert np.allclose(raycaster.interpolate(hits, np.asarray(box.vertices) - offset), expected, atol=1e-5 * scale)
    assert np.allclose(np.abs(expected).max(axis=1), scale, rtol=1e-5)


def test_half_of_a_sphere_is_visible_from_far():
    sphere = trimesh.creation.icosphere(5)
    points, face = trimesh.sample.sample_surface(sphere, 5000, seed=0)
    eye = np.array([0, 0, 50.0])
    facing = ((eye - points) * sphere.face_normals[face]).sum(axis=1) > 0
    visible = Raycaster(sphere).visible(points, eye)
    # A convex body hides exactly what faces away; only triangles seen edge-on may go either way.
    clear = np.abs(sphere.face_normals[face, 2]) > 0.05
    assert np.array_equal(visible[clear], facing[clear])


def test_an_occluder_hides():
    near, far = trimesh.creation.box((1, 1, 0.1)), trimesh.creation.box((4, 4, 0.1))
    far.apply_translation([0, 0, -3])
    both = trimesh.util.concatenate([near, far])
    points = np.array([[0, 0, -2.95], [1.9, 1.9, -2.95], [0, 0, 0.05]])
    assert Raycaster(both).visible(points, np.array([0, 0, 5.0])).tolist() == [False, True, True]


def test_no_rays_and_bad_meshes():
    hits = Raycaster(trimesh.creation.box()).first_hit(np.zeros(3), np.zeros((0, 3)))
    assert len(hits.hit) == 0
    with pytest.raises(DataError, match="triangles"):
        Raycaster(trimesh.Trimesh())
    broken = trimesh.creation.box()
    broken.vertices[0, 0] = np.nan
    with pytest.raises(DataError, match="1 coordinates"):
        Raycaster(broken)
