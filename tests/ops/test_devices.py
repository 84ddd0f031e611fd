"""The native ops on every device against plain PyTorch in double precision: value, first and second derivative.

The rule: in single precision no output is further from the exact one than three times as far as plain PyTorch's in single
precision, or than rounding makes of numbers of its size (FLOOR).
"""

from __future__ import annotations

import pytest
import torch
from support.color_networks import away_from_kinks, make_color_network, make_inputs
from support.devices import CUDA, DEVICES, error, leaves_of, need_device, to
from support.sdf_networks import make_network, make_points

from nsr.ops.color_network import color_network
from nsr.ops.hash_grid import HashGridSpec, hash_grid
from nsr.ops.sdf_network import sdf_and_normal, sdf_network
from nsr.ops.sphere_trace import TraceOptions, trace
from nsr.ops.trace_sdf_network import trace_sdf_network
from nsr.types import Rays

FLOOR = {1: 5e-6, 2: 2e-5, 3: 2e-5}  # by order: values, first and second derivatives (sums over thousands of points)
SPEC = HashGridSpec(10, 2, 19, 384, 14, extent=1.2)
SIZES = [0, 1, 33, 5000]


def weighted(outputs, seed=1):
    """A loss: a different weight for each value, and for its square."""
    generator = torch.Generator().manual_seed(seed)
    weights = [torch.randn(output.shape, generator=generator, dtype=torch.float64).to(output) for output in outputs]
    return sum((weight * (output + 0.5 * output.square())).sum() for weight, output in zip(weights, outputs, strict=True))


def grid_op(x, table):
    """Outputs, first derivatives, and the derivatives of a loss on those."""
    h = hash_grid(x, table, SPEC)
    first = torch.autograd.grad(weighted([h]), [x, table], create_graph=True)
    return [h], list(first), list(torch.autograd.grad(weighted(first), [x, table]))


def sdf_op(x, network):
    """The normal is an output, so a loss on it has what is a second derivative elsewhere."""
    outputs = sdf_and_normal(x, *network)
    first = torch.autograd.grad(weighted(outputs[:2]), leaves_of((x, network)), retain_graph=True, allow_unused=True)
    second = torch.autograd.grad(weighted(outputs[2:]), leaves_of((x, network)), allow_unused=True)
    with torch.no_grad():
        return [sdf_network(x, *network), *outputs], *([g for g in grads if g is not None] for grads in (first, second))


def color_op(inputs, network):
    rgb = color_network(*inputs, *network)
    return [rgb], list(torch.autograd.grad(weighted([rgb]), leaves_of((inputs, network)))), []


def make_colors(n):
    network = make_color_network("instant")
    return away_from_kinks(network, make_inputs("instant", n)), network


CASES = {
    "hash_grid": (grid_op, lambda n: (make_points(n), torch.randn(SPEC.table_entries, 2, dtype=torch.float64))),
    "sdf_and_normal": (sdf_op, lambda n: (make_points(n), make_network("instant"))),
    "sdf_and_normal, deep and wide": (sdf_op, lambda n: (make_points(n), make_network("deep and wide"))),
    "color_network": (color_op, lambda n: make_colors(n)),
}


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("n", SIZES)
@pytest.mark.parametrize("name", CASES)
def test_as_exact_as_plain_pytorch(backend, name, n, device):
    need_device(device)
    op, make = CASES[name]
    torch.manual_seed(0)
    arguments = to(make(n), "cpu", torch.float32)  # what both precisions can represent
    with backend("reference"):
        exact = op(*to(arguments, "cpu", torch.float64))
        plain = op(*to(arguments, "cpu", torch.float32))
    with backend("native"):
        ours = op(*to(arguments, device, torch.float32))
    for order, (a, b, c) in enumerate(zip(ours, plain, exact, strict=True), start=1):
        for mine, theirs in zip(error(a, c), error(b, c), strict=True):
            assert mine <= max(3 * theirs, FLOOR[order]), f"derivative {order - 1}: {mine:.2g}, plain PyTorch {theirs:.2g}"


def make_rays(n, device):
    generator = torch.Generator().manual_seed(2)
    origins = 3 * torch.nn.functional.normalize(torch.randn(n, 3, generator=generator), dim=1)
    toward = torch.nn.functional.normalize(0.3 * torch.randn(n, 3, generator=generator) - origins, dim=1)
    return Rays(origins.to(device), toward.to(device)), (torch.rand(n, generator=generator) < 0.7).to(device)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("n", SIZES)
