"""Small colour networks of every kind that nsr.ops.color_network takes, with random parameters away from zero."""

from __future__ import annotations

import itertools
from typing import NamedTuple

import torch
from torch import Tensor

from nsr.ops.color_network import ColorNetwork, network_arguments
from nsr.ops.hash_grid import HashGridSpec
from nsr.ops.reference.dense_layers import split_layers
from nsr.ops.reference.hash_grid import hash_grid
from nsr.ops.reference.spherical_harmonics import spherical_harmonics

# grid, widths of the hidden layers, length of the feature, view degree, with normal, active levels (None: all)
KINDS = {
    "instant": (HashGridSpec(6, 2, 4, 40, 9, extent=1.2), (64, 64), 15, 3, True, None),
    "some levels": (HashGridSpec(6, 2, 4, 40, 9), (64, 64), 15, 3, True, 2),
    "no level, no feature": (HashGridSpec(2, 1, 2, 4, 6), (5,), 0, 1, True, 0),
    "no view, odd sizes": (HashGridSpec(3, 3, 3, 9, 7, "smoothstep"), (13, 7), 4, 0, True, None),
    "no normal, deep and wide": (HashGridSpec(4, 4, 2, 16, 8), (128, 33, 64, 128), 2, 2, False, 3),
    "neither, seven hidden layers": (HashGridSpec(2, 1, 3, 6, 7), (4, 3, 5, 6, 2, 3, 4), 140, 0, False, None),
}


class ColorInputs(NamedTuple):
    """The first arguments of the op; normals and view_dirs are None where the network does not take them."""

    points: Tensor
    normals: Tensor | None
    view_dirs: Tensor | None
    features: Tensor

    def present(self) -> list[Tensor]:
        return [tensor for tensor in self if tensor is not None]


def make_color_network(kind: str, dtype: torch.dtype = torch.float64, seed: int = 0) -> ColorNetwork:
    spec, hidden, feature, degree, with_normal, active = KINDS[kind]
    generator = torch.Generator().manual_seed(seed)

    def randn(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    inputs = 3 + spec.output_dim + (degree + 1) ** 2 - 1 + (3 if with_normal else 0) + feature
    layers = tuple(
        ((randn(n_out, n_in) * (1.4 / n_in**0.5)).to(dtype).requires_grad_(), (0.2 * randn(n_out)).to(dtype).requires_grad_())
        for n_in, n_out in itertools.pairwise([inputs, *hidden, 3])
    )
    table = randn(spec.table_entries, spec.features).to(dtype).requires_grad_()
    return ColorNetwork(table, spec, spec.levels if active is None else active, layers, degree)


def make_inputs(kind: str, n: int, dtype: torch.dtype = torch.float64, seed: int = 0, extent: float = 1.0) -> ColorInputs:
    """Points in the cube of half side `extent`; every tensor is a leaf that requires its gradient."""
    _, _, feature, degree, with_normal, _ = KINDS[kind]
    generator = torch.Generator().manual_seed(seed)

    def randn(columns: int) -> Tensor:
        return torch.randn(n, columns, generator=generator, dtype=torch.float64)

    points = (2 * torch.rand(n, 3, generator=generator, dtype=torch.float64) - 1) * extent
    view_dirs = torch.nn.functional.normalize(randn(3), dim=1)
    tensors = (points, randn(3) if with_normal else None, view_dirs if degree else None, randn(feature))
    return ColorInputs(*(tensor if tensor is None else tensor.to(dtype).requires_grad_() for tensor in tensors))


def tensors_of(network: ColorNetwork) -> list[Tensor]:
    """All parameters: the table, then weight and bias of each layer."""
    return [network.table, *(tensor for layer in network.layers for tensor in layer)]


def away_from_kinks(network, inputs, distance=1e-4):
    """The inputs whose pre-activations are all further from 0 than rounding may move them: both sides take the same branch."""
    points, normals, view_dirs, features, table, *grid, parameters, widths, degree = network_arguments(*inputs, network)
    with torch.no_grad():
        view = spherical_harmonics(-view_dirs, degree) if degree else points[:, :0]
        normal = points[:, :0] if normals is None else normals
        value = torch.cat([points, hash_grid(points, table, *grid), view, normal, features], 1)
        keep = torch.ones(len(points), dtype=torch.bool)
        for weight, bias in split_layers(value.shape[1], parameters, widths)[:-1]:
            z = torch.nn.functional.linear(value, weight, bias)
            keep &= (z.abs() > distance).all(1)
            value = z.relu()
    return ColorInputs(*(t if t is None else t.detach()[keep].requires_grad_() for t in inputs))
