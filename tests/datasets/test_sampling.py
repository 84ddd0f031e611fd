"""Pixels are drawn where they should be, carry what the images say, and continue exactly after a restart."""

from dataclasses import replace

import pytest
import torch
from support.two_balls import two_balls

from nsr.datasets.sampling import PixelSampler
from nsr.geometry.masks import dilate

SCENE = two_balls(7, 60, 44)


def values_at(batch):
    column, row = batch.pixels.long().unbind(-1)
    return SCENE.images[batch.view, row, column].float() / 255, SCENE.masks[batch.view, row, column].float() / 255


@pytest.mark.parametrize("method", ["draw", "draw_from_image"])
def test_batches_say_what_the_images_say(method):
    batch = getattr(PixelSampler(SCENE), method)(500)
    rgb, mask = values_at(batch)
    torch.testing.assert_close(batch.rgb, rgb)
    torch.testing.assert_close(batch.mask, mask)
    assert len(batch) == 500
    assert batch.pixels.dtype == torch.float32
    assert batch.view.dtype == torch.long


def test_shares_and_band():
    sampler = PixelSampler(SCENE, inside_share=0.6, uniform_share=0.0, band_px=4)
    batch = sampler.draw(5000)
    assert batch.mask.mean() == pytest.approx(0.6)
    column, row = batch.pixels.long().unbind(-1)
    near = torch.nn.functional.max_pool2d(SCENE.masks.float(), 9, 1, 4) > 0
    assert near[batch.view, row, column].all()
    drawn = torch.zeros_like(SCENE.masks, dtype=torch.bool)
    drawn[batch.view, row, column] = True
    for _ in range(30):
        batch = sampler.draw(5000)
        column, row = batch.pixels.long().unbind(-1)
        drawn[batch.view, row, column] = True
    assert (drawn == near).all()  # every pixel of object and band has its turn


def test_outline_is_the_pixels_on_both_sides():
    masks = torch.zeros_like(SCENE.masks)
    masks[:, 10:, 20:40] = 255  # leaves the image below
    sampler = PixelSampler(replace(SCENE, masks=masks), inside_share=0.0, outline_share=1.0, uniform_share=0.0)
    column, row = sampler.draw(20_000).pixels.unbind(-1)
    drawn = torch.zeros(44, 60, dtype=torch.bool)
    drawn[row.long(), column.long()] = True
    expected = torch.zeros_like(drawn)
    expected[9:, 19:41] = True
    expected[11:, 21:39] = False
    assert torch.equal(drawn, expected)


def test_shares_of_all_kinds():
    batch = PixelSampler(SCENE, inside_share=0.5, outline_share=0.3, uniform_share=0.0, band_px=4).draw(10_000)
    inside = SCENE.masks > 127
    beside = dilate(inside, 1) & ~inside
    column, row = batch.pixels.long().unbind(-1)
    outer = beside.sum() / torch.stack([dilate(mask, 1) & dilate(~mask, 1) for mask in inside]).sum()
    of_band = beside.sum() / torch.stack([dilate(mask, 4) & ~mask for mask in inside]).sum()
    assert float(batch.mask.mean()) == pytest.approx(float(0.5 + 0.3 * (1 - outer)), abs=0.015)
    assert float(beside[batch.view, row, column].float().mean()) == pytest.approx(float(0.3 * outer + 0.2 * of_band), abs=0.015)


def test_inside_draws_pixels_of_the_object_alone():
    sampler = PixelSampler(SCENE)
    batch = sampler.draw_inside(2000)
    rgb, mask = values_at(batch)
    torch.testing.assert_close(batch.rgb, rgb)
    assert (mask > 0.5).all()
    assert len(batch.view.unique()) == len(SCENE)
    empty = PixelSampler(replace(SCENE, masks=torch.zeros_like(SCENE.masks)))
    assert len(empty.draw_inside(50)) == 50


def test_uniform_share_reaches_everything():
    batch = PixelSampler(SCENE, inside_share=0.0, uniform_share=1.0).draw(100_000)
    share = (SCENE.masks > 0).float().mean()
    assert float(batch.mask.mean()) == pytest.approx(float(share), abs=0.01)
    counts = torch.bincount(batch.view, minlength=7)
    assert (counts - 100_000 / 7).abs().max() < 600


@pytest.mark.parametrize("value", [0, 255])
def test_masks_without_object_or_without_background(value):
    scene = replace(SCENE, masks=torch.full_like(SCENE.masks, value))
    assert len(PixelSampler(scene).draw(256)) == 256


def test_one_pixel_and_no_pixels():
    scene = replace(SCENE, images=SCENE.images[:1, :1, :1], masks=SCENE.masks[:1, :1, :1])
    assert PixelSampler(scene).draw(3).pixels.tolist() == [[0, 0]] * 3
    assert len(PixelSampler(SCENE).draw(0)) == 0


