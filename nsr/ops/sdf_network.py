"""Signed distance networks as single ops: raw coordinates and hash grid, on its own or with a Neural Fourier Filter Bank
behind it; dense layers; SDF, feature and surface normal.

One pass over tiles of points replaces the chain of PyTorch calls, whose tensors between the layers cost more than the
arithmetic of a small network. Maths, forwards and backwards: csrc/kernels/sdf_network.h and filter_bank.h.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from nsr import _ext
from nsr.ops.dense_layers import LANES, MAX_WIDTH, Layers, check_alike, fits_kernel, flat_layers, needs_derivative
from nsr.ops.hash_grid import HashGridSpec, check_grid
from nsr.ops.reference import sdf_network as reference

ActivationName = Literal["softplus", "squareplus"]
ACTIVATIONS: tuple[ActivationName, ...] = ("softplus", "squareplus")  # in the order of csrc/kernels/sdf_network.h


class FilterBank(NamedTuple):
    """The sine layers behind each level of a grid (Wu, Jin and Yi 2023); formulas: csrc/kernels/filter_bank.h.

    first_weight [W, 3], first_bias [W]: of the layer that takes the point; frequencies [L, W, F]: of the levels' features, in
    periods; weight [L, W, W], bias [L, W]: of the chain. omega: the chain's frequency. W: up to 128.
    style [L, W, W], score [L, W], score_bias [L]: of the modulated bank, which has all three.
    """

    first_weight: Tensor
    first_bias: Tensor
    frequencies: Tensor
    weight: Tensor
    bias: Tensor
    omega: float
    style: Tensor | None = None
    score: Tensor | None = None
    score_bias: Tensor | None = None

    def tensors(self) -> dict[str, Tensor]:
        """By name, in the order of the kernels."""
        return {name: value for name, value in self._asdict().items() if isinstance(value, Tensor)}


class SdfNetwork(NamedTuple):
    """What the ops need of a network; `sdf_network(x, *network)`.

    table: [T, F] and spec: the hash grid, see nsr.ops.hash_grid; active_levels: how many of its levels are evaluated.
    layers: (weight [outputs, inputs], bias [outputs]) of 1 to 7 hidden layers of width up to 128 and of the output layer. The
        first takes the 3 coordinates, then the L*F features of the grid, or the L*W taps of the bank; the last returns the
        SDF, then the feature.
    activation: between the layers: "softplus" (beta 100), or "squareplus", (z + sqrt(z^2 + 1e-3)) / 2.
    bank: the sine layers between grid and layers, if there are any.
    """

    table: Tensor
    spec: HashGridSpec
    active_levels: int
    layers: Layers
    activation: ActivationName
    bank: FilterBank | None = None


def sdf_network(
    x: Float[Tensor, "N 3"],
    table: Float[Tensor, "T F"],
    spec: HashGridSpec,
    active_levels: int,
    layers: Layers,
    activation: ActivationName,
    bank: FilterBank | None = None,
) -> Float[Tensor, " N"]:
    """The signed distance alone: the cheapest evaluation, without a derivative (asking for one raises by name).

    What a point gets depends neither on the other points nor on the number of threads.

    Args:
        x: [N, 3] points in the scene frame, float32 or float64; the grid covers [-extent, extent]^3. NaN gives NaN.
        table, spec, active_levels, layers, activation, bank: see SdfNetwork; dtype and device of x.

    Raises:
        ValueError: a tensor's shape, dtype or device does not fit, or the network is not of the kind above.
    """
    arguments = network_arguments(x, SdfNetwork(table, spec, active_levels, layers, activation, bank), "sdf_network")
    if _ext.backend() == "reference":
        return reference.sdf_network(x, *arguments)
    return torch.ops.nsr.sdf_network(x, *arguments)


def sdf_and_normal(
    x: Float[Tensor, "N 3"],
    table: Float[Tensor, "T F"],
    spec: HashGridSpec,
    active_levels: int,
    layers: Layers,
    activation: ActivationName,
    bank: FilterBank | None = None,
) -> tuple[Float[Tensor, " N"], Float[Tensor, "N feature"], Float[Tensor, "N 3"]]:
    """Signed distance, feature, and the distance's gradient with respect to x (not normalised), in one pass.

    Once differentiable with respect to x, table, layers and bank, exactly, through all three outputs (a second derivative
    raises by name): a loss on the normal needs no double backward. Gradients are bit-identical for any number of threads; on
    a GPU that of the table is so only under torch.use_deterministic_algorithms(True).

    Arguments and errors as for `sdf_network`.

    Returns:
        sdf [N], feature [N, outputs of the last layer - 1], gradient [N, 3].
    """
    arguments = network_arguments(x, SdfNetwork(table, spec, active_levels, layers, activation, bank), "sdf_and_normal")
    if _ext.backend() == "reference":
        return reference.sdf_and_normal(x, *arguments)
    return torch.ops.nsr.sdf_and_normal(x, *arguments, needs_derivative(x, *arguments))[:3]


def has_kernel(network: SdfNetwork) -> bool:
    """Whether this network is served natively: of a depth, width and dtype, and on a device, that there are kernels for."""
    fits = network.activation in ACTIVATIONS and fits_kernel(network.layers)
    fits = fits and (network.bank is None or network.bank.first_weight.shape[0] <= MAX_WIDTH)
    return fits and network.table.dtype in (torch.float32, torch.float64) and _ext.served_natively(network.table.device.type)


def network_arguments(x: Tensor, network: SdfNetwork, name: str) -> tuple:
    """The positional arguments of the ops behind x, after the checks that a user can trip over."""
    table, spec, active_levels, layers, activation, bank = network
    if x.dim() != 2 or x.shape[1] != 3:
        raise ValueError(f"{name}: x has shape {tuple(x.shape)}; expected [N, 3] (reshape(-1, 3) first)")
    grid = check_grid(table, spec, active_levels, name)
    if activation not in ACTIVATIONS:
        raise ValueError(f"{name}: activation is {activation!r}; expected one of {', '.join(ACTIVATIONS)}")
    check_alike(
        "x", x, [table, *(tensor for layer in layers for tensor in layer), *(bank.tensors().values() if bank else ())], name
    )
    flat_bank, width = (None, 0) if bank is None else _flat_bank(bank, spec, name)
    parameters, widths = flat_layers(layers, 3 + (spec.levels * width if bank else spec.output_dim), name)
    of_bank = (flat_bank, width, bank.style is not None, bank.omega) if bank else (None, 0, False, 0.0)
    return table, *grid, parameters, widths, ACTIVATIONS.index(activation), *of_bank


def _flat_bank(bank: FilterBank, spec: HashGridSpec, name: str) -> tuple[Tensor, int]:
    """All parameters in one tensor, and the width."""
    width, levels, tensors = bank.first_weight.shape[0], spec.levels, bank.tensors()
    expected = {
        "first_weight": (width, 3),
        "first_bias": (width,),
        "frequencies": (levels, width, spec.features),
        "weight": (levels, width, width),
        "bias": (levels, width),
    }
    if bank.style is not None:
        expected |= {"style": (levels, width, width), "score": (levels, width), "score_bias": (levels,)}
    if tensors.keys() != expected.keys():
        raise ValueError(f"{name}: the bank has {', '.join(tensors)}; expected {', '.join(expected)}")
    for field, shape in expected.items():
        if tuple(tensors[field].shape) != shape:
            raise ValueError(f"{name}: {field} of the bank has shape {tuple(tensors[field].shape)}; expected {list(shape)}")
    if not 1 <= width <= MAX_WIDTH:
        raise ValueError(f"{name}: the bank has width {width}; expected 1 to {MAX_WIDTH}")
    if not bank.omega > 0:
        raise ValueError(f"{name}: omega of the bank is {bank.omega}; expected more than 0")
    return torch.cat([tensor.reshape(-1) for tensor in tensors.values()]), width


def _kept_numbers(table: Tensor, active_levels: int, widths: list[int], bank_width: int, modulated: bool) -> int | torch.SymInt:
    """SdfNetwork::kept of csrc/kernels/sdf_network.h."""
    features, hidden = active_levels * table.shape[1], widths[:-1]
    visible = 3 + (active_levels * bank_width if bank_width else features)
    of_bank = 2 * features + (3 * active_levels + 1) * bank_width if bank_width and active_levels else 0
    if modulated and of_bank:
        of_bank += (3 * active_levels + 1) * bank_width + active_levels
    return 2 * visible + 3 * features + sum(hidden) + sum(hidden[:-1]) + of_bank


@_ext.on_load
def _register() -> None:
    """Attaches derivatives to the native ops."""
    ops = torch.ops.nsr

    def no_derivative(ctx, grad):
        raise NotImplementedError(
            "nsr::sdf_network has no derivative: use sdf_and_normal, or set NSR_BACKEND=reference for plain PyTorch"
        )

    def save(ctx, inputs, output):
        x, table, *ctx.grid, parameters, ctx.widths, ctx.activation, bank, width, modulated, omega, ctx.keep = inputs
        ctx.bank = width, modulated, omega
        ctx.save_for_backward(output[3], x, table, parameters, bank)
        ctx.set_materialize_grads(False)
        ctx.mark_non_differentiable(output[3])

    def backward(ctx, grad_sdf, grad_feature, grad_gradient, grad_kept):
        if not ctx.keep:
            raise RuntimeError("nsr::sdf_and_normal: its derivative needs what a call with keep=True keeps; got keep=False")
        kept, x, table, parameters, bank = ctx.saved_tensors
        needs = [ctx.needs_input_grad[i] for i in (0, 1, 7, 10)]  # x, table, parameters, bank
        network = (table, *ctx.grid, parameters, ctx.widths, ctx.activation, bank, *ctx.bank)
        grads = ops.sdf_and_normal_bwd(grad_sdf, grad_feature, grad_gradient, kept, x, *network, *needs)
        grad_x, grad_table, grad_parameters, grad_bank = (g if needed else None for g, needed in zip(grads, needs, strict=True))
        return grad_x, grad_table, *(None,) * 5, grad_parameters, None, None, grad_bank, *(None,) * 4

    def second_order(ctx, *grads):
        raise NotImplementedError(
            "nsr::sdf_and_normal_bwd: second derivatives of sdf_and_normal are not implemented; "
            "set NSR_BACKEND=reference to compute them in plain PyTorch"
        )

    attach = torch.library.register_autograd
    attach("nsr::sdf_network", no_derivative)
    attach("nsr::sdf_and_normal", backward, setup_context=save)
    attach("nsr::sdf_and_normal_bwd", second_order)


@_ext.on_load
def _register_fake() -> None:
    fake = torch.library.register_fake

    @fake("nsr::sdf_network")
    def _(x, *network):
        return x.new_empty(x.shape[0])

    @fake("nsr::sdf_and_normal")
    def _(x, table, resolutions, offsets, smoothstep, extent, active_levels, parameters, widths, activation, *bank_and_keep):
        _, bank_width, modulated, _, keep = bank_and_keep
        n = x.shape[0]
        tiles = (n + LANES - 1) // LANES if keep else 0
        kept = x.new_empty(tiles, _kept_numbers(table, active_levels, widths, bank_width, modulated), LANES)
        return x.new_empty(n), x.new_empty(n, widths[-1] - 1), x.new_empty(n, 3), kept

    @fake("nsr::sdf_and_normal_bwd")
    def _(grad_sdf, grad_feature, grad_gradient, kept, x, table, *rest):
        (
            *_,
            parameters,
            _widths,
            _activation,
            bank,
            _width,
            _modulated,
            _omega,
            need_x,
            need_table,
            need_parameters,
            need_bank,
        ) = rest
        wanted = ((x, need_x), (table, need_table), (parameters, need_parameters))
        wanted += ((parameters if bank is None else bank, need_bank and bank is not None),)
        return tuple(tensor.new_empty(tensor.shape if needed else 0) for tensor, needed in wanted)
