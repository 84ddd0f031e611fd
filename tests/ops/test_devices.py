"""The native ops on every device against plain PyTorch in double precision: value, first and second derivative.

The rule: in single precision no output is further from the exact one than three times as far as plain PyTorch's in single
precision, or than rounding makes of numbers of its size (FLOOR).
"""

from __future__ import annotations

import pytest
import torch
from support.color_networks import KINDS as COLOR_KINDS
from support.color_networks import away_from_kinks, make_color_network, make_inputs
from support.devices import CUDA, DEVICES, error, leaves_of, need_device, to
from support.sdf_networks import KINDS, make_network, make_points

from nsr.geometry.poses import look_at
from nsr.geometry.visual_hull import carve
from nsr.ops.adam import adam_touched_
from nsr.ops.color_network import color_network
from nsr.ops.hash_grid import HashGridSpec, hash_grid, hash_grid_with_jacobian
from nsr.ops.sdf_network import sdf_and_normal, sdf_network
from nsr.ops.sphere_trace import TraceOptions, trace
from nsr.ops.trace_sdf_network import trace_sdf_network
from nsr.types import Cameras, Rays

FLOOR = {1: 5e-6, 2: 2e-5, 3: 2e-5}  # by order: values, first and second derivatives (sums over thousands of points)
SPEC = HashGridSpec(10, 2, 19, 384, 14, extent=1.2)
SIZES = [0, 1, 33, 300, 5000]  # 300: more than a block of a GPU takes


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


def make_colors(n, kind="instant"):
    network = make_color_network(kind)
    return away_from_kinks(network, make_inputs(kind, n)), network


def jacobian_op(x, table):
    outputs = hash_grid_with_jacobian(x, table, SPEC)
    return list(outputs), list(torch.autograd.grad(weighted(outputs), [x, table])), []


def make_grid(n):
    return make_points(n), torch.randn(SPEC.table_entries, 2, dtype=torch.float64)


CASES = {
    "hash_grid": (grid_op, make_grid),
    "hash_grid_with_jacobian": (jacobian_op, make_grid),
    "sdf_and_normal": (sdf_op, lambda n: (make_points(n), make_network("instant"))),
    "color_network": (color_op, make_colors),
}
OTHER_KINDS = {
    **{f"sdf {kind}": (sdf_op, lambda n, kind=kind: (make_points(n), make_network(kind))) for kind in KINDS},
    **{f"color {kind}": (color_op, lambda n, kind=kind: make_colors(n, kind)) for kind in COLOR_KINDS},
}


def check_exactness(op, arguments, device, backend, dtype=torch.float32):
    arguments = to(arguments, "cpu", dtype)  # what both precisions can represent
    with backend("reference"):
        exact = op(*to(arguments, "cpu", torch.float64))
        plain = op(*to(arguments, "cpu", dtype))
    with backend("native"):
        ours = op(*to(arguments, device, dtype))
    for order, (a, b, c) in enumerate(zip(ours, plain, exact, strict=True), start=1):
        for mine, theirs in zip(error(a, c), error(b, c), strict=True):
            least = FLOOR[order] if dtype == torch.float32 else 1e-6  # torch's softplus is not the exact one either
            assert mine <= max(3 * theirs, least), f"derivative {order - 1}: {mine:.2g}, plain PyTorch {theirs:.2g}"


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("n", SIZES)
@pytest.mark.parametrize("name", CASES)
def test_as_exact_as_plain_pytorch(backend, name, n, device):
    need_device(device)
    op, make = CASES[name]
    torch.manual_seed(0)
    check_exactness(op, make(n), device, backend)


@pytest.mark.parametrize("device", [CUDA])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", OTHER_KINDS)
def test_every_kind_of_network(backend, name, dtype, device):
    """On the CPU and the emulator this is what the tests of each op do."""
    need_device(device)
    op, make = OTHER_KINDS[name]
    torch.manual_seed(0)
    check_exactness(op, make(700), device, backend, dtype)


@pytest.mark.parametrize("device", [CUDA])
@pytest.mark.parametrize("name", CASES)
def test_blocks_of_the_largest_size_take_several_tiles(backend, name, device):
    """Small sizes run small blocks, one tile each: see plan_tiles."""
    need_device(device)
    op, make = CASES[name]
    torch.manual_seed(0)
    check_exactness(op, make(300_003), device, backend)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("n", SIZES)
