"""What benchmarks/kernels.py measures: each native op on random data, with the operations and bytes that it cannot avoid.

Counts are per call. N points, K pairs per point, L active levels, F features, C = L F, M weights of the hidden layers, O of the
output layer. Lookups: the eight corners of a cell lie in four pairs along x, and a pair nearly always in one cache line.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from floors import Cost, Gathers
from kernel_inputs import Inputs
from torch import Tensor

from nsr.geometry.cameras import image_pixels
from nsr.geometry.visual_hull import carve
from nsr.ops.adam import adam_touched_
from nsr.ops.color_network import ColorNetwork, color_network
from nsr.ops.hash_grid import HashGridSpec, hash_grid, hash_grid_with_jacobian
from nsr.ops.patch_ncc import patch_images, patch_ncc
from nsr.ops.sdf_network import SdfNetwork, sdf_and_normal, sdf_network
from nsr.ops.sphere_trace import TraceOptions, trace
from nsr.ops.trace_sdf_network import trace_sdf_network

FLOAT = 4  # bytes
CORNER_LINES = 4
# Flops per feature of a cell: h; h and dh/dx (interpolate_cell of csrc/kernels/hash_grid.h).
INTERPOLATE, INTERPOLATE_WITH_SLOPES = 21, 36
LOCATE = 6  # flops per point and level: x times the resolution, less the cell
SCATTER = 2  # per corner and feature: a weight times a cotangent, added
SCATTER_WITH_SLOPES = (INTERPOLATE_WITH_SLOPES + 8) / 8  # the transposed map, added at eight corners
ACTIVATE, ACTIVATE_WITH_SLOPE = 5, 6  # per neuron: squareplus
SINE = 30  # per neuron of a filter bank: sine and cosine, with their range reduction
ADAM = 15  # per entry touched
HARMONICS = 40  # per direction, degree 3
WAVEFRONT_STATE = 2 * (12 * FLOAT + 7 * 4)  # bytes per evaluation: the state of a ray, read and written
PATCH_SAMPLE, PATCH_SLOPES = 45, 25  # per sample of a pair: ray, plane, projection, interpolation, moments; their derivatives


@dataclass(frozen=True)
class Case:
    """prepare() returns the call to be timed; it is called under the backend that is to serve it. items: points, SDF
    evaluations, pairs, entries or vertices that a call works through."""

    name: str
    prepare: Callable[[], Callable[[], object]]
    cost: Cost
    items: float


def all_cases(inputs: Inputs) -> Iterator[Case]:
    for family in (grid_cases, sdf_cases, trace_cases, color_cases, patch_cases, adam_cases, hull_cases):
        yield from family(inputs)


def backward_of(forward: Callable[[], object], wanted: list[Tensor]) -> Callable[[], Callable[[], object]]:
    """Times the backward pass alone, for cotangents of one of all outputs."""

    def prepare() -> Callable[[], object]:
        outputs = forward()
        outputs = [o for o in (outputs if isinstance(outputs, tuple) else (outputs,)) if o.requires_grad]
        grads = [torch.ones_like(output) for output in outputs]
        return lambda: torch.autograd.grad(outputs, wanted, grads, retain_graph=True)

    return prepare


def without_grad(call: Callable[[], object]) -> Callable[[], Callable[[], object]]:
    return lambda: torch.no_grad()(call)


def lookups(points: float, spec: HashGridSpec, levels: int, number_bytes: int = FLOAT) -> Gathers:
    """Each level's cache lines, in an array no larger than the level."""
    entries = [b - a for a, b in zip(spec.offsets, spec.offsets[1:], strict=False)][:levels]
    return tuple((points * CORNER_LINES, count * spec.features * number_bytes) for count in entries)


def grid_flops(points: float, spec: HashGridSpec, levels: int, per_feature: float) -> float:
    return points * levels * (LOCATE + per_feature * spec.features)


def weights(network: SdfNetwork | ColorNetwork) -> tuple[int, int, int, int]:
    """M, O, hidden neurons, and all parameters."""
    *hidden, out = [weight for weight, _ in network.layers]
    biases = sum(bias.numel() for _, bias in network.layers)
    m = sum(w.numel() for w in hidden)
    return m, out.numel(), sum(w.shape[0] for w in hidden), m + out.numel() + biases


