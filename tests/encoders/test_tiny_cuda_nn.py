"""tiny-cuda-nn's grid behind the encoders: with a stand-in for its binding, and against it where the package and a GPU are."""

import sys

import pytest
import torch
from support import tiny_cuda_nn

from nsr.config import Variant
from nsr.encoders import POINT_ENCODERS, Encoder
from nsr.encoders.filter_bank import FilterBankEncoder, ModulatedFilterBankEncoder, TcnnFilterBankConfig
from nsr.encoders.hash_grid import CudaHashGridConfig, HashGridConfig, HashGridEncoder
from nsr.encoders.tiny_cuda_nn import TcnnHashGridConfig
from nsr.models.idr import ModelConfig
from nsr.models.implicit_network import ImplicitNetwork, ImplicitNetworkConfig
from nsr.utils.errors import ConfigError, ExtensionError, UsageError
from nsr.utils.extras import TINY_CUDA_NN

SMALL = {"levels": 3, "base_resolution": 3, "max_resolution": 11, "log2_table_size": 7, "init_scale": 0.5, "extent": 1.2}
TCNN = [name for name in POINT_ENCODERS if name.endswith("_tcnn")]


@pytest.fixture
def stand_in(monkeypatch):
    tiny_cuda_nn.install(monkeypatch)


def points(n: int) -> torch.Tensor:
    return 2.4 * torch.rand(n, 3, generator=torch.Generator().manual_seed(n)) - 1.2


def test_three_encoders_are_on_it():
    assert TCNN == ["hashgrid_tcnn", "nffb_tcnn", "stylemod_nffb_tcnn"]


@pytest.mark.parametrize("name", TCNN)
def test_a_missing_package_is_named_with_its_install_line(name, monkeypatch):
    monkeypatch.setitem(sys.modules, "tinycudann", None)
    for call in (POINT_ENCODERS[name]().build, lambda: POINT_ENCODERS[name]().check_device("cpu")):
        with pytest.raises(ExtensionError) as error:
            call()
        assert TINY_CUDA_NN in str(error.value)
        assert "--exp HashGrid" in str(error.value)