def test_tracers_find_the_same(n, device):
    """In one op, and as a wavefront around the network; both on the device, and against the wavefront on the CPU."""
    need_device(device)
    options = TraceOptions(radius=1.2, max_iterations=60)
    found = {}
    for place in {"cpu", device}:
        network, (rays, mask) = to(make_network("instant", scale=0.02), place, torch.float32), make_rays(n, place)
        with torch.no_grad():
            wavefront = trace(lambda x, net=network: sdf_network(x, *net), rays, options, mask)
            fused = trace_sdf_network(network, rays, options, mask)
        found[f"wavefront {place}"], found[f"fused {place}"] = wavefront, fused
    expected = found.pop("wavefront cpu")
    for name, hits in found.items():
        same = hits.hit.cpu() == expected.hit
        near = (hits.distance.cpu() - expected.distance).abs() < 1e-3
        assert (same & near).float().mean() > 0.99 if n else hits.hit.shape == (0,), name
        assert int(hits.evaluations) == pytest.approx(int(expected.evaluations), rel=0.02), name


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", CASES)
def test_deterministic_where_that_is_asked_for(name, device):
    """torch.use_deterministic_algorithms(True): two runs agree to the last bit, gradients of tables included."""
    need_device(device)
    op, make = CASES[name]
    torch.manual_seed(0)
    arguments = to(make(3000), device, torch.float32)
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    try:
        runs = [[tensor for part in op(*arguments) for tensor in part] for _ in range(2)]
    finally:
        torch.use_deterministic_algorithms(before)
    assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_deterministic_gradients_show_what_is_not_finite(bad, device):
    need_device(device)
    x, table = to(CASES["hash_grid"][1](50), device, torch.float32)
    grad = torch.ones(50, SPEC.output_dim, device=device)
    grad[7, 3] = bad
    torch.use_deterministic_algorithms(True)
    try:
        (grad_table,) = torch.autograd.grad(hash_grid(x, table, SPEC), table, grad)
    finally:
        torch.use_deterministic_algorithms(False)
    assert not grad_table.isfinite().all()


@pytest.mark.gpu
@pytest.mark.parametrize("name", CASES)
def test_ten_million_points(name):
    """Offsets beyond 2^31 bytes, and grids of blocks beyond any device: the last points get what they get alone."""
    need_device("cuda")
    generator = torch.Generator("cuda").manual_seed(0)
    x = 2 * torch.rand(10_000_001, 3, device="cuda", generator=generator) - 1
    with torch.no_grad():
        if name == "hash_grid":
            table = torch.randn(SPEC.table_entries, 2, device="cuda")
            assert torch.equal(hash_grid(x, table, SPEC)[-5:], hash_grid(x[-5:], table, SPEC))
        elif name.startswith("sdf_and_normal"):
            network = to(make_network("instant"), "cuda", torch.float32)
            assert torch.equal(sdf_network(x, *network)[-5:], sdf_network(x[-5:], *network))
            for all_points, few in zip(sdf_and_normal(x, *network), sdf_and_normal(x[-5:], *network), strict=True):
                assert torch.equal(all_points[-5:], few)
        else:
            network = to(make_color_network("instant"), "cuda", torch.float32)
            inputs = to(make_inputs("instant", 1), "cuda", torch.float32)
            many = [t if t is None else t.detach().expand(len(x), -1) for t in inputs[1:]]
            few = [t if t is None else t[-5:] for t in many]
            assert torch.equal(color_network(x, *many, *network)[-5:], color_network(x[-5:], *few, *network))


@pytest.mark.parametrize("device", [CUDA])
@pytest.mark.parametrize("name", CASES)
def test_the_host_waits_for_nothing(name, device):
    """Neither forwards nor backwards; nor does the tracer."""
    need_device(device)
    op, make = CASES[name]
    arguments = to(make(2000), device, torch.float32)
    network, (rays, mask) = to(make_network("instant", scale=0.02), device, torch.float32), make_rays(500, device)
    op(*arguments)  # loads modules, which may wait
    trace_sdf_network(network, rays, TraceOptions(radius=1.2), mask)
    torch.cuda.set_sync_debug_mode("error")
    try:
        if name == "hash_grid":
            hash_grid(*arguments, SPEC).sum().backward()
        elif name == "color_network":
            color_network(*arguments[0], *arguments[1]).sum().backward()
        else:
            sum(output.sum() for output in sdf_and_normal(arguments[0], *arguments[1])).backward()
        trace_sdf_network(network, rays, TraceOptions(radius=1.2), mask)
    finally:
        torch.cuda.set_sync_debug_mode("default")
