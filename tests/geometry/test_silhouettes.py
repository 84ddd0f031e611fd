"""Distances from what silhouettes allow, on balls of known size."""

import dataclasses

import pytest
import torch

from nsr.geometry.silhouettes import silhouette_distance
from tests.support.painted_ball import RADIUS, PaintedBall, photographs, ring_of_cameras


@pytest.fixture(scope="module")
def scene():
    cameras = ring_of_cameras(views=24, width=160, height=120)
    intrinsics = cameras.intrinsics * torch.tensor([3.0, 3.0, 1.0])[:, None]
    return photographs(dataclasses.replace(cameras, intrinsics=intrinsics), PaintedBall())


def on_the_equator(radius: float) -> torch.Tensor:
    angle = torch.linspace(0.0, 6.28, 200)
    return radius * torch.stack([angle.cos(), angle.sin(), torch.zeros_like(angle)], dim=-1)


@pytest.mark.parametrize("radius", [0.56, 0.59, 0.6, 0.62, 0.66])
def test_it_is_the_distance_from_the_ball_to_a_fraction_of_a_pixel(scene, radius):
    pixel = 1.8 / scene.cameras.intrinsics[0, 0, 0].item()
    distance = silhouette_distance(scene.masks, scene.cameras, on_the_equator(radius))
    assert (distance - (radius - RADIUS)).abs().max() < 0.8 * pixel
    assert (distance - (radius - RADIUS)).abs().mean() < 0.5 * pixel


def test_large_masks_are_measured_at_a_smaller_size(scene):
    pixel = 1.8 / scene.cameras.intrinsics[0, 0, 0].item()
    distance = silhouette_distance(scene.masks, scene.cameras, on_the_equator(0.63), width=80)
    assert (distance - 0.03).abs().mean() < 0.8 * pixel


def test_views_that_do_not_see_a_point_say_nothing(scene):
    beyond = torch.tensor([[0.0, 0.0, 50.0], [0.0, 0.0, 0.0]])
    distance = silhouette_distance(scene.masks, scene.cameras, beyond)
    assert distance[0] == -torch.inf
    assert distance[1] < -0.3


def test_a_mask_that_fills_its_image_has_no_edge(scene):
    full = torch.full_like(scene.masks, 255)
    assert (silhouette_distance(full, scene.cameras, on_the_equator(0.6)) < -0.3).all()


def test_pixels_that_are_not_square(scene):
    """The same ball in pictures of which every row is half as high: the same distances."""
    halves = torch.tensor([1.0, 2.0, 1.0])[:, None]
    cameras = dataclasses.replace(scene.cameras, intrinsics=scene.cameras.intrinsics * halves, height=240)
    narrow = photographs(cameras, PaintedBall())
    points = torch.nn.functional.normalize(torch.randn(500, 3, generator=torch.Generator().manual_seed(0)), dim=-1) * 0.66
    expected = silhouette_distance(scene.masks, scene.cameras, points)
    pixel = 1.8 / scene.cameras.intrinsics[0, 0, 0].item()
    assert expected.max() > 4 * pixel
    assert (silhouette_distance(narrow.masks, cameras, points) - expected).abs().max() < 0.6 * pixel
