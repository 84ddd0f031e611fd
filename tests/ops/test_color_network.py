"""Colour networks: native = reference, gradient = autograd, gradcheck, opcheck, determinism."""

import pytest
import torch
from support.color_networks import KINDS, ColorInputs, away_from_kinks, make_color_network, make_inputs, tensors_of
from torch.autograd import gradcheck
from torch.library import opcheck

from nsr.ops.color_network import color_network, has_kernel, network_arguments

SMALL = ["no level, no feature", "no view, odd sizes"]
TOLERANCE = {torch.float32: 2e-5, torch.float64: 1e-11}


def assert_near(ours, theirs, dtype, factor=1.0):
    """Equal up to rounding, measured against the largest value."""
    assert ours.shape == theirs.shape
    if theirs.numel():
        tolerance = factor * TOLERANCE[dtype]
        torch.testing.assert_close(ours, theirs, rtol=tolerance, atol=tolerance * max(theirs.abs().max().item(), 1e-3))


def loss_of(rgb, seed=1):
    """A different weight for each value, and for its square."""
    weight = torch.randn(rgb.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(rgb.dtype)
    return (weight * (rgb + 0.5 * rgb.square())).sum()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("n", [0, 1, 16, 1000])
def test_native_equals_reference(backend, dtype, kind, n):
    """The colours and the gradients of a loss on them; points beyond the cube included."""
    network = make_color_network(kind, dtype)
    inputs = away_from_kinks(network, make_inputs(kind, n, dtype, extent=1.1))
    assert len(inputs.points) >= n // 2
    wanted, results = [*inputs.present(), *tensors_of(network)], {}
    for name in ("native", "reference"):
        with backend(name):
            with torch.no_grad():
                alone = color_network(*inputs, *network)
            rgb = color_network(*inputs, *network)
        results[name] = alone, rgb, torch.autograd.grad(loss_of(rgb), wanted, materialize_grads=True)
    for ours, theirs in zip(results["native"][:2], results["reference"][:2], strict=True):
        assert_near(ours, theirs, dtype)
    for ours, theirs in zip(results["native"][2], results["reference"][2], strict=True):
        assert_near(ours, theirs, dtype, factor=10.0)  # sums over a thousand points


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_are_not_zero(kind):
    """Every input and parameter has influence, so that equality with the reference says something."""
    network, inputs = make_color_network(kind), make_inputs(kind, 200)
    for grad in torch.autograd.grad(loss_of(color_network(*inputs, *network)), [*inputs.present(), *tensors_of(network)]):
        assert grad.numel() == 0 or (grad != 0).any() or (grad.shape == network.table.shape and network.active_levels == 0)


@pytest.mark.parametrize("kind", [*SMALL, "instant"])
def test_gradcheck(kind):
    network = make_color_network(kind, seed=3)
    inputs = away_from_kinks(network, make_inputs(kind, 6, seed=4), 1e-5)
    assert len(inputs.points) >= 3
    present = inputs.present()
    fast = kind == "instant"  # thousands of parameters: one random direction instead of each

    def rgb(*tensors):
        given = iter(tensors[: len(present)])
        some = [None if tensor is None else next(given) for tensor in inputs]
        table, *layers = tensors[len(present) :]
        pairs = tuple(zip(layers[::2], layers[1::2], strict=True))
        return color_network(*some, *network._replace(table=table, layers=pairs))

    assert gradcheck(rgb, (*present, *tensors_of(network)), eps=1e-7, atol=1e-5, rtol=1e-4, fast_mode=fast)


@pytest.mark.parametrize("kind", ["instant", "no normal, deep and wide"])
def test_points_do_not_depend_on_each_other(kind):
    network, inputs = make_color_network(kind, torch.float32), make_inputs(kind, 333, torch.float32)
    with torch.no_grad():
        together = color_network(*inputs, *network)
        alone = color_network(*(t if t is None else t[5:290:3] for t in inputs), *network)
    assert torch.equal(together[5:290:3], alone)


def test_keeping_for_the_derivative_changes_no_colour():
    network, inputs = make_color_network("instant", torch.float32), make_inputs("instant", 100, torch.float32)
    with torch.no_grad():
        without = color_network(*inputs, *network)
    assert torch.equal(without, color_network(*inputs, *network))


def test_bit_identical_for_any_number_of_threads():
    network, inputs = make_color_network("instant", torch.float32), make_inputs("instant", 3000, torch.float32)
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            rgb = color_network(*inputs, *network)
            results.append((rgb, *torch.autograd.grad(loss_of(rgb), [*inputs, *tensors_of(network)])))
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def test_only_the_gradients_that_are_needed():
    """Each alone is, bit for bit, what it is among all."""
    network, inputs = make_color_network("instant"), make_inputs("instant", 70)
    everything = torch.autograd.grad(loss_of(color_network(*inputs, *network)), [*inputs, *tensors_of(network)])
    fixed = network._replace(
        table=network.table.detach(), layers=tuple((weight.detach(), bias.detach()) for weight, bias in network.layers)
    )
    constant = ColorInputs(*(tensor.detach() for tensor in inputs))
    for field, expected in zip(ColorInputs._fields, everything, strict=False):
        one = constant._replace(**{field: getattr(inputs, field)})
        (grad,) = torch.autograd.grad(loss_of(color_network(*one, *fixed)), getattr(inputs, field))
        assert torch.equal(grad, expected), field
    with_table = fixed._replace(table=network.table)
    (grad,) = torch.autograd.grad(loss_of(color_network(*constant, *with_table)), network.table)
    assert torch.equal(grad, everything[4])
    with_layers = fixed._replace(layers=network.layers)
    grads = torch.autograd.grad(loss_of(color_network(*constant, *with_layers)), tensors_of(network)[1:])
    assert all(torch.equal(a, b) for a, b in zip(grads, everything[5:], strict=True))
    assert not color_network(*constant, *fixed).requires_grad


def test_levels_that_are_not_active_get_no_gradient_and_leave_weights_alone():
    network, inputs = make_color_network("some levels"), make_inputs("some levels", 60)
    first, end = 3 + network.active_levels * network.spec.features, 3 + network.spec.output_dim
    loss = loss_of(color_network(*inputs, *network))
    table, weight = torch.autograd.grad(loss, [network.table, network.layers[0][0]])
    entries = network.spec.offsets[network.active_levels]
    assert (table[entries:] == 0).all()
    assert (table[:entries] != 0).any()
    assert (weight[:, first:end] == 0).all()
    assert (weight[:, :first] != 0).any(0).all()
    assert (weight[:, end:] != 0).any(0).all()


@pytest.mark.parametrize("name", ["native", "reference"])
def test_nan_point_gives_nan_and_leaves_the_others_alone(backend, name):
    network, inputs = make_color_network("instant", torch.float32), make_inputs("instant", 40, torch.float32)
    with backend(name), torch.no_grad():
        clean = color_network(*inputs, *network)
        inputs.points[7, 1] = float("nan")
        rgb = color_network(*inputs, *network)
    others = torch.arange(40) != 7
    assert rgb[7].isnan().all()
    assert_near(rgb[others], clean[others], torch.float32)


def test_extreme_values_stay_finite():
    """The output does not overflow: arguments of tanh of +-1e4."""
    network, inputs = make_color_network("instant", torch.float32), make_inputs("instant", 64, torch.float32)
    with torch.no_grad():
        for tensor in network.layers[-1]:
            tensor.mul_(1e4)
    rgb = color_network(*inputs, *network)
    assert ((rgb >= 0) & (rgb <= 1)).all()
    assert ((rgb == 0) | (rgb == 1)).any()
    assert all(grad.isfinite().all() for grad in torch.autograd.grad(rgb.sum(), [*inputs, *tensors_of(network)]))


def test_inputs_need_not_be_contiguous():
    network, inputs = make_color_network("instant"), make_inputs("instant", 50)
    strided = ColorInputs(*(torch.cat([t, t], 1)[:, : t.shape[1]].detach().requires_grad_() for t in inputs))
    assert not strided.points.is_contiguous()
    results = []
    for given in (inputs, strided):
        rgb = color_network(*given, *network)
        results.append((rgb, *torch.autograd.grad(loss_of(rgb), [*given])))
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_the_next_derivative_raises_by_name():
    network, inputs = make_color_network("instant"), make_inputs("instant", 4)
    (first,) = torch.autograd.grad(color_network(*inputs, *network).sum(), inputs.points, create_graph=True)
    with pytest.raises(NotImplementedError, match="second derivatives of color_network"):
        first.sum().backward()


def test_which_networks_have_a_kernel(backend):
    network = make_color_network("instant", torch.float32)
    assert has_kernel(network)
    assert not has_kernel(network._replace(table=network.table.half()))
    assert not has_kernel(network._replace(table=network.table.to("meta")))
    assert not has_kernel(network._replace(view_degree=4))
    assert not has_kernel(network._replace(layers=network.layers * 3))
    wide = (torch.zeros(129, 48), torch.zeros(129)), (torch.zeros(3, 129), torch.zeros(3))
    assert not has_kernel(network._replace(layers=wide))
    with backend("reference"):
        assert not has_kernel(network)


@pytest.mark.usefixtures("unchecked_signatures")
def test_arguments_that_do_not_fit():
    network, inputs = make_color_network("instant", torch.float32), make_inputs("instant", 4, torch.float32)
    (w0, b0), second, (w2, b2) = network.layers
    cases = [
        (inputs._replace(points=inputs.points[:, :2]), network, r"points has shape \(4, 2\); expected \[N, 3\]"),
        (inputs._replace(normals=inputs.normals[1:]), network, r"normals has shape \(3, 3\); expected \[4, 3\]"),
        (inputs._replace(view_dirs=inputs.view_dirs[0]), network, "view_dirs has shape"),
        (inputs._replace(features=inputs.features[:2]), network, r"features has shape \(2, 15\); expected \[4, F\]"),
        (inputs._replace(features=inputs.features[:, 1:]), network, "layer 0 has weight"),
        (inputs._replace(normals=None), network, "layer 0 has weight"),
        (inputs._replace(view_dirs=None), network, "view_degree is 3 without view_dirs"),
        (inputs, network._replace(view_degree=0), "view_degree is 0 with view_dirs"),
        (inputs, network._replace(view_degree=4), "view_degree is 4"),
        (inputs._replace(normals=inputs.normals.double()), network, "one dtype"),
        (inputs._replace(points=inputs.points.half()), network, "float32 or float64"),
        (inputs, network._replace(table=network.table[1:]), "table has shape"),
        (inputs, network._replace(active_levels=7), "active_levels is 7"),
        (inputs, network._replace(layers=((w0, b0),)), "1 layers"),
        (inputs, network._replace(layers=((w0, b0), second, (w2[:2], b2[:2]))), "2 outputs; expected 3"),
    ]
    for changed, some_network, message in cases:
        with pytest.raises(ValueError, match=message):
            color_network(*changed, *some_network)


def test_the_op_checks_for_itself():
    network, inputs = make_color_network("instant", torch.float32), make_inputs("instant", 4, torch.float32)
    *_, table, resolutions, offsets, smoothstep, extent, levels, parameters, widths, degree = network_arguments(
        *inputs, network
    )
    grid = table, resolutions, offsets, smoothstep, extent, levels
    op = torch.ops.nsr.color_network
    for given, changed, message in [
        (inputs, (parameters[1:], widths, degree), "expected parameters"),
        (inputs, (parameters, [64, 64, 4], degree), "3 outputs"),
        (inputs, (parameters, widths, 2), "expected parameters"),
        (inputs, (parameters, widths, 4), "view_degree"),
        (inputs._replace(view_dirs=None), (parameters, widths, degree), "view_degree"),
        (inputs._replace(normals=inputs.normals[1:]), (parameters, widths, degree), "expected normals"),
        (inputs._replace(features=inputs.features.double()), (parameters, widths, degree), "expected features"),
    ]:
        with pytest.raises(RuntimeError, match=message), torch.no_grad():
            op(*given, *grid, *changed, False)
    with pytest.raises(RuntimeError, match="keep=True"):
        op(*inputs, *grid, parameters, widths, degree, False)[0].sum().backward()


@pytest.mark.parametrize("kind", ["instant", "neither, seven hidden layers"])
def test_opcheck(kind):
    network, inputs = make_color_network(kind, torch.float32), make_inputs(kind, 20, torch.float32)
    arguments = network_arguments(*inputs, network)
    leaves = tuple(a.detach().clone().requires_grad_() if isinstance(a, torch.Tensor) else a for a in arguments)
    plain = tuple(a.detach() if isinstance(a, torch.Tensor) else a for a in leaves)
    ops = torch.ops.nsr
    opcheck(ops.color_network, (*plain, False))
    opcheck(ops.color_network, (*leaves, True))
    with torch.no_grad():
        rgb, kept = ops.color_network(*plain, True)
    has_normal, has_view = inputs.normals is not None, inputs.view_dirs is not None
    opcheck(ops.color_network_bwd, (rgb, kept, *plain, [True, has_normal, has_view, True, True, True]))
    opcheck(ops.color_network_bwd, (rgb, kept, *plain, [True, False, False, False, True, False]))
