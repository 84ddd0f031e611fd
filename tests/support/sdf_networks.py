"""Small signed distance networks of every kind that nsr.ops.sdf_network takes, with random parameters away from zero."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor

from nsr.ops.hash_grid import HashGridSpec
from nsr.ops.sdf_network import FilterBank, SdfNetwork

# grid, widths of the hidden layers, length of the feature, activation, active levels (None: all), width of the bank (0: none;
# negative: modulated)
KINDS = {
    "instant": (HashGridSpec(6, 2, 4, 40, 9, extent=1.2), (64,), 15, "squareplus", None, 0),
    "some levels": (HashGridSpec(6, 2, 4, 40, 9), (64,), 15, "squareplus", 2, 0),
    "no level, no feature": (HashGridSpec(2, 1, 2, 4, 6), (5,), 0, "squareplus", 0, 0),
    "softplus, odd sizes": (HashGridSpec(3, 3, 3, 9, 7, "smoothstep"), (13, 7), 4, "softplus", None, 0),
    "deep and wide": (HashGridSpec(4, 4, 2, 16, 8), (128, 33, 64, 128), 2, "squareplus", 3, 0),
    "seven hidden layers": (HashGridSpec(2, 1, 3, 6, 7), (4, 3, 5, 6, 2, 3, 4), 1, "softplus", None, 0),
    "bank": (HashGridSpec(6, 2, 4, 40, 9, extent=1.2), (64,), 15, "squareplus", None, 32),
    "bank, some levels": (HashGridSpec(5, 3, 3, 20, 9), (7, 9), 4, "squareplus", 2, 5),
    "bank, no level": (HashGridSpec(2, 1, 2, 4, 6), (5,), 1, "squareplus", 0, 4),
    "bank, odd sizes": (HashGridSpec(3, 1, 3, 9, 7, "smoothstep"), (6,), 0, "softplus", None, 13),
    "modulated": (HashGridSpec(6, 2, 4, 40, 9, extent=1.2), (64,), 15, "squareplus", None, -32),
    "modulated, some levels": (HashGridSpec(5, 3, 3, 20, 9), (7, 9), 4, "squareplus", 2, -5),
    "modulated, one level": (HashGridSpec(3, 1, 3, 9, 7, "smoothstep"), (6,), 0, "softplus", 1, -13),
    "bank, wide": (HashGridSpec(3, 4, 2, 16, 8), (128, 33), 2, "squareplus", 2, 128),
}


def make_network(kind: str, dtype: torch.dtype = torch.float64, seed: int = 0, scale: float = 1.0) -> SdfNetwork:
    """The network of a kind; scale: of its table."""
    spec, hidden, feature, activation, active, width = KINDS[kind]
    generator = torch.Generator().manual_seed(seed)

    def randn(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    modulated, width = width < 0, abs(width)
    bank = None
    if width:
        shapes = [(width, 3), (width,), (spec.levels, width, spec.features), (spec.levels, width, width), (spec.levels, width)]
        shapes += [(spec.levels, width, width), (spec.levels, width), (spec.levels,)] * modulated
        scales = (0.3, 0.3, 0.2, 0.5 / width**0.5, 0.3, 0.5 / width**0.5, 1 / width**0.5, 0.3)
        tensors = [(size * randn(*shape)).to(dtype).requires_grad_() for shape, size in zip(shapes, scales, strict=False)]
        bank = FilterBank(*tensors[:5], 3.0, *tensors[5:])
    widths = [3 + (spec.levels * width if bank else spec.output_dim), *hidden, 1 + feature]
    layers = tuple(
        ((randn(n_out, n_in) * (1.4 / n_in**0.5)).to(dtype).requires_grad_(), (0.1 * randn(n_out)).to(dtype).requires_grad_())
        for n_in, n_out in itertools.pairwise(widths)
    )
    table = (scale * randn(spec.table_entries, spec.features)).to(dtype).requires_grad_()
    return SdfNetwork(table, spec, spec.levels if active is None else active, layers, activation, bank)


def tensors_of(network: SdfNetwork) -> list[Tensor]:
    """All parameters: the table, weight and bias of each layer, then those of the bank."""
    return [
        network.table,
        *(tensor for layer in network.layers for tensor in layer),
        *(network.bank.tensors().values() if network.bank else ()),
    ]


def with_tensors(network: SdfNetwork, tensors: Sequence[Tensor]) -> SdfNetwork:
    """The network with other parameters, in the order of tensors_of."""
    table, *rest = tensors
    layers, of_bank = rest[: 2 * len(network.layers)], rest[2 * len(network.layers) :]
    pairs = tuple(zip(layers[::2], layers[1::2], strict=True))
    bank = network.bank and network.bank._replace(**dict(zip(network.bank.tensors(), of_bank, strict=True)))
    return network._replace(table=table, layers=pairs, bank=bank)


def make_points(n: int, dtype: torch.dtype = torch.float64, seed: int = 0, extent: float = 1.0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return ((2 * torch.rand(n, 3, generator=generator, dtype=torch.float64) - 1) * extent).to(dtype)