def test_a_package_that_does_not_load_is_named_too(monkeypatch, tmp_path):
    (tmp_path / "tinycudann.py").write_text("raise OSError('Unknown compute capability')\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "tinycudann", raising=False)
    with pytest.raises(ExtensionError, match=r"Unknown compute capability.*pip install"):
        TcnnHashGridConfig().build()


def test_the_cpu_is_refused(stand_in, monkeypatch):
    encoder = TcnnHashGridConfig(**SMALL).build()
    monkeypatch.setattr("nsr.encoders.tiny_cuda_nn.DEVICES", ("cuda",))
    for call in (encoder, encoder.forward_with_vjp, lambda x: TcnnHashGridConfig().check_device(x.device.type)):
        with pytest.raises(UsageError, match=r"NVIDIA GPUs only, not on cpu; give --device cuda"):
            call(points(4))


def test_hash_grid_for_cuda_is_the_hash_grid_and_refuses_the_cpu():
    config = CudaHashGridConfig(**SMALL)
    config.check_device("cuda")
    with pytest.raises(UsageError, match=r"hashgrid_cuda.*not on cpu; give --device cuda"):
        config.check_device("cpu")
    encoder, x = config.build(), points(9)
    assert type(encoder) is HashGridEncoder  # what the fused networks look for
    assert torch.equal(encoder(x), HashGridConfig(**SMALL).build()(x))


def test_every_encoder_of_a_model_is_asked_about_the_device():
    for part in ("implicit_network.encoder", "rendering_network.point_encoder", "rendering_network.view_encoder"):
        network, field = part.split(".")
        block = type(getattr(ModelConfig(), network))(**{field: Variant("hashgrid_cuda", CudaHashGridConfig())})
        config = ModelConfig(**{network: block})
        config.check_device("cuda")
        with pytest.raises(UsageError, match="hashgrid_cuda"):
            config.check_device("cpu")
    ModelConfig().check_device("cpu")


def test_features_that_it_was_not_compiled_for_are_refused():
    with pytest.raises(ValueError, match=r"^features must be one of 1, 2, 4, 8 .* got 3"):
        TcnnHashGridConfig(features=3)
    with pytest.raises(ValueError, match="start_levels"):
        TcnnFilterBankConfig(start_levels=9)


def test_bank_keeps_its_defaults_on_the_other_grid():
    assert TcnnFilterBankConfig().levels == POINT_ENCODERS["nffb"]().levels != HashGridConfig().levels


def test_fused_networks_do_not_take_it(stand_in):
    """Their grid has other vertices."""
    for name in TCNN:
        network = ImplicitNetwork(
            ImplicitNetworkConfig(dims=(64,), skip_in=(), weight_norm=False, encoder=Variant(name, POINT_ENCODERS[name]()))
        )
        assert network.fused() is None
        assert type(network.encoder) not in (HashGridEncoder, FilterBankEncoder, ModulatedFilterBankEncoder)


def test_first_and_last_level_have_the_resolutions_of_the_options(stand_in):
    scales = TcnnHashGridConfig(levels=5, base_resolution=7, max_resolution=100).build().grid.encoding.scales
    assert scales[0] == 7
    assert scales[-1] == 100
    assert TcnnHashGridConfig(levels=1, base_resolution=7).build().grid.encoding.scales == [7]


def test_cube_of_the_extent_is_its_unit_cube(stand_in):
    """A table that rises by 1 from vertex to vertex along x makes the feature of the only level 4 u + 1/2: u is found again."""
    encoder = TcnnHashGridConfig(levels=1, features=1, base_resolution=4, extent=1.5).build()
    side = 5
    with torch.no_grad():
        encoder.table[: side**3] = (torch.arange(side**3) % side).float()[:, None]
    x = torch.tensor([[-1.3, 0.2, 0.4], [0.0, -1.4, 1.0], [1.1, 0.0, 0.1], [-2.0, 0, 0], [1.5, 0, 0], [7.0, 0, 0]])
    value, vjp = encoder.forward_with_vjp(x)
    u = torch.tensor([0.2 / 3, 0.5, 2.6 / 3, 0])
    assert torch.allclose(value[:4, 3], 4 * u + 0.5, atol=1e-5)
    assert value[5, 3] == value[4, 3]
    slope = vjp(torch.tensor([[0.0, 0, 0, 1]]).expand(6, 4))
    assert torch.allclose(slope[:3], torch.tensor([4 / 3, 0, 0]).expand(3, 3), atol=1e-5)
    assert not slope[[3, 5]].any()


@pytest.mark.parametrize("count", [0, 1, 255, 256, 257])
def test_batches_of_any_size(stand_in, count):
    encoder, x = TcnnFilterBankConfig(levels=2, base_resolution=3, max_resolution=5, width=4).build(), points(300)
    value, vjp = encoder.forward_with_vjp(x[:count])
    assert torch.allclose(value, encoder(x)[:count], atol=1e-6)
    slopes = encoder.forward_with_vjp(x)[1](torch.ones(300, encoder.output_dim))
    assert torch.allclose(vjp(torch.ones_like(value)), slopes[:count], rtol=1e-4, atol=1e-4)


def test_hidden_levels_are_zero_and_learn_nothing(stand_in):
    encoder, x = TcnnHashGridConfig(**SMALL, start_levels=1).build(), points(500)
    encoder.set_progress(0.0)
    assert encoder.active_levels == 1
    value, vjp = encoder.forward_with_vjp(x)
    (vjp(torch.ones_like(value)).square().sum() + value.square().sum()).backward()
    shown = encoder.grid.encoding.entries[0]
    assert value[:, 3:5].all()
    assert not value[:, 5:].any()
    assert (encoder.table.grad[:shown] != 0).float().mean() > 0.9
    assert not encoder.table.grad[shown:].any()
    encoder.set_progress(1.0)
    assert encoder(x)[:, 5:].any()


def test_without_gradients_nothing_is_recorded(stand_in):
    encoder, x = TcnnHashGridConfig(**SMALL).build(), points(5)
    expected, vjp = encoder.forward_with_vjp(x)
    slope = vjp(torch.ones_like(expected))
    with torch.no_grad():
        value, vjp = encoder.forward_with_vjp(x)
        found = vjp(torch.ones_like(value))
    assert not value.requires_grad
    assert not found.requires_grad
    assert torch.equal(found, slope)
    assert torch.equal(value, expected)


def test_gradients_in_any_layout_arrive(stand_in):
    """The kernels read rows; losses send expanded and transposed gradients."""
    encoder, x = TcnnHashGridConfig(**SMALL).build(), points(256)
    value, vjp = encoder.forward_with_vjp(x)
    slope = vjp(torch.ones_like(value).T.contiguous().T)
    (slope.T.contiguous() @ torch.ones(256, 1)).sum().backward()
    assert encoder.table.grad.abs().sum() > 0


def test_half_precision_learns_in_single(stand_in):
    half = TcnnHashGridConfig(**SMALL, precision="float16").build()
    single = TcnnHashGridConfig(**SMALL).build()
    assert half.grid.encoding.dtype == torch.float16
    x = points(300)
    value, vjp = half.forward_with_vjp(x)
    slope = vjp(torch.ones_like(value))
    (value.square().sum() + slope.square().sum()).backward()
    assert value.dtype == slope.dtype == half.table.grad.dtype == torch.float32
    assert not torch.equal(value, single(x))
    assert torch.allclose(value, single(x), atol=1e-3)


def test_its_parameters_are_the_table_alone(stand_in):
    assert list(TcnnHashGridConfig(**SMALL).build().state_dict()) == ["table"]
    names = TcnnFilterBankConfig().build().state_dict().keys()
    assert names == POINT_ENCODERS["nffb"]().build().state_dict().keys()


def derivatives(encoder: Encoder, x: torch.Tensor) -> list[torch.Tensor]:
    """Value, normal, and the gradients of a loss on both by points and parameters."""
    x = x.clone().requires_grad_()
    value, vjp = encoder.forward_with_vjp(x)
    slope = vjp(torch.linspace(-1, 1, value.shape[1], device=x.device).expand_as(value))
    (value.sin().sum() + slope.square().sum()).backward()
    return [tensor.detach().cpu() for tensor in (value, slope, x.grad, *(p.grad for p in encoder.parameters()))]


@pytest.mark.gpu
@pytest.mark.parametrize("interpolation", ["linear", "smoothstep"])
@pytest.mark.parametrize("name", TCNN)
def test_the_package_itself_computes_what_the_stand_in_does(name, interpolation, monkeypatch):
    pytest.importorskip("tinycudann", reason="tiny-cuda-nn is not installed", exc_type=(ImportError, OSError))
    config = POINT_ENCODERS[name](**SMALL, interpolation=interpolation)
    encoder, x = config.build().cuda(), points(1000)
    found = derivatives(encoder, x.cuda())
    tiny_cuda_nn.install(monkeypatch)
    oracle = config.build()
    oracle.load_state_dict(encoder.state_dict())
    for ours, expected in zip(found, derivatives(oracle, x), strict=True):
        assert (ours - expected).abs().max() < 2e-3 * expected.abs().max()


def test_unknown_precision_is_refused():
    from nsr.config import bind

    with pytest.raises(ConfigError, match="one of float32, float16"):
        bind(TcnnHashGridConfig, {"precision": "half"})
