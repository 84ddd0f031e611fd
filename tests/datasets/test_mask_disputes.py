"""Masks that left out a part, or took in something else, are found by the others; masks that agree are left alone."""

from dataclasses import replace

import pytest
import torch
from support.disturbances import cropped, with_bites, with_strips
from support.two_balls import two_balls

from nsr.datasets.check import check_scene
from nsr.datasets.mask_disputes import disputed_pixels, mended
from nsr.geometry.visual_hull import carve

SCENE = two_balls(20, 160, 120)
RESOLUTION, EXTENT = 64, 1.0


def found(scene, max_misses: int = 2):
    return disputed_pixels(scene.masks, scene.cameras, max_misses, RESOLUTION, EXTENT)


def views_of(places: torch.Tensor) -> list[int]:
    return places.flatten(1).any(1).nonzero()[:, 0].tolist()


@pytest.mark.parametrize("views", [20, 6])
def test_masks_that_agree_are_left_alone(views):
    scene = SCENE.select(list(range(views)))
    assert not any(places.any() for places in found(scene))
    same, left_out = mended(scene, 2, RESOLUTION, EXTENT)
    assert torch.equal(same.masks, scene.masks)
    assert not left_out.any()


def test_missing_parts_are_found_and_the_hull_is_whole_again():
    bitten, views = with_bites(SCENE, radius=0.1)
    missing, extra = found(bitten)
    assert views_of(missing) == views
    assert not extra.any()
    changed = bitten.masks != SCENE.masks
    assert (missing & changed).sum() > 0.95 * changed.sum()

    def overlap(scene) -> float:
        hulls = [carve(s.masks, s.cameras, RESOLUTION) for s in (SCENE, scene)]
        return float((hulls[0] & hulls[1]).sum() / (hulls[0] | hulls[1]).sum())

    assert overlap(bitten) < 0.8
    assert overlap(mended(bitten, 2, RESOLUTION, EXTENT)[0]) > 0.98


def test_other_things_are_found():
    swollen, views = with_strips(SCENE, radius=0.1)
    missing, extra = found(swollen)
    assert views_of(extra) == views
    assert not missing.any()
    changed = swollen.masks != SCENE.masks
    assert (extra & changed).sum() > 0.4 * changed.sum()  # but next to the object, where a hull is no witness
    assert not (extra & ~changed).any()


def test_a_part_that_more_masks_lack_is_not_there():
    """The smaller ball is missing in all masks but two: these are wrong."""
    masks = SCENE.masks.clone()
    lone = two_balls(20, 160, 120)
    one_ball = _larger_ball_alone(lone)
    masks[2:] = one_ball[2:]
    missing, extra = found(replace(SCENE, masks=masks))
    assert not missing.any()
    assert views_of(extra) == [0, 1]


def _larger_ball_alone(scene) -> torch.Tensor:
    from nsr.geometry.cameras import image_pixels, pixel_rays, ray_sphere
    from nsr.types import Rays
    from tests.support.two_balls import BALLS

    centre, radius = BALLS[0]
    pixels = image_pixels(scene.cameras.width, scene.cameras.height)
    masks = []
    for view in range(len(scene)):
        rays = pixel_rays(scene.cameras, torch.full((len(pixels),), view), pixels)
        masks.append(ray_sphere(Rays(rays.origins - torch.tensor(centre), rays.directions), radius)[2])
    return torch.stack(masks).view_as(scene.masks).to(torch.uint8) * 255


def test_the_image_border_is_no_dispute():
    cut, views = cropped(SCENE, 90, 90, share=0.4)
    assert any(cut.masks[view, :, [0, -1]].any() or cut.masks[view, [0, -1]].any() for view in views)
    assert not any(places.any() for places in found(cut))


def test_large_images_are_looked_at_small():
    large = two_balls(12, 400, 300)
    bitten, views = with_bites(large, radius=0.1)
    missing, _ = found(bitten)
    assert missing.shape == large.masks.shape
    assert views_of(missing) == views


def test_the_check_names_the_masks():
    masks = SCENE.masks.clone()
    smaller = (masks[3] > 0) & (_larger_ball_alone(SCENE)[3] == 0)
    rows = smaller.any(1).nonzero()[:, 0]
    smaller[: int(0.4 * rows.min() + 0.6 * rows.max()) + 1] = False
    masks[3][smaller] = 0  # the lower part of the smaller ball
    bitten, swollen = replace(SCENE, masks=masks), with_strips(SCENE, radius=0.07)[0]
    for scene, words in ((bitten, "view 003 leaves out a part"), (swollen, "view 005 shows something")):
        (warning,) = [finding for finding in check_scene(scene) if finding.level == "warning"]
        assert words in warning.message
        assert "start.max_misses" in warning.advice
