"""Every registered encoder: value, vector-Jacobian product, second derivatives, gradients to all parameters."""

import math

import pytest
import torch
from support import tiny_cuda_nn

from nsr.config import Variant
from nsr.encoders import POINT_ENCODERS, VIEW_ENCODERS, build_encoder
from nsr.encoders.filter_bank import (
    FilterBankConfig,
    ModulatedFilterBankConfig,
    TcnnFilterBankConfig,
    TcnnModulatedFilterBankConfig,
)
from nsr.encoders.fourier import FourierConfig
from nsr.encoders.hash_grid import HashGridConfig
from nsr.encoders.positional import PositionalConfig
from nsr.encoders.spherical_harmonics import SphericalHarmonicsConfig
from nsr.encoders.tiny_cuda_nn import TcnnHashGridConfig

SMALL_BANK = {"levels": 3, "base_resolution": 2, "max_resolution": 5, "log2_table_size": 6, "width": 4, "init_scale": 0.3}
SMALL_BANK |= {"omega": 3.0, "head_omega": 2.0, "sigma": 0.4}
CONFIGS = [
    PositionalConfig(frequencies=0),
    PositionalConfig(frequencies=4),
    FourierConfig(channels=5, sigma=0.7),
    SphericalHarmonicsConfig(degree=1),
    SphericalHarmonicsConfig(degree=2),
    SphericalHarmonicsConfig(degree=3),
    HashGridConfig(levels=3, base_resolution=3, max_resolution=11, log2_table_size=7, init_scale=0.5),
    HashGridConfig(
        levels=2, base_resolution=3, max_resolution=5, log2_table_size=7, init_scale=0.5, interpolation="smoothstep"
    ),
    FilterBankConfig(**SMALL_BANK),
    FilterBankConfig(**SMALL_BANK, head="sum", extent=1.2),
    ModulatedFilterBankConfig(**SMALL_BANK),
    ModulatedFilterBankConfig(**SMALL_BANK, head="sum", interpolation="smoothstep"),
    TcnnHashGridConfig(levels=3, base_resolution=3, max_resolution=11, log2_table_size=7, init_scale=0.5),
    TcnnHashGridConfig(
        levels=2, base_resolution=3, max_resolution=5, log2_table_size=7, init_scale=0.5, interpolation="smoothstep"
    ),
    TcnnFilterBankConfig(**SMALL_BANK, extent=1.2),
    TcnnModulatedFilterBankConfig(**SMALL_BANK),
]


@pytest.fixture(autouse=True)
def without_gpu(monkeypatch):
    tiny_cuda_nn.install(monkeypatch)


@pytest.fixture(params=CONFIGS, ids=repr)
def encoder(request):
    return attentive(request.param.build().double())


def attentive(encoder):
    """A modulated bank with scores as training makes them: at first they are zero, and all levels weigh the same."""
    if hasattr(encoder, "score"):
        with torch.no_grad():
            encoder.score += torch.randn(encoder.score.shape, generator=torch.Generator().manual_seed(1)) / 2
    return encoder


