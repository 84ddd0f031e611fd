"""Marking and trimming what no camera saw: a ball seen from one side, of which the border is known in closed form."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch
import trimesh
from support.facing_cameras import cameras_at

from nsr.geometry.mesh_extraction import extract_mesh
from nsr.geometry.meshes import load_mesh, new_mesh, save_mesh, to_world, vertex_colors
from nsr.geometry.unseen import SEEN, UNSEEN_GREY, VIEWS, cut, mark_unseen, seen_share, treat_unseen, trim_unseen
from nsr.geometry.visibility import Viewpoints, vertex_views
from nsr.utils.errors import DataError

RADIUS, FAR = 0.6, 4.0
# A point p of the ball is seen from c where p . c > r^2: a cap above height r^2 / |c|.
HORIZON = RADIUS**2 / FAR
CAP = (RADIUS - HORIZON) / (2 * RADIUS)  # its share of the area
VIEWS_OF_CAP = Viewpoints(cameras_at((0, 0, FAR), (0, 1e-3, FAR)))
CELL = 2 / 96


@pytest.fixture(scope="module")
def ball() -> trimesh.Trimesh:
    """With colours that are linear in the position, so that interpolation keeps them."""
    mesh = extract_mesh(lambda x: x.norm(dim=-1) - RADIUS, resolution=96)
    return new_mesh(mesh.vertices, mesh.faces, np.round(127.5 + 200 * mesh.vertices).astype(np.uint8))


@pytest.fixture(scope="module")
def count(ball) -> np.ndarray:
    return vertex_views(ball, VIEWS_OF_CAP)


def open_edges(mesh: trimesh.Trimesh) -> np.ndarray:
    """[E, 2] the edges of one triangle alone."""
    edges = Counter(map(tuple, np.sort(mesh.edges, axis=1)))
    assert max(edges.values()) <= 2
    return np.array([edge for edge, faces in edges.items() if faces == 1]).reshape(-1, 2)


def test_keep_costs_and_changes_nothing(ball, monkeypatch):
    monkeypatch.setattr("nsr.geometry.unseen.vertex_views", None)
    assert treat_unseen(ball, VIEWS_OF_CAP, "keep") == (ball, {})


class TestMark:
    def test_the_surface_stays_and_what_is_not_seen_is_grey(self, ball):
        marked, figures = treat_unseen(ball, VIEWS_OF_CAP, "mark")
        assert np.array_equal(marked.vertices, ball.vertices)
        assert np.array_equal(marked.faces, ball.faces)
        clear = np.abs(ball.vertices[:, 2] - HORIZON) > 3 * CELL
        above = ball.vertices[:, 2] > HORIZON
        assert np.array_equal(marked.vertex_attributes[SEEN][clear], above[clear])
        assert np.array_equal(marked.vertex_attributes[VIEWS][clear], 2 * above[clear])
        seen = marked.vertex_attributes[SEEN] == 1
        assert np.array_equal(vertex_colors(marked)[seen], vertex_colors(ball)[seen])
        assert (vertex_colors(marked)[~seen, :3] == UNSEEN_GREY).all()
        assert figures == {"min_views": 1, "seen_area_percent": pytest.approx(100 * CAP, abs=1)}

    def test_ply_holds_the_views_of_each_vertex(self, ball, count, tmp_path):
        marked = to_world(mark_unseen(ball, count), np.diag([50.0, 50, 50, 1]))
        save_mesh(marked, tmp_path / "mesh.ply")
        header = (tmp_path / "mesh.ply").read_bytes().split(b"end_header")[0].decode()
        assert f"property uchar {VIEWS}\n" in header
        assert f"property uchar {SEEN}\n" in header
        back = trimesh.load(tmp_path / "mesh.ply", process=False).metadata["_ply_raw"]["vertex"]["data"]
        assert np.array_equal(back[VIEWS].ravel(), count)
        for name in ("mesh.obj", "mesh.glb"):
            save_mesh(marked, tmp_path / name)
            greys = (vertex_colors(load_mesh(tmp_path / name))[:, :3] == UNSEEN_GREY).all(axis=1)
            assert greys.sum() == (marked.vertex_attributes[SEEN] == 0).sum()

    def test_many_views_fit_a_byte(self, ball):
        many = np.full(len(ball.vertices), 300)
        assert (mark_unseen(ball, many).vertex_attributes[VIEWS] == 255).all()

    def test_without_colours(self, ball, count):
        assert vertex_colors(mark_unseen(new_mesh(ball.vertices, ball.faces), count)) is None


class TestTrim:
    def test_the_cap_is_left_and_open_at_its_border_alone(self, ball):
        """Closed where seen: every open edge lies on the horizon."""
        trimmed, figures = treat_unseen(ball, VIEWS_OF_CAP, "trim")
        border = trimmed.vertices[np.unique(open_edges(trimmed))]
        assert np.abs(border[:, 2] - HORIZON).max() < CELL
        ends = trimmed.vertices[open_edges(trimmed)]
        length = np.linalg.norm(ends[:, 0] - ends[:, 1], axis=1).sum()
        assert length == pytest.approx(2 * np.pi * (RADIUS**2 - HORIZON**2) ** 0.5, rel=0.03)  # smooth: no zigzag
        assert trimmed.vertices[:, 2].min() == border[:, 2].min()
        assert trimmed.is_winding_consistent
        assert trimmed.euler_number == 1  # a disc: no holes, no islands
        assert trimmed.area == pytest.approx(CAP * ball.area, rel=0.02)
        assert figures["kept_area_percent"] == pytest.approx(100 * CAP, abs=1)

    def test_colours_and_views_are_carried_along(self, ball, count):
        trimmed = trim_unseen(ball, count)
        expected = 127.5 + 200 * trimmed.vertices
        assert np.abs(vertex_colors(trimmed)[:, :3] - expected).max() <= 1.01
        assert trimmed.vertex_attributes[VIEWS].shape == (len(trimmed.vertices),)
        assert trimmed.vertex_attributes[VIEWS].dtype == np.uint8

    def test_views_that_are_not_enough(self, ball, count):
        with pytest.raises(DataError, match=r"3 of the views see, found none \(the best vertex has 2\); lower --min-views"):
            trim_unseen(ball, count, min_views=3)

    def test_a_closed_mesh_that_is_seen_all_round_stays_closed(self, ball):
        all_round = Viewpoints(cameras_at(*((FAR * np.array(c)).tolist() for c in trimesh.creation.icosahedron().vertices)))
        trimmed, figures = treat_unseen(ball, all_round, "trim")
        assert trimmed.is_watertight
        assert len(trimmed.faces) == len(ball.faces)
        assert figures["seen_area_percent"] == 100

    def test_specks_do_not_decide(self, ball, count):
        """Vertices that are wrong here and there: neither holes in what is seen nor crumbs of what is not."""
        wrong = np.random.default_rng(0).choice(len(count), len(count) // 20, replace=False)
        noisy = count.copy()
        noisy[wrong] = 2 - noisy[wrong]
        trimmed = trim_unseen(ball, noisy)
        assert trimmed.euler_number == 1
        assert trimmed.area == pytest.approx(CAP * ball.area, rel=0.02)

    def test_a_solver_that_gives_up_is_helped(self, ball, count, monkeypatch):
        usual = trim_unseen(ball, count)
        monkeypatch.setattr("nsr.geometry.unseen._ITERATIONS", 1)
        assert trim_unseen(ball, count).area == pytest.approx(usual.area, rel=2e-5)

    @pytest.mark.parametrize(("height", "stays"), [(RADIUS - 1e-3, 0), (0.5, 1)], ids=["a few faces", "an eyeful"])
    def test_islands_stay_if_they_are_worth_it(self, ball, height, stays):
        z = ball.vertices[:, 2]
        trimmed = trim_unseen(ball, ((z > height) | (z < -0.3)).astype(int))
        assert (trimmed.vertices[:, 2] > 0).any() == stays
        assert (trimmed.vertices[:, 2] < -0.3).any()

    @pytest.mark.parametrize(("height", "holes"), [(RADIUS - 2e-4, 0), (0.55, 1)], ids=["a crease", "a hole"])
    def test_holes_that_matter_are_cut(self, ball, height, holes):
        trimmed = trim_unseen(ball, (ball.vertices[:, 2] < height).astype(int))
        assert (len(open_edges(trimmed)) > 0) == holes

    def test_a_piece_that_nothing_sees_goes_however_small(self, ball, count):
        """It is a patch without surroundings."""
        speck = trimesh.creation.icosphere(1, 0.01).apply_translation([0, 0, -0.9])
        both = trimesh.util.concatenate([new_mesh(ball.vertices, ball.faces), speck])
        trimmed = trim_unseen(both, np.concatenate([count, np.zeros(len(speck.vertices), dtype=int)]))
        assert trimmed.vertices[:, 2].min() > 0


def test_seen_share_is_by_area():
    """Half of a plate is finely meshed, and half of it is one square."""
    fine = trimesh.creation.box((1, 1, 1e-6)).subdivide().subdivide().subdivide()
    coarse = trimesh.creation.box((1, 1, 1e-6)).apply_translation([3, 0, 0])
    mesh = trimesh.util.concatenate([fine, coarse])
    views = np.repeat([4, 1], [len(fine.vertices), len(coarse.vertices)])
    assert seen_share(mesh, views, 4) == pytest.approx(0.5)
    assert seen_share(mesh, views) == 1.0


class TestCut:
    def test_a_plane_through_a_ball(self, ball):
        """Linear in each triangle, so the cut is exact; both sides together are the whole."""
        height = ball.vertices @ np.array([0.6, 0.0, 0.8]) - 0.1
        above, below = cut(ball, height), cut(ball, -height)
        border = above.vertices[np.unique(open_edges(above))] @ np.array([0.6, 0.0, 0.8])
        assert np.abs(border - 0.1).max() < 1e-12
        assert above.area + below.area == pytest.approx(ball.area, rel=1e-12)
        assert above.is_winding_consistent
        assert above.area == pytest.approx(2 * np.pi * RADIUS * (RADIUS - 0.1), rel=5e-3)

    @pytest.mark.parametrize("values", [[1, -1, -1], [-1, 1, -1], [-1, -1, 1], [1, 1, -1], [1, -1, 1], [-1, 1, 1], [0, -1, 1]])
    def test_every_way_through_a_triangle(self, values):
        triangle = new_mesh(np.array([[0.0, 0, 0], [1, 0, 0], [0, 1, 0]]), np.array([[0, 1, 2]]))
        part = cut(triangle, np.array(values, dtype=float))
        at = part.vertices @ np.array([values[1] - values[0], values[2] - values[0], 0.0]) + values[0]
        assert at.min() > -1e-12
        share = {1: 1 / 8, 2: 3 / 8}[sum(v > 0 for v in values)] if 0 not in values else 1 / 4
        assert part.area == pytest.approx(share)
        assert (part.face_normals[part.area_faces > 0] @ [0, 0, 1] > 0.99).all()

    def test_nothing_and_everything(self, ball):
        assert len(cut(ball, np.full(len(ball.vertices), -1.0)).faces) == 0
        assert len(cut(ball, np.ones(len(ball.vertices))).faces) == len(ball.faces)


def test_a_solid_cut_by_the_clip_sphere_is_closed_before_and_open_in_its_back_alone_after():
    solid = extract_mesh(lambda x: x[:, 2] + 0.3 * torch.sin(4 * x[:, 0]), resolution=40, extent=1.2, clip_radius=1.2)
    assert solid.is_watertight
    views = Viewpoints(cameras_at((0, 0, 6), (1, 0, 6), focal=150.0))
    seen = vertex_views(solid, views) > 0
    trimmed = trim_unseen(solid, seen.astype(int))
    border = trimmed.vertices[np.unique(open_edges(trimmed))]
    # On the way from any open edge to what was seen there is less than the smoothing's reach.
    distance = np.linalg.norm(border[:, None] - solid.vertices[~seen][None], axis=-1).min(axis=1)
    assert distance.max() < 4 * 2.4 / 40
