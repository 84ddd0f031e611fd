"""Neural Fourier Filter Bank (Wu, Jin and Yi 2023, arXiv 2212.01735), as in the paper and with style modulation.

Each level of a multi-resolution grid has a place in space and a band of frequencies: its features F_l(x) pass through sines
whose frequencies grow from level to level, gamma_l = sin(2 pi F_l B_l), and enter a chain of sine layers (Sitzmann et al. 2020)
there, so that higher frequencies are composed of lower ones. What the chain has after a level is that level's tap.

    h_0 = sin(omega (W_0 x + b_0));   filter bank:  h_l = sin(omega (W_l h_{l-1} + b_l)) + gamma_l
                                      modulated:    h_l = sin(omega (W_l(gamma_l) h_{l-1} + b_l))

Modulated, the Fourier features say how much of each input a layer takes, and its weights are brought back to the length that
they had (StyleGAN2, Karras et al. 2020, eq. 1 and 3: omega keeps its meaning); an attention over the levels then weighs what
each level contributes at a point. Nothing here depends on which other points are in a batch.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nsr.encoders.base import Encoder, VectorJacobian
from nsr.encoders.hash_grid import HashGridConfig, visible_levels
from nsr.encoders.tiny_cuda_nn import TcnnOptions
from nsr.ops.reference.filter_bank import Vjp, filter_bank
from nsr.ops.sdf_network import FilterBank


@dataclass(frozen=True)
class FilterBankConfig(HashGridConfig):
    """levels, features, base_resolution, max_resolution, log2_table_size, interpolation, extent, start_levels, init_scale and
    seed: of the grid, as HashGridConfig's. A level that is not shown is left out with its layer.

    width: neurons of each sine layer. omega: their frequency (SIREN's omega_0), head_omega: of those of the sum head.
    sigma: standard deviation of the first level's frequencies B_1, in periods per unit of a grid feature; each further level
    has sigma_growth times that of the one before.
    head: concatenate = the taps of all levels beside each other (the paper's for surfaces); sum = a sine layer on every tap,
    and their sum, `width` channels (for images and radiance).
    """

    levels: int = 6
    base_resolution: int = 8
    max_resolution: int = 128
    init_scale: float = 1e-2
    width: int = 64
    omega: float = 30.0
    head_omega: float = 30.0
    sigma: float = 5.0
    sigma_growth: float = 1.2
    head: Literal["concatenate", "sum"] = "concatenate"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.width < 1:
            raise ValueError(f"width must be at least 1, got {self.width}")
        for name in ("omega", "head_omega", "sigma", "sigma_growth"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be more than 0, got {getattr(self, name)}")

    def build(self) -> FilterBankEncoder:
        return FilterBankEncoder(self)


@dataclass(frozen=True)
class ModulatedFilterBankConfig(FilterBankConfig):
    """As FilterBankConfig; with style modulation and attention over the levels."""

    def build(self) -> ModulatedFilterBankEncoder:
        return ModulatedFilterBankEncoder(self)


@dataclass(frozen=True)
class TcnnFilterBankConfig(TcnnOptions, FilterBankConfig):
    """As FilterBankConfig, on tiny-cuda-nn's grid: see TcnnOptions."""

    def build(self) -> FilterBankEncoder:
        return TcnnFilterBankEncoder(self)


@dataclass(frozen=True)
class TcnnModulatedFilterBankConfig(TcnnOptions, ModulatedFilterBankConfig):
    """As ModulatedFilterBankConfig, on tiny-cuda-nn's grid: see TcnnOptions."""

    def build(self) -> ModulatedFilterBankEncoder:
        return TcnnModulatedFilterBankEncoder(self)


class FilterBankEncoder(Encoder):
    """x [N, 3] -> [N, 3 + levels * width] or, with the sum head, [N, 3 + width]: x, then what the head makes of the taps."""

    def __init__(self, config: FilterBankConfig) -> None:
        super().__init__()
        self.config, self.spec, self.grid = config, config.spec(), config.grid()
        self.start_levels = config.start_levels or config.levels
        self.active_levels = config.levels
        self.output_dim = 3 + (config.width if config.head == "sum" else config.levels * config.width)
        generator = torch.Generator().manual_seed(config.seed)

        def uniform(*shape: int, bound: float) -> nn.Parameter:
            return nn.Parameter((2.0 * torch.rand(*shape, generator=generator) - 1.0) * bound)

        levels, width = config.levels, config.width
        self.table = uniform(*self.grid.table_shape, bound=config.init_scale)
        # SIREN's initialisation (Sitzmann et al. 2020, sec. 3.2), so that all layers have the same distribution.
        self.first_weight, self.first_bias = uniform(width, 3, bound=1 / 3), uniform(width, bound=1 / math.sqrt(3))
        self.weight = uniform(levels, width, width, bound=math.sqrt(6 / width) / config.omega)
        self.bias = uniform(levels, width, bound=1 / math.sqrt(width))
        growth = config.sigma * config.sigma_growth ** torch.arange(levels, dtype=torch.float32)
        frequencies = torch.randn(levels, width, config.features, generator=generator)
        self.frequencies = nn.Parameter(growth[:, None, None] * frequencies)
        if config.head == "sum":
            self.head_weight = uniform(levels, width, width, bound=math.sqrt(6 / width) / config.head_omega)
            self.head_bias = uniform(levels, width, bound=1 / math.sqrt(width))

    def set_progress(self, fraction: float) -> None:
        self.active_levels = visible_levels(fraction, self.start_levels, self.spec.levels)

    def bank(self) -> FilterBank:
        """The sine layers as the ops of nsr.ops.sdf_network take them."""
        return FilterBank(self.first_weight, self.first_bias, self.frequencies, self.weight, self.bias, self.config.omega)

    def forward(self, x: Tensor) -> Tensor:
        return self._encode(x, self.grid.features(x, self.table, self.active_levels))[0]

    def forward_with_vjp(self, x: Tensor) -> tuple[Tensor, VectorJacobian]:
        features, grid_vjp = self.grid.features_with_vjp(x, self.table, self.active_levels)
        value, bank_vjp = self._encode(x, features)

        def vjp(grad_value: Tensor) -> Tensor:
            of_points, of_features = bank_vjp(grad_value)
            return of_points + grid_vjp(of_features)

        return value, vjp

    def _encode(self, x: Tensor, features: Tensor) -> tuple[Tensor, Vjp]:
        """The value, from points and their grid's features, and the map from its cotangent to those of the two."""
        bank = self.bank()
        parts = tuple(bank.tensors().values())
        taps, bank_vjp = filter_bank(x, features, parts, bank.omega, self.spec.extent, self.active_levels)
        head, head_vjp = self._sum(taps) if self.config.head == "sum" else (taps, lambda grad: grad)

        def vjp(grad_value: Tensor) -> tuple[Tensor, Tensor]:
            of_points, of_features = bank_vjp(head_vjp(grad_value[:, 3:]))
            return grad_value[:, :3] + of_points, of_features

        return torch.cat([x, head], dim=1), vjp

    def _sum(self, taps: Tensor) -> tuple[Tensor, VectorJacobian]:
        """[N, width] of the taps [N, levels * width], and the map from its cotangent to theirs."""
        omega, shown = self.config.head_omega, self.active_levels
        weight, bias = self.head_weight[:shown], self.head_bias[:shown]
        per_level = taps.unflatten(1, (self.spec.levels, self.config.width))[:, :shown]
        phase = omega * (torch.einsum("nli,loi->nlo", per_level, weight) + bias)

        def vjp(grad: Tensor) -> Tensor:
            of_shown = torch.einsum("nlo,loi->nli", grad[:, None] * omega * torch.cos(phase), weight)
            return F.pad(of_shown.flatten(1), (0, taps.shape[1] - shown * self.config.width))

        return torch.sin(phase).sum(dim=1), vjp


class ModulatedFilterBankEncoder(FilterBankEncoder):
    """FilterBankEncoder whose Fourier features modulate the layers, with a learned attention over the levels."""

    def __init__(self, config: ModulatedFilterBankConfig) -> None:
        super().__init__(config)
        generator = torch.Generator().manual_seed(config.seed + 1)
        width, levels = config.width, config.levels
        self.style = nn.Parameter(torch.randn(levels, width, width, generator=generator) / math.sqrt(width))
        # All levels weigh the same at first: random scores leave a surface that is rough for longer (docs/results.md).
        self.score = nn.Parameter(torch.zeros(levels, width))
        self.score_bias = nn.Parameter(torch.zeros(levels))

    def bank(self) -> FilterBank:
        return super().bank()._replace(style=self.style, score=self.score, score_bias=self.score_bias)


class TcnnFilterBankEncoder(FilterBankEncoder):
    """FilterBankEncoder on tiny-cuda-nn's grid: a type of its own, since the fused networks have the native grid in them."""


class TcnnModulatedFilterBankEncoder(ModulatedFilterBankEncoder):
    """ModulatedFilterBankEncoder on tiny-cuda-nn's grid."""
