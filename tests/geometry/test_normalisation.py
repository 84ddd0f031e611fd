"""The scene frame from silhouettes: finds centre and size of a known object, whatever the world's scale."""

import numpy as np
import pytest
import torch
from support.two_balls import BALLS, WORLD_FROM_SCENE, two_balls

from nsr.geometry.normalisation import bounding_sphere, camera_normalisation, scene_normalisation, sphere_frame
from nsr.geometry.poses import transform_cameras
from nsr.types import Cameras
from nsr.utils.errors import DataError


def in_world(scene) -> Cameras:
    cameras = scene.cameras
    double = Cameras(cameras.intrinsics.double(), cameras.camera_to_world.double(), cameras.width, cameras.height)
    return transform_cameras(double, scene.world_from_scene)


def object_in(world_from_scene: np.ndarray) -> tuple[np.ndarray, float]:
    """Centre and radius of the smallest sphere around the two balls, in the frame that was found."""
    (a, ra), (b, rb) = ((np.array(c), r) for c, r in BALLS)
    axis = (b - a) / np.linalg.norm(b - a)
    ends = np.stack([a - ra * axis, b + rb * axis])
    frame = np.linalg.inv(world_from_scene) @ WORLD_FROM_SCENE
    ends = ends @ frame[:3, :3].T + frame[:3, 3]
    return ends.mean(0), float(np.linalg.norm(ends[1] - ends[0]) / 2)


@pytest.mark.parametrize("views", [3, 12, 30])
def test_object_fills_the_unit_sphere_with_a_margin(views):
    scene = two_balls(views)
    center, radius = object_in(scene_normalisation(in_world(scene), scene.masks))
    assert 0.8 < radius + np.linalg.norm(center) < 0.97
    assert np.linalg.norm(center) < 0.15 if views == 3 else np.linalg.norm(center) < 0.06


def test_result_scales_with_the_world():
    scene = two_balls(10)
    found = scene_normalisation(in_world(scene), scene.masks)
    change = np.diag([7.0, 7.0, 7.0, 1.0])
    change[:3, 3] = [1000, 0, -50]
    moved = scene_normalisation(transform_cameras(in_world(scene), change), scene.masks)
    np.testing.assert_allclose(moved, change @ found, rtol=1e-3, atol=0.5)


def test_one_wrong_mask_does_not_matter_much():
    scene = two_balls(20)
    masks = scene.masks.clone()
    masks[4] = scene.masks[4].flip(1)
    center, radius = object_in(scene_normalisation(in_world(scene), masks))
    assert 0.75 < radius + np.linalg.norm(center) < 1


def test_one_view_and_parallel_views_are_refused():
    scene = two_balls(4)
    cameras = in_world(scene)
    with pytest.raises(DataError, match="at least 2 views"):
        scene_normalisation(cameras[[0]], scene.masks[[0]])
    with pytest.raises(DataError, match="one direction"):
        scene_normalisation(cameras[[1, 1]], scene.masks[[1, 1]])


def test_cameras_that_look_away_are_named():
    scene = two_balls(8)
    cameras = in_world(scene)
    flip = torch.diag(torch.tensor([1.0, -1.0, -1.0, 1.0])).double()
    away = Cameras(cameras.intrinsics, cameras.camera_to_world @ flip, cameras.width, cameras.height)
    with pytest.raises(DataError, match="OpenGL"):
        scene_normalisation(away, scene.masks)


def test_silhouettes_without_common_volume_are_refused():
    scene = two_balls(8)
    masks = torch.zeros_like(scene.masks)
    for view in range(8):  # a spot in another corner each time
        masks[view, (5 if view % 2 else 80) : (10 if view % 2 else 85), 14 * view : 14 * view + 5] = 255
    with pytest.raises(DataError, match="no point lies inside"):
        scene_normalisation(in_world(scene), masks)


def test_bounding_sphere_of_known_points():
    points = torch.nn.functional.normalize(torch.randn(400, 3, generator=torch.Generator().manual_seed(0)), dim=-1).double()
    center, radius = bounding_sphere(3 * points + torch.tensor([5.0, 0, -2]))
    torch.testing.assert_close(center, torch.tensor([5.0, 0, -2]).double(), atol=0.05, rtol=0)
    assert radius == pytest.approx(3, rel=0.02)


def test_cameras_alone_tell_where_they_look_and_how_much_they_show():
    cameras = in_world(two_balls(12))
    found = camera_normalisation(cameras)
    in_scene = np.linalg.inv(WORLD_FROM_SCENE) @ found
    assert np.linalg.norm(in_scene[:3, 3]) < 0.1  # they look at the origin, but for their principal point
    assert in_scene[0, 0] == pytest.approx(3.2 * 60 / 147.5, rel=0.05)  # distance times half the width over the focal length
    moved = camera_normalisation(transform_cameras(cameras, np.diag([7.0, 7.0, 7.0, 1.0])))
    np.testing.assert_allclose(moved, np.diag([7.0, 7.0, 7.0, 1.0]) @ found @ np.diag([1, 1, 1, 1.0]), rtol=1e-6)


def test_a_sphere_by_cameras_leaves_them_outside():
    cameras = in_world(two_balls(12))
    wide = Cameras(cameras.intrinsics / torch.tensor([[10.0], [10.0], [1.0]]), cameras.camera_to_world, 120, 90)
    in_scene = transform_cameras(wide, np.linalg.inv(camera_normalisation(wide)))
    assert in_scene.centers.norm(dim=-1).min() == pytest.approx(1 / 0.7)


def test_cameras_that_show_no_common_place_are_refused():
    cameras = in_world(two_balls(6))
    with pytest.raises(DataError, match="one direction"):
        camera_normalisation(cameras[[0, 0, 0]])
    with pytest.raises(DataError, match="--sphere"):
        camera_normalisation(cameras[[0]])
    turned = cameras.camera_to_world @ torch.diag(torch.tensor([1.0, -1.0, -1.0, 1.0], dtype=torch.float64))
    with pytest.raises(DataError, match="look away"):
        camera_normalisation(Cameras(cameras.intrinsics, turned, 120, 90))


def test_frame_of_a_sphere():
    np.testing.assert_array_equal(sphere_frame((1.0, 2.0, 3.0, 4.0)) @ [0.5, 0, 0, 1], [3, 2, 3, 1])