def grid_cases(inputs: Inputs) -> Iterator[Case]:
    yield from _grid_cases(inputs, inputs.sdf.table)
    if inputs.device != "cpu":  # on the CPU halves are for tests: it converts them one by one
        yield from _grid_cases(inputs, inputs.sdf.table.detach().half().requires_grad_(), " of halves")


def _grid_cases(inputs: Inputs, entries: Tensor, of: str = "") -> Iterator[Case]:
    network, x = inputs.sdf, inputs.points
    n, spec, levels = len(x), network.spec, network.active_levels
    arguments = (x, entries, spec, levels)
    c, table = levels * spec.features, entries.numel() * entries.element_size()
    gathers = lookups(n, spec, levels, entries.element_size())
    corners = n * levels * 8 * spec.features
    yield Case(
        f"hash_grid{of}",
        without_grad(lambda: hash_grid(*arguments)),
        Cost(grid_flops(n, spec, levels, INTERPOLATE), n * (3 + c) * FLOAT, gathers),
        n,
    )
    yield Case(
        f"hash_grid_with_jacobian{of}",
        without_grad(lambda: hash_grid_with_jacobian(*arguments)),
        Cost(grid_flops(n, spec, levels, INTERPOLATE_WITH_SLOPES), n * (3 + 4 * c) * FLOAT, gathers),
        n,
    )
    # To the table, which is written whole: what no point touches is zero.
    yield Case(
        f"hash_grid backward{of}",
        backward_of(lambda: hash_grid(*arguments), [entries]),
        Cost(n * levels * LOCATE + corners * SCATTER, n * (3 + c) * FLOAT + table, gathers),
        n,
    )
    yield Case(
        f"hash_grid_with_jacobian backward{of}",
        backward_of(lambda: hash_grid_with_jacobian(*arguments), [entries]),
        Cost(n * levels * LOCATE + corners * SCATTER_WITH_SLOPES, n * (3 + 4 * c) * FLOAT + table, gathers),
        n,
    )
    # A loss on dh/dx, back to the table: the second order, by autograd's double backward. J g and the scatter of its cotangent.
    points = x.clone().requires_grad_()
    flops = grid_flops(n, spec, levels, INTERPOLATE_WITH_SLOPES) + corners * SCATTER_WITH_SLOPES
    yield Case(
        f"hash_grid second order{of}",
        backward_of(lambda: slope_along(hash_grid(points, *arguments[1:]), points), [entries]),
        Cost(flops, n * (3 + 3 + 2 * c) * FLOAT + table, gathers),
        n,
    )


def slope_along(h: Tensor, points: Tensor) -> Tensor:
    """d sum(h) / d points, to be differentiated again."""
    return torch.autograd.grad(h.sum(), points, create_graph=True)[0]


def sdf_cases(inputs: Inputs) -> Iterator[Case]:
    yield from _sdf_cases(inputs.sdf, inputs.points)
    for name, network in inputs.banks.items():
        yield from _sdf_cases(network, inputs.points, f" {name}")


def _sdf_cases(network: SdfNetwork, x: Tensor, of: str = "") -> Iterator[Case]:
    n, spec, levels = len(x), network.spec, network.active_levels
    m, out, neurons, parameters = weights(network)
    in_bank, sines = bank_weights(network)
    c, outputs, gathers = levels * spec.features, network.layers[-1][0].shape[0], lookups(n, spec, levels)
    yield Case(f"sdf_network{of}", without_grad(lambda: sdf_network(x, *network)), sdf_cost(network, n, n * 4 * FLOAT), n)
    # The SDF's gradient is a reverse pass through the hidden layers and the product with J.
    flops = grid_flops(n, spec, levels, INTERPOLATE_WITH_SLOPES)
    flops += n * (2 * (m + out) + 2 * m + ACTIVATE_WITH_SLOPE * neurons + 6 * c + 4 * in_bank + SINE * sines)
    stream = (n * (3 + outputs + 3) + parameters) * FLOAT
    yield Case(f"sdf_and_normal{of}", lambda: lambda: sdf_and_normal(x, *network), Cost(flops, stream, gathers), n)
    # Backwards through that (csrc/kernels/sdf_network.h): per hidden layer W dp, q dp^T, W^T dz and dz a^T, per output layer
    # W^T dout and dout a^T; J g; and the scatter of both cotangents to the table.
    flops = n * (8 * m + 4 * out + 2 * ACTIVATE_WITH_SLOPE * neurons + 6 * c + levels * LOCATE + 8 * in_bank + SINE * sines)
    flops += n * c * 8 * SCATTER_WITH_SLOPES
    stream += (parameters + network.table.numel()) * FLOAT
    wanted = [network.table, *(tensor for layer in network.layers for tensor in layer)]
    wanted += network.bank.tensors().values() if network.bank else []
    backward = backward_of(lambda: sdf_and_normal(x, *network), wanted)
    yield Case(f"sdf_and_normal{of} backward", backward, Cost(flops, stream, gathers), n)


