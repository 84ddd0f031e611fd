"""Silhouettes from photographs and cameras alone, against exact ones that the method may not look at."""

import dataclasses

import pytest
import torch

from nsr.datasets.idr import load_idr
from nsr.evaluation.images import silhouette_iou
from nsr.training.settings import PhotometricConfig
from nsr.training.silhouettes import _enlarged, _holes, estimate_silhouettes
from nsr.training.surroundings import SurroundingsSweep
from nsr.utils.errors import DataError
from tests.support.unmasked_scene import ball_before

CONFIG = PhotometricConfig()


def unmasked(scene):
    return dataclasses.replace(scene, masks=torch.full_like(scene.masks, 255), masked=False)


def overlaps(masks, scene) -> torch.Tensor:
    return torch.tensor([silhouette_iou(*pair) for pair in zip(masks.numpy(), scene.masks.numpy(), strict=True)])


@pytest.mark.parametrize("background", ["room", "black"])
def test_a_ball_is_told_from_what_is_behind_it(background):
    scene = ball_before(background)
    misleading = dataclasses.replace(scene, masks=255 - scene.masks)  # masks that a scene has are not looked at
    masks = estimate_silhouettes(misleading, CONFIG)
    assert masks.dtype == torch.uint8
    assert set(masks.unique().tolist()) == {0, 255}
    found = overlaps(masks, scene)
    assert found.mean() > 0.95
    assert found.min() > 0.9


def test_depths_tell_inside_and_behind():
    scene = ball_before("room")
    sweep = SurroundingsSweep(unmasked(scene), CONFIG)
    inside, behind = sweep.seeds()
    assert not (inside & behind).any()
    on_object = scene.masks[:, :: sweep.stride, :: sweep.stride] == 255
    assert (inside & on_object).sum() > 0.15 * on_object.sum()
    assert (inside & ~on_object).sum() < 0.25 * inside.sum()  # a patch at the object's edge shows it too; views are far apart
    assert (behind & on_object).sum() < 0.05 * behind.sum()
    assert behind.sum() > 0.05 * (sweep.swept & ~on_object).sum()


def test_a_hole_that_the_hull_does_not_have_is_none():
    masks = torch.zeros(2, 20, 20, dtype=torch.bool)
    masks[:, 2:18, 2:18] = True
    shadow = masks.clone()
    masks[:, 5:8, 5:8] = False  # a dark window
    masks[0, 16:20, 10:12] = False  # a door, open to the ground
    masks[1, 11:14, 11:14] = shadow[1, 11:14, 11:14] = False  # a hole through the object
    holes = _holes(masks, shadow)
    assert holes[:, 5:8, 5:8].all()
    assert holes.sum() == 2 * 9


def test_photographs_that_show_nothing_are_refused():
    scene = ball_before("black", views=8, width=80, height=60)
    blank = dataclasses.replace(unmasked(scene), images=torch.full_like(scene.images, 200))
    with pytest.raises(DataError, match="--sphere X Y Z R"):
        estimate_silhouettes(blank, CONFIG)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("path", "least"),
    [("scenes/dtu_scan24_half", 0.95), ("scenes/dino_sparse_ring", 0.93), ("heads/ict_000", 0.97)],
)
def test_real_photographs(shared_data, path, least):
    scene = load_idr(shared_data / path)
    assert overlaps(estimate_silhouettes(unmasked(scene), CONFIG), scene).mean() > least


def test_enlarged_images_lie_where_the_photographs_do():
    """Halving drops odd last columns; what is left must not be stretched over them."""
    ramp = torch.arange(23.0).expand(1, 1, 14, 23)
    shrunk = torch.nn.functional.avg_pool2d(ramp, 4)[:, 0]
    large = _enlarged(shrunk, 2, (14, 23))
    assert large.shape == (1, 14, 23)
    torch.testing.assert_close(large[0, :, 2:18], ramp[0, 0, :, 2:18])
    assert (large[0, :, 19:] == shrunk[0, 0, -1]).all()


def test_a_sphere_that_no_ray_meets_is_refused():
    scene = ball_before("room")
    away = scene.cameras.camera_to_world.clone()
    away[:, :3, 3] += torch.tensor([1000.0, 0.0, 0.0])
    aside = dataclasses.replace(scene, cameras=dataclasses.replace(scene.cameras, camera_to_world=away))
    with pytest.raises(DataError, match="found on 0 of 0 rays"):
        estimate_silhouettes(aside, CONFIG)
