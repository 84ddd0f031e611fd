"""Signed distance networks: native = reference, gradient = autograd, gradcheck, opcheck, determinism."""

import pytest
import torch
from support.sdf_networks import KINDS, make_network, make_points, tensors_of, with_tensors
from torch.autograd import gradcheck
from torch.library import opcheck

from nsr.ops.sdf_network import has_kernel, network_arguments, sdf_and_normal, sdf_network

SMALL = ["no level, no feature", "softplus, odd sizes", "seven hidden layers", "bank, some levels", "bank, odd sizes"]
SMALL += ["modulated, some levels", "modulated, one level"]
TOLERANCE = {torch.float32: 2e-5, torch.float64: 1e-11}
SOFTPLUS_IN_DOUBLE = 1e-7  # torch's softplus is linear beyond 20 / beta, where the exact slope is 1 - 2e-9


def assert_near(ours, theirs, dtype, factor=1.0, least=0.0):
    """Equal up to rounding, measured against the largest value."""
    assert ours.shape == theirs.shape
    if theirs.numel():
        tolerance = max(factor * TOLERANCE[dtype], least)
        torch.testing.assert_close(ours, theirs, rtol=tolerance, atol=tolerance * max(theirs.abs().max().item(), 1e-3))


def loss_of(outputs, seed=1):
    """Differently weighted sum of all outputs, also of their squares."""
    generator = torch.Generator().manual_seed(seed)
    weights = [torch.randn(output.shape, generator=generator, dtype=torch.float64).to(output.dtype) for output in outputs]
    return sum((weight * (output + 0.5 * output.square())).sum() for weight, output in zip(weights, outputs, strict=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("n", [0, 1, 16, 1000])
def test_native_equals_reference(backend, dtype, kind, n):
    """All outputs and the gradients of a loss on them; points beyond the cube included."""
    network, x = make_network(kind, dtype), make_points(n, dtype, extent=1.1).requires_grad_()
    results = {}
    for name in ("native", "reference"):
        with backend(name):
            with torch.no_grad():
                sdf = sdf_network(x, *network)
            outputs = sdf_and_normal(x, *network)
        wanted = [x, *tensors_of(network)]
        grads = torch.autograd.grad(loss_of(outputs), wanted, materialize_grads=True)
        results[name] = (sdf, *outputs), grads
    least = SOFTPLUS_IN_DOUBLE if network.activation == "softplus" else 0.0
    for ours, theirs in zip(results["native"][0], results["reference"][0], strict=True):
        assert_near(ours, theirs, dtype, least=least)
    for ours, theirs in zip(results["native"][1], results["reference"][1], strict=True):
        assert_near(ours, theirs, dtype, factor=10.0, least=least)  # sums over a thousand points


@pytest.mark.parametrize("kind", KINDS)
def test_gradient_and_its_loss_equal_double_backward(backend, kind):
    """The oracle: autograd's own gradient of the reference's SDF, differentiated once more."""
    network, x = make_network(kind), make_points(40).requires_grad_()
    wanted = [x, *tensors_of(network)]
    gradient = sdf_and_normal(x, *network)[2]
    ours = torch.autograd.grad(gradient.square().sum(), wanted, materialize_grads=True)
    with backend("reference"):
        sdf = sdf_network(x, *network)
    (expected,) = torch.autograd.grad(sdf.sum(), x, create_graph=True)
    oracle = torch.autograd.grad(expected.square().sum(), wanted, materialize_grads=True)
    torch.testing.assert_close(gradient, expected, rtol=1e-6, atol=1e-6)  # torch's softplus ends at 20 / beta
    for a, b in zip(ours, oracle, strict=True):
        # Where torch's softplus is linear its curvature is zero; the exact one is up to 2e-7.
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5 * max(b.abs().max().item(), 1.0))


@pytest.mark.parametrize("kind", SMALL)
def test_gradcheck(kind):
    network, x = make_network(kind, seed=3), make_points(5, seed=4).requires_grad_()

    def outputs(x, *tensors):
        return sdf_and_normal(x, *with_tensors(network, tensors))

    # Softplus of sharpness 100 bends within 0.01: the step of the differences must stay far below.
    assert gradcheck(outputs, (x, *tensors_of(network)), eps=1e-7, atol=1e-4, rtol=1e-4)


def test_sdf_alone_is_the_sdf_of_the_pair():
    network, x = make_network("instant", torch.float32), make_points(100, torch.float32)
    with torch.no_grad():
        assert_near(sdf_network(x, *network), sdf_and_normal(x, *network)[0], torch.float32)


@pytest.mark.parametrize("kind", ["instant", "deep and wide", "bank", "modulated"])
def test_points_do_not_depend_on_each_other(kind):
    network, x = make_network(kind, torch.float32), make_points(333, torch.float32)
    with torch.no_grad():
        together = sdf_network(x, *network), *sdf_and_normal(x, *network)
        some = x[5:290:3]
        alone = sdf_network(some, *network), *sdf_and_normal(some, *network)
    assert all(torch.equal(a[5:290:3], b) for a, b in zip(together, alone, strict=True))


@pytest.mark.parametrize("kind", ["instant", "bank", "modulated"])
def test_bit_identical_for_any_number_of_threads(kind):
    network, x = make_network(kind, torch.float32), make_points(3000, torch.float32).requires_grad_()
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            outputs = sdf_and_normal(x, *network)
            with torch.no_grad():
                sdf = sdf_network(x, *network)
            results.append((sdf, *outputs, *torch.autograd.grad(loss_of(outputs), [x, *tensors_of(network)])))
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def test_more_points_than_chunks_of_the_least_size():
    """64 chunks of 8 tiles of 16 points are 8192; beyond, chunks grow and the sum over them must still be whole."""
    network, x = make_network("no level, no feature"), make_points(8192 + 1000)
    weight, bias = network.layers[-1]
    sdf, _, _ = sdf_and_normal(x, *network)
    (ours,) = torch.autograd.grad(sdf.sum(), bias)
    assert ours.item() == len(x)
    with torch.no_grad():
        hidden = torch.nn.functional.linear(x, network.layers[0][0][:, :3], network.layers[0][1])
        value = 0.5 * (hidden + (hidden * hidden + 1e-3).sqrt())
    (ours,) = torch.autograd.grad(sdf_and_normal(x, *network)[0].sum(), weight)
    torch.testing.assert_close(ours[0], value.sum(0))


@pytest.mark.parametrize("output", [0, 1, 2])
@pytest.mark.parametrize("kind", ["softplus, odd sizes", "bank", "modulated"])
def test_only_one_output_in_the_loss(backend, kind, output):
    """The other cotangents are absent, not zero tensors."""
    network, x = make_network(kind), make_points(50).requires_grad_()
    wanted, grads = [x, *tensors_of(network)], {}
    for name in ("native", "reference"):
        with backend(name):
            loss = sdf_and_normal(x, *network)[output].square().sum()
        grads[name] = torch.autograd.grad(loss, wanted, materialize_grads=True)
    for ours, theirs in zip(grads["native"], grads["reference"], strict=True):
        assert_near(ours, theirs, torch.float64, least=SOFTPLUS_IN_DOUBLE)


@pytest.mark.parametrize("kind", ["instant", "bank, some levels", "modulated, some levels"])
def test_only_the_gradients_that_are_needed(kind):
    network, x = make_network(kind), make_points(30)
    frozen = with_tensors(network, [tensor.detach() for tensor in tensors_of(network)])
    everything = torch.autograd.grad(loss_of(sdf_and_normal(x.requires_grad_(), *network)), [x, *tensors_of(network)])
    (points,) = torch.autograd.grad(loss_of(sdf_and_normal(x, *frozen)), x)
    table_only = frozen._replace(table=network.table)
    (table,) = torch.autograd.grad(loss_of(sdf_and_normal(x.detach(), *table_only)), network.table)
    layers_only = frozen._replace(layers=network.layers)
    of_layers = [tensor for layer in network.layers for tensor in layer]
    layers = torch.autograd.grad(loss_of(sdf_and_normal(x.detach(), *layers_only)), of_layers)
    bank = ()
    if network.bank:
        bank_only = frozen._replace(bank=network.bank)
        bank = torch.autograd.grad(loss_of(sdf_and_normal(x.detach(), *bank_only)), list(network.bank.tensors().values()))
    assert all(torch.equal(a, b) for a, b in zip(everything, (points, table, *layers, *bank), strict=True))


@pytest.mark.parametrize("kind", ["some levels", "bank, some levels", "modulated, some levels"])
def test_levels_that_are_not_active_get_no_gradient_and_leave_weights_alone(kind):
    network, x = make_network(kind), make_points(60)
    used = 3 + network.active_levels * (network.bank.weight.shape[-1] if network.bank else network.spec.features)
    table, weight = torch.autograd.grad(loss_of(sdf_and_normal(x, *network)), [network.table, network.layers[0][0]])
    first = network.spec.offsets[network.active_levels]
    assert (table[first:] == 0).all()
    assert (table[:first] != 0).any()
    assert (weight[:, used:] == 0).all()
    assert (weight[:, :used] != 0).all()


@pytest.mark.parametrize("name", ["native", "reference"])
def test_nan_point_gives_nan_and_leaves_the_others_alone(backend, name):
    network, x = make_network("instant", torch.float32), make_points(40, torch.float32)
    with backend(name), torch.no_grad():
        clean = sdf_network(x, *network)
        x[7, 1] = float("nan")
        sdf = sdf_network(x, *network)
    others = torch.arange(40) != 7
    assert sdf[7].isnan()
    assert_near(sdf[others], clean[others], torch.float32)


@pytest.mark.parametrize("kind", ["instant", "softplus, odd sizes"])
def test_extreme_values_stay_finite(kind):
    """Neither activation overflows: pre-activations of +-1e4."""
    network = make_network(kind, torch.float32)
    with torch.no_grad():
        for tensor in network.layers[0]:
            tensor.mul_(1e4)
    outputs = sdf_and_normal(make_points(64, torch.float32), *network)
    assert all(output.isfinite().all() for output in outputs)
    grads = torch.autograd.grad(sum(output.sum() for output in outputs), tensors_of(network))
    assert all(grad.isfinite().all() for grad in grads)


def test_sines_of_large_phases_are_right(backend):
    """Some hundred periods of the bank's first layer; rounding of the phase itself is the same on both sides in double."""
    network, x = make_network("bank"), make_points(200)
    with torch.no_grad():
        network.bank.first_weight.mul_(1000.0)
    results = []
    for name in ("native", "reference"):
        with backend(name), torch.no_grad():
            results.append(sdf_and_normal(x, *network))
    for ours, theirs in zip(*results, strict=True):
        assert_near(ours, theirs, torch.float64, factor=100.0)
    single = with_tensors(network, [tensor.float() for tensor in tensors_of(network)])
    with torch.no_grad():
        sdf = sdf_network(x.float(), *single)
    assert (sdf - results[1][0]).abs().max() < 2e-3  # a phase of 1000 in float is known to 6e-5


def test_the_next_derivatives_raise_by_name():
    network, x = make_network("instant"), make_points(4).requires_grad_()
    with pytest.raises(NotImplementedError, match="sdf_and_normal"):
        sdf_network(x, *network).sum().backward()
    (first,) = torch.autograd.grad(sdf_and_normal(x, *network)[0].sum(), x, create_graph=True)
    with pytest.raises(NotImplementedError, match="second derivatives"):
        first.sum().backward()


def test_which_networks_have_a_kernel(backend):
    network = make_network("instant", torch.float32)
    assert has_kernel(network)
    assert not has_kernel(network._replace(table=network.table.half()))
    assert not has_kernel(network._replace(table=network.table.to("meta")))
    wide = (torch.zeros(129, 15), torch.zeros(129)), (torch.zeros(1, 129), torch.zeros(1))
    assert not has_kernel(network._replace(layers=wide))
    assert not has_kernel(network._replace(layers=network.layers * 4 + network.layers[:1]))
    with backend("reference"):
        assert not has_kernel(network)


@pytest.mark.usefixtures("unchecked_signatures")
@pytest.mark.parametrize("function", [sdf_network, sdf_and_normal])
def test_arguments_that_do_not_fit(function):
    network, x = make_network("instant", torch.float32), make_points(4, torch.float32)
    (w0, b0), (w1, b1) = network.layers
    bank = make_network("bank", torch.float32).bank
    cases = [
        (x[:, :2], network, r"expected \[N, 3\]"),
        (x.double(), network, "one dtype"),
        (x.half(), network, "float32 or float64"),
        (x, network._replace(table=network.table[1:]), "table has shape"),
        (x, network._replace(active_levels=7), "active_levels is 7"),
        (x, network._replace(activation="relu"), "activation is 'relu'"),
        (x, network._replace(layers=((w0, b0),)), "1 layers"),
        (x, network._replace(layers=((w0[:, 1:], b0), (w1, b1))), "layer 0 has weight"),
        (x, network._replace(layers=((w0, b0[1:]), (w1, b1))), "layer 0 has weight"),
        (x, network._replace(bank=bank), "layer 0 has weight"),
        (x, network._replace(bank=bank._replace(bias=bank.bias[1:])), "bias of the bank has shape"),
        (x, network._replace(bank=bank._replace(style=bank.weight)), "the bank has first_weight, .*, style; expected"),
        (x, network._replace(bank=bank._replace(omega=0.0)), "omega of the bank is 0.0"),
        (x, network._replace(layers=((torch.zeros(129, 15), torch.zeros(129)), (torch.zeros(1, 129), b1[:1]))), "width 129"),
    ]
    for points, changed, message in cases:
        with pytest.raises(ValueError, match=message):
            function(points, *changed)


def test_the_ops_check_for_themselves():
    network, x = make_network("instant", torch.float32), make_points(4, torch.float32)
    *grid, parameters, widths, activation, _, _, _, _ = network_arguments(x, network, "test")
    bank = (None, 0, False, 0.0)
    for changed, message in [
        ((parameters[1:], widths, activation), "expected parameters"),
        ((parameters, widths[:1], activation), "2 to 8 layers"),
        ((parameters, [129, 16], activation), "1 to 128 neurons"),
        ((parameters, widths, 2), "activation"),
        ((parameters.double(), widths, activation), "dtype"),
    ]:
        with pytest.raises(RuntimeError, match=message), torch.no_grad():
            torch.ops.nsr.sdf_network(x, *grid, *changed, *bank)
    for changed, message in [
        ((torch.zeros(3), 4, False, 1.0), "the bank's parameters"),
        ((torch.zeros(3), 0, False, 1.0), "a bank of width 1 to 128"),
        ((torch.zeros(3), 4, True, 0.0), "omega > 0"),
    ]:
        with pytest.raises(RuntimeError, match=message), torch.no_grad():
            torch.ops.nsr.sdf_network(x, *grid, parameters, widths, activation, *changed)
    with pytest.raises(RuntimeError, match="keep=True"):
        torch.ops.nsr.sdf_and_normal(x, *grid, parameters, widths, activation, *bank, False)[0].sum().backward()


@pytest.mark.parametrize("kind", ["softplus, odd sizes", "bank, some levels", "modulated, some levels"])
def test_opcheck(kind):
    network, x = make_network(kind, torch.float32), make_points(20, torch.float32)
    arguments = tuple(a.detach() if isinstance(a, torch.Tensor) else a for a in network_arguments(x, network, "test"))
    ops = torch.ops.nsr
    opcheck(ops.sdf_network, (x, *arguments))
    opcheck(ops.sdf_and_normal, (x, *arguments, False))
    leaves = tuple(a.clone().requires_grad_() if isinstance(a, torch.Tensor) else a for a in (x, *arguments))
    opcheck(ops.sdf_and_normal, (*leaves, True))
    with torch.no_grad():
        sdf, feature, gradient, kept = ops.sdf_and_normal(x, *arguments, True)
    opcheck(ops.sdf_and_normal_bwd, (sdf, feature, gradient, kept, x, *arguments, True, True, True, True))
    opcheck(ops.sdf_and_normal_bwd, (None, None, gradient, kept, x, *arguments, False, True, False, False))
