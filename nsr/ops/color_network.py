"""Colour networks as single ops: hash grid, view direction, normal and feature through dense layers to a colour.

One pass over tiles of points, as in nsr.ops.sdf_network. Maths, forwards and backwards: csrc/kernels/color_network.h.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from nsr import _ext
from nsr.ops.dense_layers import LANES, Layers, check_alike, fits_kernel, flat_layers, needs_derivative
from nsr.ops.hash_grid import HashGridSpec, check_grid
from nsr.ops.reference import color_network as reference

MAX_VIEW_DEGREE = 3  # kMaxHarmonicsDegree of csrc/kernels/spherical_harmonics.h


class ColorNetwork(NamedTuple):
    """What the op needs of a network; `color_network(points, normals, view_dirs, features, *network)`.

    table: [T, F] and spec: the hash grid, see nsr.ops.hash_grid; active_levels: how many of its levels are evaluated.
    layers: (weight [outputs, inputs], bias [outputs]) of 1 to 7 hidden layers of width up to 128, with ReLU behind each, and of
        the output layer, whose 3 outputs z become colours (tanh(z) + 1) / 2. The inputs of the first layer are the 3
        coordinates, the L*F features of the grid, the encoded view direction, the normal, the feature.
    view_degree: of the spherical harmonics that encode the way to the camera (nsr/encoders/spherical_harmonics.py): 2 or 3; 1
        is the direction alone; 0 is a network without view direction.
    """

    table: Tensor
    spec: HashGridSpec
    active_levels: int
    layers: Layers
    view_degree: int


def color_network(
    points: Float[Tensor, "N 3"],
    normals: Float[Tensor, "N 3"] | None,
    view_dirs: Float[Tensor, "N 3"] | None,
    features: Float[Tensor, "N feature"],
    table: Float[Tensor, "T F"],
    spec: HashGridSpec,
    active_levels: int,
    layers: Layers,
    view_degree: int,
) -> Float[Tensor, "N 3"]:
    """The colours of surface points seen along directions.

    Once differentiable with respect to every input and parameter (a second derivative raises by name); only the gradients that
    are asked for are computed, and they are bit-identical for any number of threads (on a GPU that of the table is so only
    under torch.use_deterministic_algorithms(True)). What a point gets depends neither on the other points nor on the threads.

    Args:
        points: [N, 3] in the scene frame, float32 or float64; the grid covers [-extent, extent]^3.
        normals: [N, 3], as the network is to see them (not normalised here), or None for a network without.
        view_dirs: [N, 3] unit, from the camera (the network is told their opposite), or None for a network without.
        features: [N, feature], any length.
        table, spec, active_levels, layers, view_degree: see ColorNetwork. All tensors have one dtype and device.

    Returns:
        rgb [N, 3] in [0, 1].

    Raises:
        ValueError: a tensor's shape, dtype or device does not fit, or the network is not of the kind above.
    """
    network = ColorNetwork(table, spec, active_levels, layers, view_degree)
    arguments = network_arguments(points, normals, view_dirs, features, network)
    if _ext.backend() == "reference":
        return reference.color_network(*arguments)
    return torch.ops.nsr.color_network(*arguments, needs_derivative(*arguments))[0]


def has_kernel(network: ColorNetwork) -> bool:
    """Whether this network is served natively: of a depth, width and dtype, and on a device, that there are kernels for."""
    fits = fits_kernel(network.layers) and 0 <= network.view_degree <= MAX_VIEW_DEGREE
    return fits and network.table.dtype in (torch.float32, torch.float64) and _ext.served_natively(network.table.device.type)


def network_arguments(
    points: Tensor, normals: Tensor | None, view_dirs: Tensor | None, features: Tensor, network: ColorNetwork
) -> tuple:
    """The positional arguments of the op, after the checks that a user can trip over."""
    name = "color_network"
    table, spec, active_levels, layers, view_degree = network
    given = {"points": (points, 3), "normals": (normals, 3), "view_dirs": (view_dirs, 3), "features": (features, None)}
    given = {key: value for key, value in given.items() if value[0] is not None}
    for key, (tensor, columns) in given.items():
        if tensor.dim() != 2 or tensor.shape[0] != points.shape[0] or tensor.shape[1] != (columns or tensor.shape[1]):
            expected = f"[{'N' if key == 'points' else points.shape[0]}, {columns or 'F'}]"
            raise ValueError(f"{name}: {key} has shape {tuple(tensor.shape)}; expected {expected}")
    if not 0 <= view_degree <= MAX_VIEW_DEGREE or (view_degree > 0) != (view_dirs is not None):
        found = f"view_degree is {view_degree} {'without' if view_dirs is None else 'with'} view_dirs"
        raise ValueError(f"{name}: {found}; expected 1 to {MAX_VIEW_DEGREE} with, or 0 without")
    grid = check_grid(table, spec, active_levels, name)
    others = [tensor for tensor, _ in given.values()]
    check_alike("points", points, [*others, table, *(tensor for layer in layers for tensor in layer)], name)
    inputs = 3 + spec.output_dim + (view_degree + 1) ** 2 - 1 + (3 if normals is not None else 0) + features.shape[1]
    parameters, widths = flat_layers(layers, inputs, name)
    if widths[-1] != 3:
        raise ValueError(f"{name}: the last layer has {widths[-1]} outputs; expected 3, a colour")
    return points, normals, view_dirs, features, table, *grid, parameters, widths, view_degree


@_ext.on_load
def _register() -> None:
    """Attaches derivatives to the native ops."""
    ops = torch.ops.nsr

    def save(ctx, inputs, output):
        *tensors, table = inputs[:5]
        *ctx.grid, parameters, ctx.widths, ctx.view_degree, ctx.keep = inputs[5:]
        ctx.save_for_backward(output[1], *tensors, table, parameters)
        ctx.set_materialize_grads(False)
        ctx.mark_non_differentiable(output[1])

    def backward(ctx, grad_rgb, grad_kept):
        if not ctx.keep:
            raise RuntimeError("nsr::color_network: its derivative needs what a call with keep=True keeps; got keep=False")
        places = (0, 1, 2, 3, 4, 10)  # of points, normals, view_dirs, features, table, parameters
        result = [None] * 14
        if grad_rgb is None:
            return tuple(result)
        kept, *inputs, table, parameters = ctx.saved_tensors
        needs = [ctx.needs_input_grad[place] for place in places]
        network = (table, *ctx.grid, parameters, ctx.widths, ctx.view_degree)
        grads = ops.color_network_bwd(grad_rgb, kept, *inputs, *network, needs)
        for place, needed, grad in zip(places, needs, grads, strict=True):
            result[place] = grad if needed else None
        return tuple(result)

    def second_order(ctx, *grads):
        raise NotImplementedError(
            "nsr::color_network_bwd: second derivatives of color_network are not implemented; "
            "set NSR_BACKEND=reference to compute them in plain PyTorch"
        )

    torch.library.register_autograd("nsr::color_network", backward, setup_context=save)
    torch.library.register_autograd("nsr::color_network_bwd", second_order)


@_ext.on_load
def _register_fake() -> None:
    @torch.library.register_fake("nsr::color_network")
    def _(points, normals, view_dirs, features, table, *rest):
        resolutions, _offsets, _smoothstep, _extent, active_levels, _parameters, widths, view_degree, keep = rest
        n, levels = points.shape[0], len(resolutions)
        # ColorNetwork::kept of csrc/kernels/color_network.h: the inputs of the first layer, J, the outputs of all layers.
        inputs = 3 + levels * table.shape[1] + (view_degree + 1) ** 2 - 1 + features.shape[1]
        inputs += 3 if normals is not None else 0
        numbers = inputs + 3 * active_levels * table.shape[1] + sum(widths)
        tiles = (n + LANES - 1) // LANES if keep else 0
        return points.new_empty(n, 3), points.new_empty(tiles, numbers, LANES)

    @torch.library.register_fake("nsr::color_network_bwd")
    def _(grad_rgb, kept, points, normals, view_dirs, features, table, *rest):
        *_, parameters, _widths, _view_degree, needs = rest
        wanted = zip((points, points, points, features, table, parameters), needs, strict=True)
        return tuple(tensor.new_empty(tensor.shape if needed else 0) for tensor, needed in wanted)