def bank_weights(network: SdfNetwork) -> tuple[int, int]:
    """Multiplications and sines per point in a network's filter bank."""
    if network.bank is None:
        return 0, 0
    levels, (_, width, features) = network.active_levels, network.bank.frequencies.shape
    squares = 3 if network.bank.style is not None else 1  # of width, per level: weights; their squares, and styles
    return 3 * width + levels * width * (squares * width + features), (2 * levels + 1) * width


def sdf_cost(network: SdfNetwork, n: float, stream: float) -> Cost:
    """Of n values of the SDF: all hidden layers, one row of the output layer."""
    m, _, neurons, parameters = weights(network)
    flops = grid_flops(n, network.spec, network.active_levels, INTERPOLATE)
    in_bank, sines = bank_weights(network)
    flops += n * (2 * m + 2 * network.layers[-1][0].shape[1] + ACTIVATE * neurons + 2 * in_bank + SINE * sines)
    return Cost(flops, stream + parameters * FLOAT, lookups(n, network.spec, network.active_levels))


def trace_cases(inputs: Inputs) -> Iterator[Case]:
    rays, options, n = inputs.rays(), inputs.config.model.ray_tracer, inputs.size.rays
    for name, network in {"": inputs.sdf, **{f" {name}": network for name, network in inputs.banks.items()}}.items():
        # Counted: the evaluations that this trace takes, not the steps of the state machine between them.
        evaluations = int(trace_sdf_network(network, rays, options).evaluations)
        yield Case(
            f"trace_sdf_network{name}",
            lambda network=network: lambda: trace_sdf_network(network, rays, options),
            sdf_cost(network, evaluations, n * (6 + 1) * FLOAT + n),
            evaluations,
        )
    # The state machine of the wavefront alone: IDR's options on the SDF of a ball, which costs next to nothing.
    idr = TraceOptions()

    def ball(points: Tensor) -> Tensor:
        return points.norm(dim=-1) - 0.6

    evaluations = trace(ball, rays, idr).evaluations
    stream = evaluations * (2 * (3 + 1) * FLOAT + WAVEFRONT_STATE) + n * (6 + 1) * FLOAT + n
    yield Case("sphere_trace wavefront", lambda: lambda: trace(ball, rays, idr), Cost(evaluations * 20, stream), evaluations)


def color_cases(inputs: Inputs) -> Iterator[Case]:
    network, n = inputs.color, inputs.size.points
    spec, levels = network.spec, network.active_levels
    m, out, _, parameters = weights(network)
    features = inputs.config.model.implicit_network.feature_size
    tensors = [2 * inputs.rand(n, 3) - 1, inputs.rand(n, 3), inputs.directions(n), inputs.rand(n, features)]
    given = sum(tensor.shape[1] for tensor in tensors)
    c, gathers = levels * spec.features, lookups(n, spec, levels)
    flops = grid_flops(n, spec, levels, INTERPOLATE) + n * (2 * (m + out) + HARMONICS + 10 * 3)
    stream = (n * (given + 3) + parameters) * FLOAT
    yield Case("color_network", without_grad(lambda: color_network(*tensors, *network)), Cost(flops, stream, gathers), n)
    # To all but the view directions: W^T dz and dz a^T per layer, J^T to the points, the scatter to the table.
    tensors = [tensor.requires_grad_(i != 2) for i, tensor in enumerate(tensors)]
    flops = n * (4 * (m + out) + 10 * 3 + 6 * c + levels * LOCATE) + n * c * 8 * SCATTER
    stream += (n * (given - 3) + parameters + network.table.numel()) * FLOAT
    wanted = [tensors[0], tensors[1], tensors[3], network.table, *(tensor for layer in network.layers for tensor in layer)]
    backward = backward_of(lambda: color_network(*tensors, *network), wanted)
    yield Case("color_network backward", backward, Cost(flops, stream, gathers), n)


