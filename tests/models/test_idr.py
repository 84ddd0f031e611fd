"""The assembled model: tracing, rendering, and gradients of a step against finite differences."""

import dataclasses

import pytest
import torch

from nsr.config import Variant
from nsr.encoders.hash_grid import HashGridConfig
from nsr.encoders.positional import PositionalConfig
from nsr.encoders.spherical_harmonics import SphericalHarmonicsConfig
from nsr.geometry.voxels import Voxels
from nsr.models.idr import IDRModel, ModelConfig
from nsr.models.implicit_network import ImplicitNetworkConfig
from nsr.models.losses import eikonal_loss, mask_loss, smoothness_loss
from nsr.models.rendering_network import RenderingNetwork, RenderingNetworkConfig
from nsr.ops.sphere_trace import TraceOptions
from nsr.types import Rays

GRID = HashGridConfig(levels=4, base_resolution=4, max_resolution=20, log2_table_size=10, init_scale=0.05)
SMALL = ModelConfig(
    implicit_network=ImplicitNetworkConfig(
        dims=(64, 64, 64), skip_in=(2,), feature_size=8, encoder=Variant("vanilla", PositionalConfig(frequencies=2))
    ),
    rendering_network=RenderingNetworkConfig(dims=(24,)),
)


def rays_at_the_origin(n: int, seed: int = 0, spread: float = 0.5) -> Rays:
    generator = torch.Generator().manual_seed(seed)
    origins = 3.0 * torch.nn.functional.normalize(torch.randn(n, 3, generator=generator), dim=-1)
    targets = spread * (torch.rand(n, 3, generator=generator) - 0.5)
    return Rays(origins, torch.nn.functional.normalize(targets - origins, dim=-1))


def nothing(n: int = 0) -> torch.Tensor:
    return torch.zeros(n, 3)


def test_seed_decides_the_weights_and_the_global_generator_is_left_alone():
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    a, b, c = (IDRModel.build(SMALL, seed).state_dict() for seed in (1, 1, 2))
    assert torch.equal(torch.rand(3), expected)
    assert all(torch.equal(a[k], b[k]) for k in a)
    assert not all(torch.equal(a[k], c[k]) for k in a)


def test_render_finds_the_surface_and_leaves_misses_white():
    model = IDRModel.build(SMALL, 0)
    toward = rays_at_the_origin(50)
    away = Rays(toward.origins, -toward.directions)
    output = model.render(Rays(torch.cat([toward.origins, away.origins]), torch.cat([toward.directions, away.directions])))
    assert output.hit[:50].all()
    assert not output.hit[50:].any()
    with torch.no_grad():
        assert model.sdf(toward.at(output.distance[:50])).abs().max() < 1e-3
    assert torch.allclose(output.normal[:50].norm(dim=-1), torch.ones(50), atol=1e-5)
    assert (output.rgb[50:] == 1).all()
    assert (output.normal[50:] == 0).all()
    assert (output.distance[50:] == 0).all()


def test_surface_colors_are_those_of_the_rendering_and_leave_the_shape_alone():
    model, rays = IDRModel.build(SMALL, 0), rays_at_the_origin(50)
    rgb, index, _ = model.surface_colors(rays)
    rendered = model.render(rays)
    assert torch.equal(index, rendered.hit.nonzero()[:, 0])
    torch.testing.assert_close(rgb, rendered.rgb[index])
    rgb.square().sum().backward()
    assert all(p.grad is None for p in model.implicit_network.parameters())
    assert all(p.grad is not None for p in model.rendering_network.parameters())


def test_rendering_does_not_depend_on_chunks():
    model = IDRModel.build(SMALL, 0)
    rays = rays_at_the_origin(40)
    whole, pieces = model.render(rays), model.render(rays, chunk=7)
    assert torch.allclose(whole.rgb, pieces.rgb, atol=1e-5)
    assert torch.equal(whole.hit, pieces.hit)


def test_render_of_no_rays():
    output = IDRModel.build(SMALL, 0).render(Rays(nothing(), nothing()))
    assert output.rgb.shape == (0, 3)
    assert output.hit.dtype == torch.bool


