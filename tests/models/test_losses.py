"""The losses against hand-computed values and the formulas of the paper."""

import math

import pytest
import torch

from nsr.models.idr import TrainingOutput
from nsr.models.losses import (
    LossConfig,
    eikonal_loss,
    fading_weights,
    free_loss,
    idr_losses,
    mask_loss,
    rgb_loss,
    smoothness_loss,
)

FIRST = fading_weights(LossConfig(), 0.0)


def test_rgb_is_l1_in_idr_scale():
    rgb = torch.tensor([[0.5, 0.5, 0.5], [1.0, 0.0, 0.25]])
    target = torch.tensor([[0.5, 0.25, 0.5], [0.0, 0.0, 0.25]])
    assert math.isclose(rgb_loss(rgb, target, rays=5).item(), 2 * (0.25 + 1.0) / 5, rel_tol=1e-6)


def test_small_colour_differences_may_count_by_their_square():
    rgb = torch.tensor([[0.5, 0.05, 0.0]])
    huber = (0.5 - 0.1 / 2) + 0.05**2 / (2 * 0.1)  # Huber's loss with its slope of 1 outside
    assert math.isclose(rgb_loss(rgb, torch.zeros(1, 3), rays=1, quadratic_below=0.1).item(), 2 * huber, rel_tol=1e-6)


def test_mask_cross_entropy_counts_only_rays_off_the_surface():
    sdf = torch.tensor([0.1, -0.02, 0.3], requires_grad=True)
    surface = torch.tensor([False, True, False])
    mask = torch.tensor([0.0, 1.0, 1.0])
    loss = mask_loss(sdf, surface, mask, alpha=50.0)
    expected = (math.log1p(math.exp(-5.0)) + math.log1p(math.exp(15.0))) / (50.0 * 3)
    assert math.isclose(loss.item(), expected, rel_tol=1e-5)
    (grad,) = torch.autograd.grad(loss, sdf)
    assert grad[0] < 0  # background: the surface moves away, f grows
    assert grad[1] == 0
    assert grad[2] > 0  # object without surface: f falls


def test_rays_that_miss_inside_the_mask_may_count_more():
    sdf, surface, mask = torch.tensor([0.1, 0.3]), torch.tensor([False, False]), torch.tensor([0.0, 1.0])
    outside, missing = math.log1p(math.exp(-5.0)), math.log1p(math.exp(15.0))
    loss = mask_loss(sdf, surface, mask, alpha=50.0, missing_factor=4.0)
    assert math.isclose(loss.item(), (outside + 4.0 * missing) / (50.0 * 2), rel_tol=1e-5)


def test_eikonal_is_zero_for_unit_gradients_and_finite_at_zero():
    unit = torch.nn.functional.normalize(torch.randn(10, 3), dim=-1)
    assert eikonal_loss(unit) < 1e-10
    assert math.isclose(eikonal_loss(3 * unit).item(), 4.0, rel_tol=1e-5)
    zero = torch.zeros(2, 3, requires_grad=True)
    (grad,) = torch.autograd.grad(eikonal_loss(zero), zero)
    assert torch.isfinite(grad).all()


def test_smoothness_ignores_length_and_grows_with_the_angle():
    x = torch.tensor([[2.0, 0.0, 0.0]])
    assert smoothness_loss(x, 5 * x) < 1e-5
    angles = [smoothness_loss(x, torch.tensor([[math.cos(a), math.sin(a), 0.0]])).item() for a in (0.1, 0.5, 1.0)]
    assert all(math.isclose(got, 2 * math.sin(a / 2), rel_tol=1e-4) for got, a in zip(angles, (0.1, 0.5, 1.0), strict=True))


def test_a_surface_in_free_space_is_pushed_away_though_the_mask_shows_the_object():
    sdf = torch.tensor([0.0, 0.0], requires_grad=True)
    nothing = torch.zeros(0, 3)
    neither, free = torch.tensor([[False, False], [True, False]])
    output = TrainingOutput(
        neither, neither.nonzero()[:, 0], free, nothing, nothing, nothing, sdf, sdf[:0], torch.ones(1, 3), nothing, nothing
    )
    terms = idr_losses(output, torch.zeros(2, 3), torch.ones(2), LossConfig(), alpha=50.0, fading=FIRST)
    (grad,) = torch.autograd.grad(terms["mask"], sdf)
    assert grad[0] < 0  # f grows: the surface leaves
    assert grad[1] > 0


