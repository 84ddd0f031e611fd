"""The SDF network: gradient as a forward output, geometric initialisation, skip connections."""

import dataclasses

import pytest
import torch

from nsr.config import Variant
from nsr.encoders.filter_bank import FilterBankConfig, ModulatedFilterBankConfig
from nsr.encoders.fourier import FourierConfig
from nsr.encoders.hash_grid import HashGridConfig
from nsr.encoders.positional import PositionalConfig
from nsr.models.implicit_network import ImplicitNetwork, ImplicitNetworkConfig

GRID = Variant("hashgrid", HashGridConfig(levels=3, base_resolution=3, max_resolution=9, log2_table_size=9, init_scale=0.1))
BANK = Variant(
    "nffb", FilterBankConfig(levels=3, base_resolution=3, max_resolution=9, log2_table_size=9, width=8, omega=5.0, sigma=2.0)
)
VANILLA = Variant("vanilla", PositionalConfig(frequencies=3))
CONFIGS = {
    "small": ImplicitNetworkConfig(
        dims=(16,), skip_in=(), feature_size=5, activation="squareplus", weight_norm=False, encoder=GRID
    ),
    "bank": ImplicitNetworkConfig(
        dims=(16,), skip_in=(), feature_size=5, activation="squareplus", weight_norm=False, encoder=BANK
    ),
    "skip": ImplicitNetworkConfig(dims=(40, 40, 40), skip_in=(2,), feature_size=4, encoder=VANILLA),
    "skip_last": ImplicitNetworkConfig(dims=(40, 40), skip_in=(2,), feature_size=4, encoder=VANILLA),
    "fourier": ImplicitNetworkConfig(
        dims=(20, 20), skip_in=(), feature_size=3, encoder=Variant("fourier", FourierConfig(channels=4))
    ),
}


def build(config: ImplicitNetworkConfig, seed: int = 0) -> ImplicitNetwork:
    torch.manual_seed(seed)
    return ImplicitNetwork(config).double()


def points(n: int, seed: int = 0) -> torch.Tensor:
    return 1.6 * torch.rand(n, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) - 0.8


@pytest.fixture(params=CONFIGS)
def network(request):
    network = build(CONFIGS[request.param])
    with torch.no_grad():  # away from the initial sphere, where the encoded channels have no influence
        for parameter in network.parameters():
            parameter += 0.05 * torch.randn_like(parameter)
    return network


def test_gradient_output_equals_autograd(network):
    x = points(20).requires_grad_()
    (expected,) = torch.autograd.grad(network.sdf(x).sum(), x)
    output = network(x)
    assert torch.allclose(output.sdf, network.sdf(x), atol=1e-12)
    assert torch.allclose(output.gradient, expected, atol=1e-10)


def test_losses_on_the_gradient_equal_double_backward(network):
    """First-order autograd through the written-out reverse pass = autograd's own second derivative."""
    x = points(15, seed=1).requires_grad_()
    target = points(15, seed=2)
    wanted = [x, *network.parameters()]
    loss = (network(x).gradient - target).square().sum()
    ours = torch.autograd.grad(loss, wanted, materialize_grads=True)
    (gradient,) = torch.autograd.grad(network.sdf(x).sum(), x, create_graph=True)
    oracle = torch.autograd.grad((gradient - target).square().sum(), wanted, materialize_grads=True)
    for got, expected in zip(ours, oracle, strict=True):
        # torch's softplus is linear beyond 20 / beta, where the exact curvature is 2e-7: the two agree up to that.
        assert torch.allclose(got, expected, rtol=1e-6, atol=1e-5)


def test_published_network_starts_as_a_sphere_of_radius_bias():
    torch.manual_seed(0)
    network = ImplicitNetwork(ImplicitNetworkConfig())
    directions = torch.nn.functional.normalize(torch.randn(500, 3), dim=-1)
    # Softplus(100) rounds the cone off towards the centre, so the distance is right at and outside the surface only.
    for radius, tolerance in ((0.6, 0.06), (1.0, 0.1)):
        assert (network.sdf(radius * directions) - (radius - 0.6)).abs().mean() < tolerance
    assert (network.sdf(0.2 * directions) < -0.1).all()
    gradient = network(0.6 * directions).gradient
    assert (torch.nn.functional.normalize(gradient, dim=-1) * directions).sum(-1).min() > 0.9


def test_published_network_has_the_published_shape():
    network = ImplicitNetwork(ImplicitNetworkConfig())
    shapes = [tuple(network.layer(i).weight.shape) for i in range(network.depth)]
    assert shapes == [(512, 39), (512, 512), (512, 512), (473, 512), (512, 512), *[(512, 512)] * 3, (257, 512)]
    assert "lin0.parametrizations.weight.original0" in network.state_dict()


