"""Grey pyramids against values worked out by hand, and their cameras against points that must stay where they are."""

import dataclasses

import pytest
import torch

from nsr.datasets.pyramid import LUMA, grey_pyramid, patch_side
from nsr.geometry.cameras import level_cameras, project
from tests.support.painted_ball import PaintedBall, photographs, ring_of_cameras


def scene_of(grey: list[list[int]], mask: list[list[int]]):
    scene = photographs(ring_of_cameras(1), PaintedBall())
    images = torch.tensor(grey, dtype=torch.uint8)[None, :, :, None].repeat(1, 1, 1, 3)
    return dataclasses.replace(scene, images=images, masks=torch.tensor(mask, dtype=torch.uint8)[None])


def test_coarse_pixels_are_means_of_the_object_alone():
    scene = scene_of([[0, 100, 255, 9], [50, 200, 9, 9]], [[255, 255, 255, 0], [255, 0, 0, 0]])
    fine, coarse = grey_pyramid(scene, levels=2)
    assert torch.allclose(fine[0, 0, :3], torch.tensor([0.0, 100, 255]) / 255)
    assert fine[0, 1].isnan().tolist() == [False, True, True, True]
    assert coarse.shape == (1, 1, 2)
    assert coarse[0, 0, 0].item() == pytest.approx(50 / 255)  # of 0, 100 and 50; 200 is background
    assert coarse[0, 0, 1].isnan()  # one pixel of four


def test_colours_are_weighted_as_the_eye_does():
    scene = scene_of([[0]], [[255]])
    red = dataclasses.replace(scene, images=torch.tensor([[[[255, 0, 0]]]], dtype=torch.uint8))
    assert grey_pyramid(red, 1)[0].item() == pytest.approx(LUMA[0])
    assert sum(LUMA) == pytest.approx(1.0)


@pytest.mark.parametrize("level", [0, 1, 3])
def test_cameras_of_a_level_see_a_point_at_the_same_place_of_the_image(level):
    cameras = ring_of_cameras(3, width=640, height=480)
    points, view = 0.3 * torch.randn(9, 3, generator=torch.Generator().manual_seed(0)), torch.arange(9) % 3
    full, _ = project(cameras, view, points)
    coarse, _ = project(level_cameras(cameras, level), view, points)
    # Edges of the image, half a pixel off its outermost centres, are the same place at every size.
    assert torch.allclose((coarse + 0.5) * 2**level, full + 0.5, atol=1e-3)
    assert level_cameras(cameras, level).width == 640 >> level


def checkerboard(contrast: float) -> torch.Tensor:
    """[10, 20, 24] views of a board of pixels that are contrast apart, with a border of background."""
    v, u = torch.meshgrid(torch.arange(20), torch.arange(24), indexing="ij")
    grey = (0.5 + contrast * ((u + v) % 2 - 0.5)).repeat(10, 1, 1)
    grey[:, :, :3] = torch.nan
    return grey


@pytest.mark.parametrize(("contrast", "side"), [(0.1, 3), (0.04, 5), (0.03, 7), (0.01, 7), (0.0, 7)])
def test_patches_are_as_small_as_the_texture_allows(contrast, side):
    # Of side^2 pixels, half of which are contrast above the others, the root of the squares' sum is side * contrast / 2.
    assert patch_side(checkerboard(contrast), (3, 5, 7), 0.09) == side


def test_half_of_the_patches_decide():
    grey = checkerboard(0.1)
    grey[:, :, :9] = 0.5  # a third of it without texture
    assert patch_side(grey, (3, 5, 7), 0.09) == 3
    grey[:, :, :16] = 0.5
    assert patch_side(grey, (3, 5, 7), 0.09) == 7


def test_patches_fit_into_the_images():
    assert patch_side(checkerboard(0.0)[:, :6], (3, 5, 7), 0.09) == 5