def test_same_seed_same_pixels():
    a, b, c = (PixelSampler(SCENE, seed=seed).draw(64).pixels for seed in (3, 3, 4))
    assert torch.equal(a, b)
    assert not torch.equal(a, c)


def test_global_generator_is_left_alone():
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    sampler = PixelSampler(SCENE)
    sampler.draw(10)
    sampler.draw_from_image(10)
    assert torch.equal(torch.rand(3), expected)


def test_each_epoch_is_a_permutation_of_the_images():
    sampler = PixelSampler(SCENE)
    epochs = []
    for _ in range(4):
        views = []
        for _ in range(7):
            drawn = sampler.draw_from_image(16).view.unique()
            assert len(drawn) == 1
            views.append(int(drawn))
        assert sorted(views) == list(range(7))
        epochs.append(tuple(views))
    assert len(set(epochs)) > 1


def test_resume_is_exact():
    sampler = PixelSampler(SCENE, seed=5)
    for _ in range(3):
        sampler.draw(100)
        sampler.draw_from_image(20)
    state = {k: v.clone() if isinstance(v, torch.Tensor) else v for k, v in sampler.state_dict().items()}
    expected = [(sampler.draw(100).pixels, sampler.draw_from_image(20)) for _ in range(12)]
    resumed = PixelSampler(SCENE, seed=99)
    resumed.load_state_dict(state)
    for pixels, batch in expected:
        assert torch.equal(resumed.draw(100).pixels, pixels)
        again = resumed.draw_from_image(20)
        assert torch.equal(again.view, batch.view)
        assert torch.equal(again.rgb, batch.rgb)


@pytest.mark.parametrize("radius", [0, 1, 2, 3, 5, 8, 25, 100])
def test_dilate_is_a_square_window(radius):
    mask = torch.zeros(30, 41, dtype=torch.bool)
    mask[4, 5] = mask[29, 40] = mask[15, 20] = True
    expected = torch.nn.functional.max_pool2d(mask[None].float(), 2 * radius + 1, 1, radius)[0] > 0
    assert torch.equal(dilate(mask, radius), expected)


def test_bad_shares_are_refused():
    for inside, outline, uniform in ((0.8, 0.0, 0.3), (0.8, 0.3, 0.0), (0.8, -0.1, 0.0)):
        with pytest.raises(ValueError, match="shares"):
            PixelSampler(SCENE, inside_share=inside, outline_share=outline, uniform_share=uniform)


@pytest.mark.parametrize("method", ["draw", "draw_from_image"])
def test_left_out_pixels_are_never_drawn(method):
    left_out = torch.zeros_like(SCENE.masks, dtype=torch.bool)
    left_out[2, 10:30, 5:50] = left_out[5, :, :55] = True
    sampler = PixelSampler(SCENE, inside_share=0.4, uniform_share=0.3, left_out=left_out)
    seen = torch.zeros(7, dtype=torch.long)
    for _ in range(21):
        batch = getattr(sampler, method)(500)
        assert len(batch) == 500
        column, row = batch.pixels.long().unbind(-1)
        assert not left_out[batch.view, row, column].any()
        rgb, _ = values_at(batch)
        torch.testing.assert_close(batch.rgb, rgb)
        seen += batch.view.bincount(minlength=7)
    assert (seen > 0).all()
    if method == "draw_from_image":
        assert (seen == 1500).all()


def test_leaving_nothing_out_changes_nothing():
    nothing = torch.zeros_like(SCENE.masks, dtype=torch.bool)
    assert torch.equal(PixelSampler(SCENE, left_out=nothing).draw(99).pixels, PixelSampler(SCENE).draw(99).pixels)


def test_no_pixel_left_in_a_view():
    left_out = torch.zeros_like(SCENE.masks, dtype=torch.bool)
    left_out[1] = True
    with pytest.raises(ValueError, match="no pixel of some view"):
        PixelSampler(SCENE, left_out=left_out)


def test_the_image_border_is_no_silhouette():
    """The band lies along the object's outline alone, not where the border cuts it."""
    masks = torch.zeros_like(SCENE.masks)
    masks[:, 10:, 20:40] = 255  # leaves the image below
    batch = PixelSampler(replace(SCENE, masks=masks), inside_share=0.0, uniform_share=0.0, band_px=4).draw(4000)
    column, row = batch.pixels.unbind(-1)
    assert (batch.mask == 0).all()
    assert ((row >= 6) & (column >= 16) & (column < 44)).all()
    below = ((row == SCENE.cameras.height - 1) & (column >= 20) & (column < 40)).sum()
    assert below == 0