def test_every_parameter_receives_gradient(network):
    output = network(points(300, seed=5))
    loss = output.sdf.square().sum() + output.gradient.square().sum() + output.feature.square().sum()
    for name, grad in zip(dict(network.named_parameters()), torch.autograd.grad(loss, network.parameters()), strict=True):
        assert grad.abs().max() > 0, name


def test_empty_batch():
    network = build(CONFIGS["small"])
    output = network(points(0))
    assert output.sdf.shape == (0,)
    assert output.gradient.shape == (0, 3)


def test_impossible_skip_is_refused():
    with pytest.raises(ValueError, match="skip_in"):
        ImplicitNetworkConfig(dims=(8, 8), skip_in=(5,))
    with pytest.raises(ValueError, match="no room"):
        ImplicitNetwork(ImplicitNetworkConfig(dims=(8, 8), skip_in=(1,), encoder=VANILLA))


def test_which_networks_are_fused():
    """Hash grid, no skips, no weight norm, narrow, on a device with kernels: everything else goes layer by layer."""
    small = CONFIGS["small"]
    assert build(small).fused() is not None
    for change in ({"weight_norm": True}, {"dims": (129,)}, {"dims": (40, 40), "skip_in": (1,)}, {"encoder": VANILLA}):
        assert build(dataclasses.replace(small, **change)).fused() is None


def test_fused_network_equals_layer_by_layer(monkeypatch):
    """Values, and gradients of a loss on all outputs, with some levels hidden."""
    network, x = build(CONFIGS["small"]), points(50, seed=3).requires_grad_()
    network.encoder.active_levels = 2
    with torch.no_grad():
        for parameter in network.parameters():
            parameter += 0.05 * torch.randn_like(parameter)
    results = []
    for fused in (network.fused(), None):
        monkeypatch.setattr(network, "fused", lambda fused=fused: fused)
        with torch.no_grad():
            sdf = network.sdf(x)
        output = network(x)
        loss = sum(value.square().sum() for value in output)
        results.append((sdf, *output, *torch.autograd.grad(loss, [x, *network.parameters()])))
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-11)


def test_fused_network_follows_its_parameters():
    """The network is described anew at each call: an optimiser's step and a change of levels are seen."""
    network, x = build(CONFIGS["small"]), points(10)
    with torch.no_grad():
        before = network.sdf(x)
        network.lin0.weight += 0.1
        network.encoder.table += 0.1
        changed = network.sdf(x)
        network.encoder.active_levels = 0
        hidden = network.sdf(x)
    assert not torch.equal(before, changed)
    assert not torch.equal(changed, hidden)


@pytest.mark.parametrize("modulated", [False, True])
@pytest.mark.parametrize(("active", "dtype"), [(3, torch.float64), (2, torch.float64), (3, torch.float32)])
def test_the_fused_filter_banks_are_the_encoders_layer_by_layer(monkeypatch, active, dtype, modulated):
    """At values, gradients and the gradients of a loss on both."""
    encoder = Variant("stylemod_nffb", ModulatedFilterBankConfig(**dataclasses.asdict(BANK.options))) if modulated else BANK
    network = build(dataclasses.replace(CONFIGS["bank"], encoder=encoder)).to(dtype)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter += 0.05 * torch.randn_like(parameter)
    network.encoder.active_levels = active
    wanted, results = list(network.parameters()), []
    for fused in (True, False):
        if not fused:
            monkeypatch.setattr(ImplicitNetwork, "fused", lambda self: None)
        assert (network.fused() is not None) == fused
        output = network(points(50).to(dtype))
        with torch.no_grad():
            alone = network.sdf(points(50).to(dtype))
        loss = output.sdf.square().sum() + output.feature.sum() + output.gradient.square().sum()
        results.append([*output, alone, *torch.autograd.grad(loss, wanted, materialize_grads=True)])
    tolerance = 1e-4 if dtype == torch.float32 else 1e-10
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=tolerance, atol=tolerance * max(theirs.abs().max().item(), 1.0))


def test_banks_with_the_sum_head_go_layer_by_layer():
    """Rather than as something else."""
    summed = Variant("nffb", dataclasses.replace(BANK.options, head="sum"))
    assert build(dataclasses.replace(CONFIGS["bank"], encoder=BANK)).fused() is not None
    assert build(dataclasses.replace(CONFIGS["bank"], encoder=summed)).fused() is None
