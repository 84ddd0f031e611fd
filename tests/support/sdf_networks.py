"""Small signed distance networks of every kind that nsr.ops.sdf_network takes, with random parameters away from zero."""

from __future__ import annotations

import itertools

import torch
from torch import Tensor

from nsr.ops.hash_grid import HashGridSpec
from nsr.ops.sdf_network import SdfNetwork

# grid, widths of the hidden layers, length of the feature, activation, active levels (None: all)
KINDS = {
    "instant": (HashGridSpec(6, 2, 4, 40, 9, extent=1.2), (64,), 15, "squareplus", None),
    "some levels": (HashGridSpec(6, 2, 4, 40, 9), (64,), 15, "squareplus", 2),
    "no level, no feature": (HashGridSpec(2, 1, 2, 4, 6), (5,), 0, "squareplus", 0),
    "softplus, odd sizes": (HashGridSpec(3, 3, 3, 9, 7, "smoothstep"), (13, 7), 4, "softplus", None),
    "deep and wide": (HashGridSpec(4, 4, 2, 16, 8), (128, 33, 64, 128), 2, "squareplus", 3),
    "seven hidden layers": (HashGridSpec(2, 1, 3, 6, 7), (4, 3, 5, 6, 2, 3, 4), 1, "softplus", None),
}


def make_network(kind: str, dtype: torch.dtype = torch.float64, seed: int = 0, scale: float = 1.0) -> SdfNetwork:
    """The network of a kind; scale: of its table."""
    spec, hidden, feature, activation, active = KINDS[kind]
    generator = torch.Generator().manual_seed(seed)

    def randn(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    widths = [3 + spec.output_dim, *hidden, 1 + feature]
    layers = tuple(
        ((randn(n_out, n_in) * (1.4 / n_in**0.5)).to(dtype).requires_grad_(), (0.1 * randn(n_out)).to(dtype).requires_grad_())
        for n_in, n_out in itertools.pairwise(widths)
    )
    table = (scale * randn(spec.table_entries, spec.features)).to(dtype).requires_grad_()
    return SdfNetwork(table, spec, spec.levels if active is None else active, layers, activation)


def tensors_of(network: SdfNetwork) -> list[Tensor]:
    """All parameters: the table, then weight and bias of each layer."""
    return [network.table, *(tensor for layer in network.layers for tensor in layer)]


def make_points(n: int, dtype: torch.dtype = torch.float64, seed: int = 0, extent: float = 1.0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return ((2 * torch.rand(n, 3, generator=generator, dtype=torch.float64) - 1) * extent).to(dtype)