def test_tables_of_halves(n, device):
    """As the table of the same floats; the gradients of the table up to their rounding to halves."""
    need_device(device)
    torch.manual_seed(0)
    x, table = to(make_grid(n), device, torch.float32)
    found = []
    for entries in (table.detach().half(), table.detach().half().float()):
        entries.requires_grad_()
        h = hash_grid(x, entries, SPEC)
        first = torch.autograd.grad(0.1 * weighted([h]), [x, entries], create_graph=True)
        second = torch.autograd.grad(1e-3 * first[0].square().sum() + 0.1 * first[1].float().sum(), [x, entries])
        assert first[1].dtype == second[1].dtype == entries.dtype
        found.append([value.detach().float() for value in (h, *first, *second)])
    assert torch.equal(found[0][0], found[1][0])
    for ours, floats in zip(*found, strict=True):
        torch.testing.assert_close(ours, floats, rtol=5e-3, atol=2e-3 * (floats.abs().max().item() if floats.numel() else 1.0))


@pytest.mark.parametrize("device", DEVICES)
def test_adam_and_visual_hull(backend, device):
    """Against plain PyTorch on the CPU."""
    need_device(device)
    generator = torch.Generator().manual_seed(0)
    start = [torch.rand(5001, generator=generator) for _ in range(4)]
    start[1][::3] = 0.0  # not touched
    masks = torch.rand(5, 40, 50, generator=generator) < 0.9
    eye = 3 * torch.nn.functional.normalize(torch.randn(5, 3, generator=generator), dim=1)
    intrinsics = torch.tensor([[50.0, 0, 25], [0, 50, 20], [0, 0, 1]]).repeat(5, 1, 1)
    cameras = Cameras(intrinsics, look_at(eye, torch.zeros(3), torch.tensor([0.0, 0.0, 1.0])), 50, 40)
    found = {}
    for name, place in (("reference", "cpu"), ("native", device)):
        with backend(name):
            value, grad, mean, square = (tensor.to(place, copy=True) for tensor in start)
            adam_touched_(value, grad, mean, square, 3, 1e-2, 0.9, 0.99, 1e-15)
            hull = carve(masks.to(place), cameras.to(place), 33)
        found[name] = [value.cpu(), mean.cpu(), square.cpu()], hull.cpu()
    for ours, theirs in zip(found["native"][0], found["reference"][0], strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)
    assert (found["native"][1] == found["reference"][1]).float().mean() > 0.999  # rounding may decide a vertex at a rim


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
        assert int(hits.evaluations) == pytest.approx(int(expected.evaluations), rel=0.02, abs=3), name


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
    """Grids of blocks larger than any device, and, for colours, more than 2^31 numbers kept between the passes: the last points
    get what they get alone."""
    need_device("cuda")
    generator = torch.Generator("cuda").manual_seed(0)
    x = 2 * torch.rand(10_000_001, 3, device="cuda", generator=generator) - 1
    if name == "color_network":
        network, few = (
            to(make_color_network("instant"), "cuda", torch.float32),
            to(make_inputs("instant", 1), "cuda", torch.float32),
        )
        rest = [t if t is None else t.detach() for t in few[1:]]
        grads = []
        for points in (x, x[-5:]):
            points = points.clone().requires_grad_()
            rgb = color_network(points, *(t if t is None else t.expand(len(points), -1) for t in rest), *network)
            grads.append((rgb[-5:].detach(), torch.autograd.grad(rgb.sum(), points)[0][-5:]))
        for many, alone in zip(*grads, strict=True):
            torch.testing.assert_close(many, alone, rtol=1e-5, atol=1e-6)
        return
    with torch.no_grad():
        if name.startswith("hash_grid"):
            table = torch.randn(SPEC.table_entries, 2, device="cuda", generator=generator)
            assert torch.equal(hash_grid(x, table, SPEC)[-5:], hash_grid(x[-5:], table, SPEC))
        else:
            network = to(make_network("instant"), "cuda", torch.float32)
            assert torch.equal(sdf_network(x, *network)[-5:], sdf_network(x[-5:], *network))
            for all_points, few in zip(sdf_and_normal(x, *network), sdf_and_normal(x[-5:], *network), strict=True):
                assert torch.equal(all_points[-5:], few)


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
        if name.startswith("hash_grid"):
            sum(output.sum() for output in hash_grid_with_jacobian(*arguments, SPEC)).backward()
        elif name == "color_network":
            color_network(*arguments[0], *arguments[1]).sum().backward()
        else:
            sum(output.sum() for output in sdf_and_normal(arguments[0], *arguments[1])).backward()
        trace_sdf_network(network, rays, TraceOptions(radius=1.2), mask)
    finally:
        torch.cuda.set_sync_debug_mode("default")
