"""The visual hull of exact silhouettes: contains the object, is not much larger, and knows what it cannot see."""

from dataclasses import replace

import pytest
import torch
from support.two_balls import cameras_around, inside, silhouettes, two_balls

from nsr.geometry.cameras import project_all
from nsr.geometry.visual_hull import carve, grid_axis, hull_signed_distance
from nsr.types import Cameras
from nsr.utils.errors import DataError


def grid_points(resolution: int, extent: float = 1.0) -> torch.Tensor:
    axis = grid_axis(resolution, extent)
    return torch.stack(torch.meshgrid(axis, axis, axis, indexing="ij"), dim=-1)


def plain_carve(masks, cameras, resolution, extent=1.0) -> torch.Tensor:
    """The definition without tolerance, blocks and chunks: seen by a view, and background in none that sees it."""
    points = grid_points(resolution, extent).reshape(-1, 3)
    pixels, depth = project_all(cameras, points)
    nearest = pixels.round().long()
    size = torch.tensor([cameras.width, cameras.height])
    seen = (depth > 0) & ((nearest >= 0) & (nearest < size)).all(-1)
    u, v = nearest.clamp_min(0).minimum(size - 1).unbind(-1)
    background = masks[torch.arange(len(masks))[:, None], v, u] < 128
    return (seen.any(0) & ~(seen & background).any(0)).reshape(resolution, resolution, resolution)


@pytest.mark.parametrize(("resolution", "width"), [(31, 120), (48, 120), (64, 240)])
def test_hull_contains_the_object_and_is_close_to_the_definition(resolution, width):
    cameras = cameras_around(12, width, width * 3 // 4)
    masks = silhouettes(cameras)
    hull = carve(masks, cameras, resolution)
    points = grid_points(resolution)
    assert hull[inside(points)].all()
    plain = plain_carve(masks, cameras, resolution)
    assert hull[plain].all()  # the tolerance only adds
    spacing = 2 / (resolution - 1)
    reached = torch.nn.functional.max_pool3d(plain[None].float(), 3, stride=1, padding=1)[0] > 0
    beyond = (hull & ~reached).float().mean()
    assert beyond < 0.02 * plain.float().mean()
    assert not hull[~inside(points, slack=0.25 + spacing)].any()


def test_without_tolerance_it_is_the_definition():
    cameras = cameras_around(10)
    masks = silhouettes(cameras)
    hull = carve(masks, cameras, 40, tolerance=0.0)
    assert (hull != plain_carve(masks, cameras, 40)).float().mean() < 1e-4  # rounding of pixels at exactly .5


def test_axes_are_x_y_z():
    hull = carve(silhouettes(cameras_around(16)), cameras_around(16), 41)
    center = grid_points(41)[hull].mean(0)
    expected = grid_points(41)[inside(grid_points(41))].mean(0)
    torch.testing.assert_close(center, expected, atol=0.05, rtol=0)


def test_bool_masks_and_a_larger_cube():
    scene = two_balls()
    hull = carve(scene.masks > 0, scene.cameras, 51, 1.25)
    torch.testing.assert_close(hull[5:46, 5:46, 5:46], carve(scene.masks, scene.cameras, 41, 1.0))


def test_thin_parts_survive():
    cameras = cameras_around(12, 320, 240)
    axis = torch.linspace(-0.6, 0.6, 4000)
    rod = torch.stack([axis, torch.full_like(axis, 0.013), torch.full_like(axis, -0.021)], dim=-1)
    pixels = project_all(cameras, rod)[0].round().long()
    masks = torch.zeros(12, 240, 320, dtype=torch.uint8)
    for view in range(12):
        masks[view, pixels[view, :, 1], pixels[view, :, 0]] = 255  # one pixel wide: a third of a voxel
    hull = carve(masks, cameras, 32, tolerance=0.9)
    reached = grid_points(32)[hull][:, 0]
    steps = torch.unique(reached)
    assert steps.min() <= -0.5
    assert steps.max() >= 0.5
    assert (steps.diff() < 2.1 / 31).all()  # no gap along the rod


def test_what_lies_outside_all_images_is_carved_and_what_some_see_is_theirs():
    cameras = cameras_around(6)
    narrow = replace(cameras, intrinsics=cameras.intrinsics * torch.tensor([4.0, 4.0, 1.0])[:, None])
    k = narrow.intrinsics.clone()
    k[:, 0, 2], k[:, 1, 2] = 60, 45
    narrow = replace(narrow, intrinsics=k)
    full = torch.full((6, 90, 120), 255, dtype=torch.uint8)
    hull = carve(full, narrow, 32)
    points = grid_points(32)
    pixels, depth = project_all(narrow, points.reshape(-1, 3))
    seen = (depth > 0) & (pixels >= -0.5).all(-1) & (pixels < torch.tensor([119.5, 89.5])).all(-1)
    torch.testing.assert_close(hull.reshape(-1), seen.any(0))
    torch.testing.assert_close(carve(full, narrow, 32, min_views=3).reshape(-1), seen.sum(0) >= 3)


def test_objects_cut_by_the_image_border_keep_what_is_outside():
    scene = two_balls()
    cropped = Cameras(scene.cameras.intrinsics, scene.cameras.camera_to_world, 120, 50)  # the lower part of each image
    hull = carve(scene.masks[:, :50], cropped, 40)
    assert hull[carve(scene.masks, scene.cameras, 40)].float().mean() > 0.99


def test_misses_are_forgiven_when_asked():
    scene = two_balls()
    masks = scene.masks.clone()
    masks[3] = 0
    assert not carve(masks, scene.cameras, 32)[inside(grid_points(32))].all()
    assert carve(masks, scene.cameras, 32, max_misses=1)[inside(grid_points(32))].all()


def test_masks_must_match_the_cameras():
    scene = two_balls()
    with pytest.raises(DataError, match="one mask per camera"):
        carve(scene.masks[:5], scene.cameras, 16)


def test_signed_distance_of_a_ball():
    resolution, extent, radius = 65, 1.25, 0.7
    distance = grid_points(resolution, extent).norm(dim=-1) - radius
    found = hull_signed_distance(distance <= 0, extent)
    spacing = 2 * extent / (resolution - 1)
    near = distance.abs() < 0.4
    assert (found - distance)[near].abs().max() < spacing
    assert (found - distance)[near].mean().abs() < 0.1 * spacing  # half a voxel off would be 0.5
    slope = (found[2:, 1:-1, 1:-1] - found[:-2, 1:-1, 1:-1]) / (2 * spacing)
    assert slope.abs().max() < 1.05


@pytest.mark.parametrize("state", [False, True])
def test_signed_distance_needs_a_surface(state):
    with pytest.raises(DataError, match="empty" if not state else "whole grid"):
        hull_signed_distance(torch.full((8, 8, 8), state))
