"""Which pieces of a surface are the object: two balls, and everything that may hang about them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import trimesh
from support.facing_cameras import cameras_at
from support.two_balls import BALLS, cameras_around, inside, silhouettes

from nsr.geometry.mesh_extraction import extract_mesh
from nsr.geometry.meshes import components, new_mesh
from nsr.geometry.pieces import LARGE, SMALL, drop_floaters
from nsr.geometry.visibility import Viewpoints, vertex_views
from nsr.utils.errors import DataError

CAMERAS = cameras_around(12)
MASKS = silhouettes(CAMERAS)
FRONT = ((0, 0, 4), (0.5, 0, 4), (0, 0.5, 4), (-0.5, 0, 4))


def distance_to(centre, radius):
    return lambda x: (x - x.new_tensor(centre)).norm(dim=-1) - radius


def surface(*holes, extra=()) -> trimesh.Trimesh:
    """The two balls without `holes` and with `extra` balls (centre, radius)."""

    def f(x):
        value = torch.stack([distance_to(c, r)(x) for c, r in BALLS]).amin(0)
        for c, r in holes:
            value = torch.maximum(value, -distance_to(c, r)(x))
        return torch.stack([value, *(distance_to(c, r)(x) for c, r in extra)]).amin(0)

    return extract_mesh(f, resolution=96)


def ball(radius: float, centre=(0.0, 0, 0)) -> trimesh.Trimesh:
    return trimesh.creation.icosphere(4, radius).apply_translation(centre)


def together(*meshes: trimesh.Trimesh) -> trimesh.Trimesh:
    mesh = trimesh.util.concatenate(meshes)
    return new_mesh(mesh.vertices, mesh.faces)


def is_two_balls(mesh: trimesh.Trimesh) -> bool:
    expected = surface()
    return len(components(mesh)[1]) == 2 and mesh.is_watertight and mesh.area == pytest.approx(expected.area, rel=1e-9)


@pytest.mark.parametrize("masks", [MASKS, None], ids=["masks", "cameras alone"])
class TestTwoBalls:
    def test_both_stay(self, masks):
        mesh = surface()
        assert drop_floaters(mesh, Viewpoints(CAMERAS, masks)) is mesh

    def test_what_is_inside_the_solid_goes(self, masks):
        """A hollow, and a speck within the hollow: no view sees them."""
        mesh = surface((BALLS[0][0], 0.25), extra=[(BALLS[0][0], 0.1)])
        assert len(components(mesh)[1]) == 4
        assert is_two_balls(drop_floaters(mesh, Viewpoints(CAMERAS, masks)))

    def test_what_one_view_sees_goes(self, masks):
        """A floater close to the first camera, which no other has in its image."""
        few = [0, 1, 2]
        views = Viewpoints(CAMERAS[few], None if masks is None else masks[few])
        floater = ball(0.06, (0.9 * CAMERAS.centers[0]).tolist())
        assert vertex_views(floater, Viewpoints(CAMERAS[few])).max() == 1
        assert is_two_balls(drop_floaters(together(surface(), floater), views))


def test_what_the_masks_show_as_background_goes_however_large():
    floater = ((0.1, -0.75, 0.3), 0.15)
    assert not inside(torch.tensor(floater[0]), slack=floater[1])
    mesh = surface(extra=[floater])
    assert is_two_balls(drop_floaters(mesh, Viewpoints(CAMERAS, MASKS)))
    # The cameras alone cannot tell it from a third part of the object.
    assert len(components(drop_floaters(mesh, Viewpoints(CAMERAS)))[1]) == 3


def test_a_small_piece_before_the_object_goes_and_one_beside_it_stays():
    """Seen by all views, and allowed by all masks: only that the masks do not need it tells it from a part."""
    views = Viewpoints(cameras_at(*FRONT))
    floater, part = ball(0.07, (0, 0, 0.7)), ball(0.07, (0.9, 0, 0))
    kept = drop_floaters(together(ball(0.5), floater, part), views)
    assert len(components(kept)[1]) == 2
    assert kept.bounds[1, 0] == pytest.approx(0.97, abs=1e-3)
    assert kept.bounds[1, 2] == pytest.approx(0.5, abs=1e-3)


@pytest.mark.parametrize(("size", "stays"), [(1.2 * LARGE**0.5, True), (0.8 * LARGE**0.5, False)])
def test_a_large_piece_before_the_object_stays(size, stays):
    far = Viewpoints(cameras_at((0, 0, 400), (1, 0, 400), focal=30000.0))  # both balls show the same share of themselves
    kept = drop_floaters(together(ball(0.5), ball(0.5 * size, (0, 0, 1))), far)
    assert len(components(kept)[1]) == 1 + stays


@pytest.mark.parametrize(("size", "stays"), [(1.5 * SMALL**0.5, True), (0.7 * SMALL**0.5, False)])
def test_crumbs_go(size, stays):
    views = Viewpoints(cameras_at(*FRONT))
    kept = drop_floaters(together(ball(0.5), ball(0.5 * size, (0.8, 0, 0))), views)
    assert len(components(kept)[1]) == 1 + stays


def test_the_largest_stays_where_nothing_is_seen():
    away = cameras_at((0, 0, 4), (0.5, 0, 4))
    away.camera_to_world[:, 2, 3] = -400  # behind everything, looking further away
    kept = drop_floaters(together(ball(0.2, (0.8, 0, 0)), ball(0.5)), Viewpoints(away))
    assert np.allclose(kept.bounds, [[-0.5] * 3, [0.5] * 3], atol=1e-2)


def test_colours_stay_with_their_pieces():
    mesh = together(ball(0.1), ball(0.5, (0, 0, 0)))  # the small one is inside
    mesh.visual.vertex_colors = np.repeat([[255, 0, 0, 255], [0, 9, 0, 255]], len(mesh.vertices) // 2, axis=0).astype(np.uint8)
    kept = drop_floaters(mesh, Viewpoints(cameras_at(*FRONT)))
    assert len(kept.vertices) == len(mesh.vertices) // 2
    assert (np.asarray(kept.visual.vertex_colors)[:, :3] == [0, 9, 0]).all()


def test_no_surface():
    with pytest.raises(DataError, match="no triangles"):
        drop_floaters(new_mesh(np.zeros((0, 3)), np.zeros((0, 3), dtype=int)), Viewpoints(CAMERAS))