@pytest.mark.parametrize("reevaluate", [True, False])
def test_colour_gradient_reaches_the_shape(reevaluate):
    """With the intersection differentiable, a loss on colour alone moves the surface; that is IDR's point (sec. 3.1)."""
    model = IDRModel.build(dataclasses.replace(SMALL, reevaluate=reevaluate), 0)
    rays = rays_at_the_origin(30)
    output = model(rays, torch.ones(30, dtype=torch.bool), nothing(4), nothing())
    assert output.surface.all()
    grads = torch.autograd.grad(output.rgb.sum(), model.implicit_network.lin2.parameters())
    assert all(g.abs().max() > 0 for g in grads)


def test_step_gradient_equals_finite_differences_through_the_tracer():
    """d (sum of weighted colour) / d (a shift of the surface), with the rays traced anew for each shift."""
    # Hits are accepted within 1e-9 of the surface: the published 5e-5 would be half of the shift below.
    tracer = TraceOptions(threshold=1e-9, max_iterations=60)
    config = dataclasses.replace(SMALL, ray_tracer=tracer, min_cosine=1e-4)
    model = IDRModel.build(config, 0).double()
    rays = Rays(*(t.double() for t in dataclasses.astuple(rays_at_the_origin(12, spread=0.3))))
    mask = torch.ones(12, dtype=torch.bool)
    weight = torch.randn(12, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    bias = model.implicit_network.lin3.bias

    def loss() -> torch.Tensor:
        return (model(rays, mask, nothing().double(), nothing().double()).rgb * weight).sum()

    (grad,) = torch.autograd.grad(loss(), bias)
    step = 1e-4
    with torch.no_grad():
        values = []
        for sign in (1, -1):
            bias[0] += sign * step
            values.append(loss().item())
            bias[0] -= sign * step
    numeric = (values[0] - values[1]) / (2 * step)
    assert abs(grad[0].item() - numeric) < 1e-6 * abs(numeric)


@pytest.mark.parametrize("reevaluate", [True, False])
def test_cameras_are_moved_by_colour_and_mask_but_not_by_the_eikonal_term(reevaluate):
    model = IDRModel.build(dataclasses.replace(SMALL, reevaluate=reevaluate), 0).double()
    rays = Rays(*(t.double() for t in dataclasses.astuple(rays_at_the_origin(20))))
    shift = torch.zeros(3, dtype=torch.float64, requires_grad=True)
    mask = torch.arange(20) < 12
    moved = Rays(rays.origins + shift, rays.directions)
    output = model(moved, mask, nothing(5).double(), 0.01 * torch.ones(6, 3, dtype=torch.float64))

    def pull(term: torch.Tensor) -> torch.Tensor:
        return torch.autograd.grad(term, shift, retain_graph=True, materialize_grads=True)[0]

    assert pull(output.rgb.sum()).abs().max() > 1e-3
    assert pull(mask_loss(output.sdf, output.surface, mask.double(), 50.0)).abs().max() > 1e-3
    assert not pull(eikonal_loss(output.gradient)).any()
    assert not pull(smoothness_loss(output.centre_gradient, output.neighbour_gradient)).any()
    # The distance follows the cameras as the network's own derivative says.
    points = rays.at(model.trace(rays, mask).distance) + shift
    torch.testing.assert_close(pull(output.sdf[~mask].sum()), pull(model.sdf(points)[~mask].sum()))


def test_colour_gradient_of_the_cameras_equals_finite_differences():
    """d (weighted colour) / d (a shift of all rays), with the rays traced anew for each shift."""
    tracer = TraceOptions(threshold=1e-9, max_iterations=60)
    config = dataclasses.replace(SMALL, ray_tracer=tracer, min_cosine=1e-4, reevaluate=False)
    model = IDRModel.build(config, 0).double()
    rays = Rays(*(t.double() for t in dataclasses.astuple(rays_at_the_origin(12, spread=0.3))))
    weight = torch.randn(12, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)

    def loss(shift: torch.Tensor) -> torch.Tensor:
        moved = Rays(rays.origins + shift, rays.directions)
        empty = nothing().double()
        return (model(moved, torch.ones(12, dtype=torch.bool), empty, empty).rgb * weight).sum()

    shift = torch.zeros(3, dtype=torch.float64, requires_grad=True)
    (grad,) = torch.autograd.grad(loss(shift), shift)
    step = 1e-4
    for axis, unit in enumerate(torch.eye(3, dtype=torch.float64)):
        ends = [loss(sign * step * unit).item() for sign in (1, -1)]
        numeric = (ends[0] - ends[1]) / (2 * step)
        assert grad[axis].item() == pytest.approx(numeric, rel=1e-5, abs=1e-8)


def test_masked_out_rays_have_no_colour_but_a_distance():
    model = IDRModel.build(SMALL, 0)
    rays = rays_at_the_origin(20)
    mask = torch.arange(20) < 12
    output = model(rays, mask, nothing(5), 0.01 * torch.ones(6, 3))
    assert torch.equal(output.surface, mask)
    assert output.rgb.shape == (12, 3)
    assert output.sdf.shape == (20,)
    assert output.gradient.shape == (20 + 5 + 6, 3)
    assert output.neighbour_gradient.shape == (6, 3)
    # Background rays are judged at their point of smallest SDF, which lies inside here.
    assert (output.sdf[~mask] < -0.05).all()


def test_hits_in_free_space_are_told_apart_and_not_shaded():
    model = IDRModel.build(SMALL, 0)
    rays = rays_at_the_origin(20)
    mask = torch.arange(20) < 12
    points = rays.at(model.trace(rays, mask).distance)
    half = Voxels(torch.zeros(33, 33, 33, dtype=torch.bool), 1.2)
    half.occupied[17:] = True
    output = model(rays, mask, nothing(5), 0.01 * torch.ones(6, 3), half)
    right = points[:, 0] > 0.5 * half.size
    assert 0 < right[mask].sum() < 12
    assert torch.equal(output.surface, mask & ~right)
    assert torch.equal(output.free[mask], right[mask])
    assert output.rgb.shape == output.points.shape == (int((mask & ~right).sum()), 3)


@pytest.mark.parametrize(("mode", "inputs"), [("idr", 3 + 15 + 3 + 8), ("no_view_dir", 3 + 3 + 8), ("no_normal", 3 + 15 + 8)])
def test_rendering_modes_leave_out_what_they_say(mode, inputs):
    config = RenderingNetworkConfig(mode=mode, dims=(16,), view_encoder=Variant("sh", SphericalHarmonicsConfig()))
    network = RenderingNetwork(config, feature_size=8)
    assert network.lin0.in_features == inputs
    parts = [torch.randn(5, n, generator=torch.Generator().manual_seed(n)).requires_grad_() for n in (3, 3, 3, 8)]
    rgb = network(*parts)
    assert ((rgb > 0) & (rgb < 1)).all()
    points, normals, views, _ = torch.autograd.grad(rgb.sum(), parts, materialize_grads=True)
    assert points.abs().max() > 0
    assert (normals.abs().max() > 0) == (mode != "no_normal")
    assert (views.abs().max() > 0) == (mode != "no_view_dir")


def test_published_rendering_network_has_the_published_shape():
    network = RenderingNetwork(RenderingNetworkConfig(), feature_size=256)
    shapes = [tuple(getattr(network, f"lin{i}").weight.shape) for i in range(network.depth)]
    assert shapes == [(512, 289), (512, 512), (512, 512), (512, 512), (3, 512)]


@pytest.mark.parametrize("with_mask", [False, True])
def test_tracing_in_one_op_equals_the_wavefront(with_mask, monkeypatch):
    network = ImplicitNetworkConfig(
        dims=(32,), skip_in=(), feature_size=3, activation="squareplus", weight_norm=False, encoder=Variant("hashgrid", GRID)
    )
    model = IDRModel.build(dataclasses.replace(SMALL, implicit_network=network), 0)
    rays = rays_at_the_origin(200, spread=2.0)
    mask = torch.arange(200) % 3 > 0 if with_mask else None
    fused = model.trace(rays, mask)
    monkeypatch.setattr(model.implicit_network, "fused", lambda: None)
    wavefront = model.trace(rays, mask)
    assert fused.hit.any()
    assert (fused.hit == wavefront.hit).float().mean() > 0.98  # rounding decides at the silhouette
    same = fused.hit & wavefront.hit
    same &= mask if mask is not None else same
    torch.testing.assert_close(fused.distance[same], wavefront.distance[same], rtol=0, atol=2e-4)
