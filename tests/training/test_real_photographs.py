"""What real photographs do to a scene, and that training copes: exposures, wrong masks, objects cut by the border, cameras."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from support.disturbances import cropped, with_exposures, with_noisy_cameras
from support.painted_ball import PaintedBall, photographs
from support.tiny_run import tiny_config
from support.two_balls import cameras_around

from nsr.geometry.visual_hull import carve
from nsr.training.photometric import PhotometricTerm
from nsr.training.trainer import Trainer


@pytest.fixture(scope="module")
def scene():
    return photographs(cameras_around(12, 48, 36), PaintedBall())


def trained(scene, *overrides: str, epochs: int = 12, **options) -> Trainer:
    trainer = Trainer(tiny_config("train.budget=0", f"train.nepoch={epochs}", *overrides), scene, **options)
    trainer.fit()
    return trainer


# ----------------------------------------------------------------------------------------------------------- exposure


def test_exposures_are_learned(scene):
    spoiled = with_exposures(scene, strength=0.3)
    options = ["loss.photometric_weight=0", "start.type=hull", "exposure.type=affine", "exposure.learning_rate=2e-2"]
    trainer = trained(spoiled, *options, epochs=8)
    # The maps make a grey as bright as the photographs were taken, but for what all of them share.
    inside = [mask > 0 for mask in scene.masks]
    before, after = (torch.stack([s.images[v][inside[v]].float().mean() for v in range(12)]) for s in (scene, spoiled))
    grey = torch.full((12, 3), float(before.mean() / 255))
    learned = trainer.exposure(grey, torch.arange(12)).detach().mean(dim=1)
    assert torch.corrcoef(torch.stack([after / before, learned]))[0, 1] > 0.8


def test_a_run_with_exposures_resumes_bit_for_bit(scene, tmp_path):
    options = ["exposure.type=affine"]
    straight = trained(with_exposures(scene), *options, epochs=4)
    config = tiny_config("train.budget=0", "train.nepoch=4", *options)
    first = Trainer(config, with_exposures(scene))
    first.start()
    for _ in range(20):
        first.step()
    first.save(tmp_path)
    second = Trainer(config, with_exposures(scene), seed=9)
    second.resume(tmp_path / "checkpoints" / "latest.safetensors")
    second.fit()
    assert straight.exposure.penalty() > 0
    assert torch.equal(second.exposure.maps(), straight.exposure.maps())
    for got, expected in zip(second.model.state_dict().values(), straight.model.state_dict().values(), strict=True):
        assert torch.equal(got, expected)


# -------------------------------------------------------------------------------------------------------------- masks


def half_missing(scene):
    """The scene whose mask 4 lacks the left half of the ball."""
    masks = scene.masks.clone()
    columns = masks[4].any(0).nonzero()[:, 0]
    masks[4, :, : int(columns.float().mean())] = 0
    return replace(scene, masks=masks)


def test_half_a_mask_does_not_cut_the_hull_in_half(scene):
    bitten = half_missing(scene)
    mended = Trainer(tiny_config("start.max_misses=1"), bitten).scene
    exact, cut, whole = (carve(s.masks, s.cameras, 48, 1.2).sum().item() for s in (scene, bitten, mended))
    assert cut < 0.7 * exact
    assert whole == pytest.approx(exact, rel=0.05)


def test_the_hull_keeps_what_a_cut_view_does_not_see(scene):
    cut, views = cropped(scene, 30, 30, share=0.4)
    touching = [v for v in views if cut.masks[v, :, [0, -1]].any() or cut.masks[v, [0, -1]].any()]
    assert len(touching) >= 2
    hulls = [carve(s.masks, s.cameras, 48) for s in (scene, cut)]
    assert not (hulls[0] & ~hulls[1]).any()
    assert hulls[1].sum() < 1.25 * hulls[0].sum()


# ------------------------------------------------------------------------------------------------------------ cameras


def test_the_photometric_term_looks_from_where_the_cameras_are_now(scene):
    noisy = with_noisy_cameras(scene, degrees=2.0, percent=2.0)
    config = tiny_config().photometric
    term, true = PhotometricTerm(noisy, config), PhotometricTerm(scene, config)
    assert not torch.allclose(term.levels[0].projections, true.levels[0].projections)
    term.follow(scene.cameras)
    for got, expected in zip(term.levels, true.levels, strict=True):
        for name in ("ray_matrices", "projections", "centers"):
            torch.testing.assert_close(getattr(got, name), getattr(expected, name))
    assert term.cameras is scene.cameras


def test_a_training_step_moves_the_photometric_term_along(scene):
    options = ["train.budget=0", "train.nepoch=1", "train.learning_rate_cam=0.01"]
    trainer = Trainer(tiny_config(*options), scene, train_cameras=True)
    trainer.start()
    trainer.step()
    after_one = trainer.cameras().centers.detach().clone()
    trainer.step()
    assert not torch.allclose(after_one, scene.cameras.centers)
    torch.testing.assert_close(trainer.photometric.levels[0].centers, after_one)


def test_the_rate_of_the_cameras_falls_as_asked(scene):
    options = ["train.learning_rate_cam=0.01", "train.lr_final_cam=0.1", "train.color_from=1"]
    trainer = Trainer(tiny_config("train.budget=0", "train.nepoch=1", *options), scene, train_cameras=True)
    for step in range(12):
        trainer.step()
        rate = trainer.optimisers.members["cameras"].param_groups[0]["lr"]
        assert rate == pytest.approx(0.01 * 0.1 ** (step / 12))


def test_a_mask_in_dispute_is_mended_for_the_start_and_left_out_of_the_steps(scene):
    bitten = half_missing(scene)
    trainer = Trainer(tiny_config("start.max_misses=1"), bitten)
    bite = bitten.masks != scene.masks
    assert (trainer.scene.masks[bite] == 255).float().mean() > 0.9
    for _ in range(20):
        batch = trainer.sampler.draw(500)
        column, row = batch.pixels.long().unbind(-1)
        assert bite[batch.view, row, column].float().mean() < 0.002