def test_what_forms_in_empty_space_is_pushed_out():
    sdf = torch.tensor([0.2, -0.1, -0.3], requires_grad=True)
    free_loss(sdf).backward()
    assert free_loss(sdf).item() == pytest.approx(0.4 / 3)
    assert torch.equal(sdf.grad, torch.tensor([0.0, -1 / 3, -1 / 3]))


def test_terms_are_weighted_and_some_fade():
    generator = torch.Generator().manual_seed(0)
    output = TrainingOutput(
        surface=torch.tensor([True, False]),
        ray=torch.tensor([0]),
        free=torch.tensor([False, False]),
        points=torch.zeros(1, 3),
        normal=torch.zeros(1, 3),
        rgb=torch.rand(1, 3, generator=generator),
        sdf=torch.tensor([0.0, 0.1]),
        free_sdf=torch.tensor([0.3, -0.2]),
        gradient=torch.randn(6, 3, generator=generator),
        centre_gradient=torch.randn(1, 3, generator=generator),
        neighbour_gradient=torch.randn(1, 3, generator=generator),
    )
    config = LossConfig(
        rgb_weight=2.0,
        mask_weight=3.0,
        eikonal_weight=5.0,
        smoothness_weight=7.0,
        smoothness_final=0.1,
        free_weight=13.0,
        photometric_weight=11.0,
        photometric_final=0.02,
        photometric_fade_from=0.5,
    )
    rgb, mask = torch.rand(2, 3, generator=generator), torch.tensor([1.0, 0.0])
    seen = torch.tensor(0.3)
    for progress, smoothness, photometric in ((0.0, 7.0, 11.0), (0.5, 7.0 * 0.1**0.5, 11.0), (1.0, 0.7, 0.22)):
        fading = fading_weights(config, progress)
        terms = idr_losses(output, rgb, mask, config, alpha=50.0, fading=fading, photometric=seen)
        expected = 2 * terms["rgb"] + 3 * terms["mask"] + 5 * terms["eikonal"] + smoothness * terms["smoothness"]
        assert terms["free"].item() == pytest.approx(0.1)
        expected = expected + 13 * terms["free"]
        assert torch.allclose(terms["loss"], expected + photometric * seen)
        without = idr_losses(output, rgb, mask, config, alpha=50.0, fading=fading)
        assert "photometric" not in without
        assert torch.allclose(without["loss"], expected)


def test_colours_mixed_with_the_background_may_be_left_out():
    empty = torch.zeros(0, 3)
    rgb = torch.tensor([[0.5, 0.5, 0.5], [0.2, 0.2, 0.2], [0.9, 0.1, 0.1]])
    surface = torch.tensor([True, False, True, True])
    photograph = torch.tensor([[0.5, 0.5, 0.4], [1.0, 1, 1], [0.0, 1.0, 0.0], [0.9, 0.1, 0.0]])
    mask = torch.tensor([1.0, 0.0, 0.7, 1.0])
    free = torch.zeros(4, dtype=torch.bool)
    ray, sdf = surface.nonzero()[:, 0], torch.zeros(4)
    output = TrainingOutput(surface, ray, free, empty, empty, rgb, sdf, sdf[:0], torch.ones(1, 3), empty, empty)

    def colour(least: float) -> float:
        config = LossConfig(rgb_min_mask=least)
        return idr_losses(output, photograph, mask, config, alpha=50.0, fading=FIRST)["rgb"].item()

    assert math.isclose(colour(0.99), 2 * (0.1 + 0.1) / 4, rel_tol=1e-5)
    assert math.isclose(colour(0.5), 2 * (0.1 + 0.2 + 0.8 + 0.2 + 0.1) / 4, rel_tol=1e-5)