def patch_cases(inputs: Inputs) -> Iterator[Case]:
    """Points on a ball that their reference view and most sources see."""
    cameras, patch, photometric = inputs.cameras(), inputs.size.patch, inputs.config.photometric
    (views, height, width), n = inputs.size.images, photometric.rays
    k = min(photometric.sources, views - 1)
    images = patch_images(inputs.rand(views, height, width), cameras)
    view = (inputs.rand(n) * views).long()
    toward = torch.nn.functional.normalize(cameras.centers[view], dim=1)
    normal = torch.nn.functional.normalize(toward + 0.3 * inputs.directions(n), dim=1)
    x = (0.5 * normal).requires_grad_()
    normal = normal.clone().requires_grad_()
    seen = (images.projections[view] @ (x.detach() - images.centers[view])[..., None])[..., 0]
    pixels = seen[:, :2] / seen[:, 2:]
    closeness = cameras.centers[view] @ cameras.centers.T
    sources = closeness.topk(k + 1).indices[:, 1:]  # the nearest other views
    arguments = (x, normal, pixels, view, sources, images, patch)

    pairs = int(patch_ncc(*arguments).valid.sum())  # the others end early
    samples = pairs * patch**2
    lines = (patch + 1) * (pairs + n)  # one per row of pixels under a patch
    stream = n * (8 * FLOAT + 8 + 8 * k) + n * k * (FLOAT + 1)
    # With the derivatives, which the forward pass computes while it has the samples.
    cost = Cost(samples * (PATCH_SAMPLE + PATCH_SLOPES), stream, ((lines, views * height * width * FLOAT),))
    yield Case("patch_ncc", lambda: lambda: patch_ncc(*arguments), cost, n * k)
    stream = n * k * FLOAT + n * 6 * FLOAT
    backward = backward_of(lambda: patch_ncc(*arguments).ncc, [x, normal])
    yield Case("patch_ncc backward", backward, Cost(pairs * 12, stream), n * k)


def adam_cases(inputs: Inputs) -> Iterator[Case]:
    """With the gradient of a step: as many entries touched as its points touch."""
    grad = table_gradient(inputs.sdf, inputs.points)
    value, mean, square = inputs.sdf.table.detach().clone(), torch.zeros_like(grad), torch.zeros_like(grad)
    number, lr = (torch.tensor(v, dtype=torch.float64, device=grad.device) for v in (1.0, 1e-4))  # no copy per call
    step = (number, lr, 0.9, 0.99, 1e-15)
    yield Case("adam_touched_", lambda: lambda: adam_touched_(value, grad, mean, square, *step), adam_cost(grad), grad.numel())


def table_gradient(network: SdfNetwork | ColorNetwork, points: Tensor) -> Tensor:
    h = hash_grid(points, network.table, network.spec, network.active_levels)
    return torch.autograd.grad(h.sum(), network.table)[0]


def adam_cost(grad: Tensor) -> Cost:
    """The gradient is read whole; value and moments of the touched entries are read and written."""
    touched = int((grad != 0).sum())
    return Cost(ADAM * touched, grad.numel() * FLOAT + touched * 6 * FLOAT)


def hull_cases(inputs: Inputs) -> Iterator[Case]:
    """A ball in every mask. Counted: the masks read and the vertices written, since how many vertices ask how many views is
    up to the implementation."""
    (views, height, width), resolution = inputs.size.images, inputs.size.hull
    cameras = inputs.cameras()
    pixels = image_pixels(width, height, inputs.device)
    center = pixels.new_tensor([width / 2, height / 2])
    disc = ((pixels - center).norm(dim=1) < 0.3 * height).reshape(height, width)
    masks = disc.repeat(views, 1, 1)
    cost = Cost(0.0, float(masks.numel() + resolution**3))
    yield Case("visual_hull", lambda: lambda: carve(masks, cameras, resolution), cost, resolution**3)
