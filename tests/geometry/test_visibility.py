"""Which cameras see what, against closed forms."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import trimesh
from support.facing_cameras import cameras_at

from nsr.geometry.raycast import Raycaster
from nsr.geometry.visibility import (
    MASK_MARGIN,
    Viewpoints,
    area_weighted_normals,
    count_views,
    vertex_areas,
    vertex_views,
)
from nsr.types import Cameras
from nsr.utils.errors import DataError

CENTERS = ((0, 0, 4), (4, 0, 0), (-4, 0, 0))
FRONT = cameras_at((0, 0, 4), (0.01, 0, 4))


def two_plates() -> trimesh.Trimesh:
    front, back = trimesh.creation.box((0.5, 0.5, 0.1)), trimesh.creation.box((4, 4, 0.1))
    back.apply_translation([0, 0, -1])
    return trimesh.util.concatenate([front, back])


def test_vertices_of_a_sphere():
    ball = trimesh.creation.icosphere(5)
    count = vertex_views(ball, Viewpoints(cameras_at(*CENTERS)))
    # A ball of radius 1 is seen from distance 4 where n . c > 1 with |c| = 4 and n = p.
    margin = np.asarray(ball.vertices) @ np.array(CENTERS).T - 1
    clear = (np.abs(margin) > 0.1).all(axis=1)
    assert clear.mean() > 0.8
    assert np.array_equal(count[clear], (margin[clear] > 0).sum(axis=1))
    assert np.array_equal(np.minimum(count, 1), vertex_views(ball, Viewpoints(cameras_at(*CENTERS)), enough=1))


def test_occluded_and_cropped_surfaces_are_not_seen():
    points = np.array([[0, 0, 0.05], [0, 0, -0.95], [0.6, 0, -0.95], [1.9, 0, -0.95], [0, 0, -1.05]])
    normals = np.array([[0.0, 0, 1]] * 4 + [[0, 0, -1]])
    # The picture is 200 wide at focal 300: at depth 4.95 it spans +-1.65.
    count = count_views(Viewpoints(FRONT), Raycaster(two_plates()), points, normals)
    assert count.tolist() == [2, 0, 2, 0, 0]


@pytest.mark.parametrize("as_bytes", [False, True])
def test_where_the_mask_shows_background_nothing_is_seen(as_bytes):
    """The mask of the second view ends at column 120: only MASK_MARGIN pixels beyond it count as well."""
    masks = torch.ones(2, 200, 200, dtype=torch.bool)
    masks[1, :, 121:] = False
    masks = masks.to(torch.uint8) * 255 if as_bytes else masks
    cameras = Cameras(FRONT.intrinsics, FRONT.camera_to_world[[0, 0]], FRONT.width, FRONT.height)
    plate = trimesh.creation.box((3, 3, 0.1))
    column = np.array([119, 120 + MASK_MARGIN, 121 + MASK_MARGIN, 150])
    in_camera = np.stack([(column - 99.5) / 300, np.zeros(4), np.ones(4)], axis=-1)
    rays = in_camera @ cameras.camera_to_world[0, :3, :3].double().numpy().T
    points = np.array([0, 0, 4.0]) + rays * (3.95 / -rays[:, 2:])  # on the front of the plate
    normals = np.tile([0.0, 0, 1], (4, 1))
    assert count_views(Viewpoints(cameras, masks), Raycaster(plate), points, normals).tolist() == [2, 2, 1, 1]
    assert count_views(Viewpoints(cameras), Raycaster(plate), points, normals).tolist() == [2, 2, 2, 2]


def test_masks_of_another_size_are_refused():
    with pytest.raises(DataError, match=r"\[2, 200, 200\], got \[2, 100, 200\]"):
        Viewpoints(FRONT, torch.ones(2, 100, 200, dtype=torch.bool))


def test_normals_and_areas_of_a_box_with_a_sliver():
    """A sliver that stands on end takes no part in the normal around it, where mean normals would be far off."""
    vertices = np.array([[0.0, 0, 0], [1, 0, 0], [1, 1, 0], [0, 1, 0], [0.5, 0, 1e-9]])
    mesh = trimesh.Trimesh(vertices, [[0, 1, 2], [0, 2, 3], [0, 1, 4]], process=False)
    normals = area_weighted_normals(mesh)
    assert np.allclose(normals[0] / np.linalg.norm(normals[0]), [0, 0, 1], atol=1e-6)
    assert np.allclose(vertex_areas(mesh), [1 / 3, 1 / 6, 1 / 3, 1 / 6, 0], atol=1e-8)