def points(n: int, seed: int = 0) -> torch.Tensor:
    x = torch.rand(n, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return 1.8 * x - 0.9


def test_registry_builds_every_name():
    for registry in (POINT_ENCODERS, VIEW_ENCODERS):
        for name, config in registry.items():
            encoder = build_encoder(Variant(name, config()))
            assert encoder(torch.zeros(2, 3)).shape == (2, encoder.output_dim)


def test_raw_coordinates_come_first_and_width_is_as_declared(encoder):
    x = points(7)
    value = encoder(x)
    assert value.shape == (7, encoder.output_dim)
    assert torch.equal(value[:, :3], x)


def test_no_points_are_encoded_too(encoder):
    value, vjp = encoder.forward_with_vjp(points(0))
    assert value.shape == encoder(points(0)).shape == (0, encoder.output_dim)
    assert vjp(value).shape == (0, 3)


def test_value_does_not_depend_on_the_batch(encoder):
    x = points(9)
    assert torch.allclose(encoder(x)[4], encoder(x[4:5])[0], rtol=0, atol=1e-14)


def test_vjp_equals_autograd(encoder, monkeypatch):
    """And what an encoder makes of x has a part in it, at every point: x itself comes first, with a gradient of its own."""
    x = points(11).requires_grad_()
    value, vjp = encoder.forward_with_vjp(x)
    cotangent = torch.randn(value.shape, generator=torch.Generator().manual_seed(1), dtype=value.dtype)
    (expected,) = torch.autograd.grad(encoder(x), x, cotangent)
    assert torch.allclose(vjp(cotangent), expected, rtol=1e-10, atol=1e-12)
    through_x = cotangent[:, :3]
    if encoder.output_dim == 3:
        assert torch.equal(expected, through_x)
        return
    assert (expected - through_x).abs().amax(dim=1).min() > 1e-3
    if hasattr(encoder, "grid"):  # a bank's first layer sees x beside the grid
        features = encoder.grid.features
        monkeypatch.setattr(encoder.grid, "features", lambda x, *rest: features(x.detach(), *rest))
        (without_grid,) = torch.autograd.grad(encoder(x), x, cotangent)
        assert (expected - without_grid).abs().amax(dim=1).min() > 1e-3


def test_value_and_vjp_are_differentiable_in_point_cotangent_and_parameters(encoder):
    x = points(3, seed=2).requires_grad_()
    cotangent = torch.randn(3, encoder.output_dim, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    parameters = list(encoder.parameters())

    def normal(x, cotangent, *_):
        return encoder.forward_with_vjp(x)[1](cotangent)

    # In fast mode: one random direction of each tensor, instead of every entry.
    assert torch.autograd.gradcheck(lambda x, *_: encoder(x), (x, *parameters), fast_mode=True)
    assert torch.autograd.gradcheck(normal, (x, cotangent.requires_grad_(), *parameters), fast_mode=True)


def test_every_parameter_receives_gradient_from_value_and_from_vjp(encoder):
    x = points(4000, seed=4)
    value, vjp = encoder.forward_with_vjp(x)
    for output in (value, vjp(torch.ones_like(value))):
        for parameter in encoder.parameters():
            (grad,) = torch.autograd.grad(output.square().sum(), parameter, retain_graph=True)
            assert (grad != 0).double().mean() > 0.9


def test_positional_matches_the_formula():
    x = points(5)
    value = PositionalConfig(frequencies=3).build().double()(x)
    expected = [x]
    for k in range(3):
        expected += [torch.sin(2**k * x), torch.cos(2**k * x)]
    assert torch.allclose(value, torch.cat(expected, 1))


def test_fourier_frequencies_follow_sigma_and_seed():
    wide = FourierConfig(channels=4000, sigma=3.0, seed=1).build()
    cycles = wide.angular_frequencies / (2 * math.pi)
    assert abs(cycles.std().item() - 3.0) < 0.1
    assert torch.equal(wide.angular_frequencies, FourierConfig(channels=4000, sigma=3.0, seed=1).build().angular_frequencies)
    assert not torch.equal(
        wide.angular_frequencies, FourierConfig(channels=4000, sigma=3.0, seed=2).build().angular_frequencies
    )
    assert "angular_frequencies" in wide.state_dict()


def test_spherical_harmonics_are_orthonormal_on_the_sphere():
    """Gauss-Legendre in z, uniform in azimuth: exact for the products of two band-3 functions."""
    z, weight = torch.tensor([]), None
    import numpy as np

    nodes, node_weights = np.polynomial.legendre.leggauss(8)
    azimuth = torch.arange(16, dtype=torch.float64) * (2 * math.pi / 16)
    z = torch.as_tensor(nodes)[:, None].expand(-1, 16)
    r = (1 - z**2).sqrt()
    directions = torch.stack([r * azimuth.cos(), r * azimuth.sin(), z], -1).reshape(-1, 3)
    weight = torch.as_tensor(node_weights)[:, None].expand(-1, 16).reshape(-1) * (2 * math.pi / 16)
    value = SphericalHarmonicsConfig(degree=3).build().double()(directions)
    gram = value.T @ (value * weight[:, None])
    expected = torch.eye(15, dtype=torch.float64)
    expected[:3, :3] *= 4 * math.pi / 3  # band 1 is the raw direction
    assert torch.allclose(gram, expected, atol=1e-12)


def test_hash_grid_levels_appear_with_progress():
    encoder = HashGridConfig(levels=6, base_resolution=4, max_resolution=32, start_levels=2, init_scale=0.5).build()
    x = points(50).float()
    seen = []
    for fraction in (0.0, 0.3, 0.6, 0.99, 1.0):
        encoder.set_progress(fraction)
        levels = encoder(x)[:, 3:].unflatten(1, (6, 2)).abs().amax(dim=(0, 2)) > 0
        seen.append(int(levels.sum()))
        assert levels[: seen[-1]].all()
    assert seen[0] == 2
    assert seen[-1] == 6
    assert seen == sorted(seen)


@pytest.mark.parametrize("shown", [3, 2])
@pytest.mark.parametrize("head", ["concatenate", "sum"])
@pytest.mark.parametrize("config", [FilterBankConfig, ModulatedFilterBankConfig])
def test_banks_are_what_their_formulas_say(config, head, shown):
    """One point after the other, weights modulated as matrices: the formulas at the head of nsr/encoders/filter_bank.py."""
    encoder = attentive(config(**SMALL_BANK, head=head, extent=1.2).build().double())
    encoder.active_levels = shown
    x = points(9)
    for point, features, value in zip(x, encoder.grid.features(x, encoder.table, shown), encoder(x), strict=True):
        hidden, taps = torch.sin(3.0 * (encoder.first_weight @ (point / 1.2) + encoder.first_bias)), []
        for level, feature in enumerate(features.view(3, -1)[:shown]):
            gamma = torch.sin(2 * math.pi * (encoder.frequencies[level] @ feature))
            weight = encoder.weight[level]
            if config is ModulatedFilterBankConfig:
                modulated = weight * (1 + encoder.style[level] @ gamma)
                weight = modulated * (weight.norm(dim=1) / modulated.norm(dim=1))[:, None]
                gamma = 0
            hidden = torch.sin(3.0 * (weight @ hidden + encoder.bias[level])) + gamma
            taps.append(hidden)
        taps = torch.stack(taps)
        if config is ModulatedFilterBankConfig:
            scores = (encoder.score[:shown] * taps).sum(1) + encoder.score_bias[:shown]
            taps = shown * scores.softmax(0)[:, None] * taps
        if head == "sum":
            layers = zip(encoder.head_weight, taps, encoder.head_bias, strict=False)
            expected = sum(torch.sin(2.0 * (weight @ tap + bias)) for weight, tap, bias in layers)
        else:
            expected = torch.cat([taps.flatten(), torch.zeros((3 - shown) * 4, dtype=taps.dtype)])
        assert torch.allclose(value, torch.cat([point, expected]), rtol=0, atol=1e-6)


def test_attention_runs_over_the_levels():
    """Each point weighs its levels by factors that are 1 on average, and differ from level to level and from point to point."""
    encoder = ModulatedFilterBankConfig(**SMALL_BANK).build().double()
    assert not encoder.score.any()
    encoder = attentive(encoder)
    x = points(40)
    weighed = encoder(x)[:, 3:]
    with torch.no_grad():
        encoder.score.zero_()  # all levels alike
        weights = (weighed / encoder(x)[:, 3:]).unflatten(1, (3, 4))  # [N, level, width]
    assert torch.allclose(weights, weights[:, :, :1])
    assert torch.allclose(weights.mean(dim=1), torch.ones(40, 4, dtype=torch.float64))
    assert weights.std(dim=0).min() > 0.05
    assert weights.std(dim=1).median() > 0.05


def test_a_bank_leaves_hidden_levels_out():
    for config in (FilterBankConfig, ModulatedFilterBankConfig):
        encoder = config(**SMALL_BANK, start_levels=1).build()
        encoder.set_progress(0.0)
        value, vjp = encoder.forward_with_vjp(points(50).float())
        (value.square().sum() + vjp(torch.ones_like(value)).square().sum()).backward()
        taps = value[:, 3:].unflatten(1, (3, 4))
        assert taps[:, 0].all()
        assert not taps[:, 1:].any()
        assert encoder.weight.grad[0].any()
        assert not encoder.weight.grad[1:].any()
        assert not encoder.table.grad[encoder.spec.offsets[1] :].any()


def test_a_layer_without_weight_has_finite_gradients():
    """A row of zeros has no length to be brought back to."""
    encoder = attentive(ModulatedFilterBankConfig(**SMALL_BANK).build().double())
    with torch.no_grad():
        encoder.weight[0, 1] = 0
    value, vjp = encoder.forward_with_vjp(points(20))
    (value.square().sum() + vjp(torch.ones_like(value)).square().sum()).backward()
    assert all(parameter.grad.isfinite().all() for parameter in encoder.parameters())
