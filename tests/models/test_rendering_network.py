"""The rendering network: its modes, and the fused op in its place."""

import dataclasses

import pytest
import torch

from nsr.config import Variant
from nsr.encoders.hash_grid import HashGridConfig
from nsr.encoders.positional import PositionalConfig
from nsr.encoders.spherical_harmonics import SphericalHarmonicsConfig
from nsr.models.rendering_network import RenderingNetwork, RenderingNetworkConfig

GRID = Variant("hashgrid", HashGridConfig(levels=3, base_resolution=3, max_resolution=9, log2_table_size=9, init_scale=0.5))
SH = Variant("sh", SphericalHarmonicsConfig(degree=3))
SMALL = RenderingNetworkConfig(dims=(16, 12), weight_norm=False, point_encoder=GRID, view_encoder=SH)
CONFIGS = {
    "sh 3": SMALL,
    "sh 2": dataclasses.replace(SMALL, view_encoder=Variant("sh", SphericalHarmonicsConfig(degree=2))),
    "raw direction": dataclasses.replace(SMALL, view_encoder=Variant("vanilla", PositionalConfig(frequencies=0))),
    "no_view_dir": dataclasses.replace(SMALL, mode="no_view_dir"),
    "no_normal": dataclasses.replace(SMALL, mode="no_normal"),
    "normalised features": dataclasses.replace(SMALL, normalise_features=True),
}
FEATURES = 5


def build(config: RenderingNetworkConfig) -> RenderingNetwork:
    torch.manual_seed(0)
    return RenderingNetwork(config, FEATURES).double()


def shading_inputs(n: int) -> list[torch.Tensor]:
    """Points, normals, view directions, features."""
    generator = torch.Generator().manual_seed(1)
    raw = torch.randn(n, 9 + FEATURES, generator=generator, dtype=torch.float64)
    unit = torch.nn.functional.normalize
    tensors = (0.8 * raw[:, :3].tanh(), unit(raw[:, 3:6], dim=1), unit(raw[:, 6:9], dim=1), raw[:, 9:])
    return [tensor.detach().requires_grad_() for tensor in tensors]


@pytest.mark.parametrize("name", CONFIGS)
def test_fused_network_equals_layer_by_layer(monkeypatch, name):
    """Colours, and gradients with respect to inputs and parameters, with a level hidden."""
    network, inputs = build(CONFIGS[name]), shading_inputs(50)
    network.point_encoder.active_levels = 2
    assert network.fused() is not None
    results = []
    for fused in (network.fused(), None):
        monkeypatch.setattr(network, "fused", lambda fused=fused: fused)
        rgb = network(*inputs)
        wanted = [*inputs, *network.parameters()]
        grads = torch.autograd.grad(rgb.square().sum(), wanted, materialize_grads=True, allow_unused=True)
        results.append((rgb, *grads))
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-11)


def test_which_networks_are_fused():
    vanilla = Variant("vanilla", PositionalConfig(frequencies=2))
    for change in ({"weight_norm": True}, {"dims": (129,)}, {"point_encoder": vanilla}, {"view_encoder": vanilla}):
        assert build(dataclasses.replace(SMALL, **change)).fused() is None
    assert build(dataclasses.replace(SMALL, mode="no_view_dir", view_encoder=vanilla)).fused() is not None  # not built


@pytest.mark.parametrize("config", [SMALL, dataclasses.replace(SMALL, weight_norm=True)], ids=["fused", "layer by layer"])
def test_modes_leave_an_input_out(config):
    points, normals, view_dirs, features = shading_inputs(20)
    for mode, changed in (
        ("no_view_dir", (points, normals, -view_dirs, features)),
        ("no_normal", (points, -normals, view_dirs, features)),
    ):
        full, partial = build(config), build(dataclasses.replace(config, mode=mode))
        assert torch.equal(partial(*changed), partial(points, normals, view_dirs, features))
        assert not torch.equal(full(*changed), full(points, normals, view_dirs, features))


def test_fused_network_follows_its_parameters():
    """The network is described anew at each call: an optimiser's step and a change of levels are seen."""
    network, inputs = build(SMALL), shading_inputs(10)
    with torch.no_grad():
        before = network(*inputs)
        network.lin0.weight += 0.1
        network.point_encoder.table += 0.1
        changed = network(*inputs)
        network.point_encoder.active_levels = 0
        hidden = network(*inputs)
    assert not torch.equal(before, changed)
    assert not torch.equal(changed, hidden)


@pytest.mark.parametrize("weight_norm", [False, True], ids=["fused", "layer by layer"])
def test_normalised_features_have_no_scale_and_no_offset(weight_norm):
    """Per point: whatever the others are. Without the option both show."""
    normalising = dataclasses.replace(SMALL, weight_norm=weight_norm, normalise_features=True)
    points, normals, view_dirs, features = shading_inputs(20)
    scale, offset = 3 + torch.randn(2, 20, 1, generator=torch.Generator().manual_seed(2), dtype=torch.float64).abs()
    for config, same in ((normalising, True), (dataclasses.replace(normalising, normalise_features=False), False)):
        network = build(config)
        expected = network(points, normals, view_dirs, features)
        changed = network(points, normals, view_dirs, scale * features + offset)
        assert torch.allclose(changed, expected, atol=1e-4) == same
        alone = network(points[3:4], normals[3:4], view_dirs[3:4], features[3:4])
        torch.testing.assert_close(alone, expected[3:4], rtol=1e-12, atol=1e-12)


def test_normalised_features_are_seen_and_differentiable():
    network = build(dataclasses.replace(SMALL, normalise_features=True))
    points, normals, view_dirs, features = shading_inputs(4)
    assert not torch.allclose(network(points, normals, view_dirs, features), network(points, normals, view_dirs, -features))
    assert torch.autograd.gradcheck(lambda f: network(points.detach(), normals, view_dirs, f), features)
    flat = torch.ones_like(features).requires_grad_()  # no variance to divide by
    (grad,) = torch.autograd.grad(network(points, normals, view_dirs, flat).sum(), flat)
    assert grad.isfinite().all()
