"""Where a head is wrong: colours that mean millimetres, and cameras that see the head from where they say."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from support.heads import head_reference

from nsr.evaluation import h3ds_pictures
from nsr.evaluation.h3ds import FACE, AlignedHead, HeadErrors, HeadReference
from nsr.evaluation.h3ds_pictures import FILES, SIZE, VIEWS, cameras_about, heat_map, write_heat_maps
from nsr.evaluation.report import color_bar, heat_colors
from nsr.geometry.meshes import load_mesh, to_world, vertex_colors


@pytest.fixture(scope="module")
def reference() -> HeadReference:
    return head_reference(subdivisions=3)


def turned(reference: HeadReference) -> HeadReference:
    """The same head lying on its side, elsewhere."""
    pose = np.array([[0, 0, 1, 300], [1, 0, 0, -50], [0, 1, 0, 20], [0, 0, 0, 1.0]])
    return HeadReference(to_world(reference.mesh, pose), reference.landmarks, reference.regions)


@pytest.mark.parametrize("lying", [False, True])
def test_cameras_see_the_whole_head_from_where_they_say(reference, lying):
    reference = turned(reference) if lying else reference
    scan = torch.from_numpy(np.array(reference.mesh.vertices))
    at = {name: scan[vertex] for name, vertex in reference.landmarks.items()}
    cameras = cameras_about(reference, np.arange(len(scan)))
    assert len(cameras) == len(VIEWS)
    local = (scan - cameras.centers[:, None]) @ cameras.camera_to_world[:, :3, :3]
    pixels = local @ cameras.intrinsics.mT
    pixels = pixels[..., :2] / pixels[..., 2:]
    assert pixels.min() > -0.5
    assert pixels.max() < SIZE - 0.5
    assert (pixels - (SIZE - 1) / 2).abs().max() > 0.9 * SIZE / 2  # and no smaller than it has to be
    centre = (scan.amin(0) + scan.amax(0)) / 2
    front, left, right, back = cameras.centers - centre
    forward, to_left = at["nose_tip"] - centre, at["left_eye"] - at["right_eye"]
    assert front @ forward > 0 > back @ forward
    assert abs(front @ to_left) < 0.1 * front.norm() * to_left.norm()
    assert left @ to_left > 0 > right @ to_left
    eyes, lips = (reference.landmarks[name] for name in ("left_eye", "left_lips"))
    assert (pixels[:, eyes, 1] < pixels[:, lips, 1]).all()  # up is up


def test_a_heat_map_has_the_measured_part_of_the_scan_in_the_colours_of_its_errors(reference):
    mesh, face = reference.mesh, reference.regions[FACE]
    moved = to_world(mesh, np.array([[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 1.5], [0, 0, 0, 1]]))
    aligned = AlignedHead(reference, moved, np.eye(4), face, np.zeros(len(face)))
    shown = heat_map(aligned, 3.0)
    assert np.array_equal(shown.vertices, mesh.vertices[np.sort(face)])
    assert len(shown.faces) > 50
    errors = shown.vertex_attributes["error_mm"]
    assert np.allclose(errors, aligned.surface_distances, atol=1e-5)
    assert 1.2 < errors.max() < 1.5  # moved by as much, but nowhere straight outwards
    assert np.array_equal(vertex_colors(shown)[:, :3], heat_colors(errors.astype(np.float64), 3.0))


def test_maps_and_a_picture_are_written(reference, tmp_path, monkeypatch):
    monkeypatch.setattr(h3ds_pictures, "SIZE", 60)
    measured = np.arange(len(reference.mesh.vertices)), reference.regions[FACE]
    parts = [AlignedHead(reference, reference.mesh, np.eye(4), part, np.zeros(len(part))) for part in measured]
    files = write_heat_maps(HeadErrors(*parts), tmp_path, "mine_")
    assert [path.name for path in files] == [f"mine_{name}" for name in FILES]
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(f"mine_{name}" for name in FILES)
    for file, part in zip(files, parts, strict=False):
        shown = load_mesh(file)
        assert len(shown.vertices) == len(part.vertices)
        assert (vertex_colors(shown)[:, :3] == heat_colors(np.zeros(1), 1.0)).all()  # nothing is wrong


def test_a_colour_bar_goes_from_nothing_below_to_the_most_above():
    bar = color_bar(10.0, "mm", 240)
    assert bar.shape[0] == 240
    inside = bar[:, 20]
    assert inside[30:210].std(axis=0).min() > 20
    top, bottom = inside[25].astype(int), inside[214].astype(int)
    most, nothing = heat_colors(np.array([10.0, 0.0]), 10.0).astype(int)
    assert np.abs(top - most).max() < 8
    assert np.abs(bottom - nothing).max() < 8
    assert (bar[:, 45:] < 128).any()  # with its numbers
    assert np.array_equal(heat_colors(np.array([25.0]), 10.0)[0], most)
