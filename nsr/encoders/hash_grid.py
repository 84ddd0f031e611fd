"""Multi-resolution hash grid (Mueller et al. 2022) as an encoder: the table is a parameter, the maths is nsr.ops.hash_grid."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from nsr.encoders.base import Encoder, EncoderConfig, VectorJacobian
from nsr.ops.hash_grid import HashGridSpec, hash_grid, hash_grid_with_jacobian
from nsr.utils.errors import UsageError


@runtime_checkable
class Grid(Protocol):
    """A multi-resolution grid without its table [T, F], which is a parameter of the encoder on top.

    table_shape: (T, F); output_dim: L*F. Levels behind the first `active` ones are zero, and their entries receive none.
    """

    table_shape: tuple[int, int]
    output_dim: int

    def features(self, x: Tensor, table: Tensor, active: int) -> Tensor:
        """h [N, L*F] at x [N, 3], scene frame."""

    def features_with_vjp(self, x: Tensor, table: Tensor, active: int) -> tuple[Tensor, VectorJacobian]:
        """h, and the map grad_h [N, L*F] -> grad_x [N, 3], which is differentiable by grad_h, x and table."""


class NativeGrid:
    """The grid of nsr.ops.hash_grid, on every device."""

    def __init__(self, spec: HashGridSpec) -> None:
        self.spec = spec
        self.table_shape = (spec.table_entries, spec.features)
        self.output_dim = spec.output_dim

    def features(self, x: Tensor, table: Tensor, active: int) -> Tensor:
        return hash_grid(x, table, self.spec, active)

    def features_with_vjp(self, x: Tensor, table: Tensor, active: int) -> tuple[Tensor, VectorJacobian]:
        features, jacobian = hash_grid_with_jacobian(x, table, self.spec, active)
        return features, lambda grad: torch.bmm(grad[:, None], jacobian)[:, 0]  # [N, 1, C] x [N, C, 3]


@dataclass(frozen=True)
class HashGridConfig(EncoderConfig):
    """levels x features; resolutions grow geometrically from base_resolution to max_resolution cells per axis.

    extent: half the side of the cube around the origin that they span, scene units. Behind its faces the features stay as they
        are there: it should reach as far as the surface may (model.ray_tracer.radius).
    log2_table_size: a level of more vertices than 2^this is hashed into that many entries.
    start_levels: levels visible at progress 0 (see Encoder.set_progress); 0 shows all from the beginning.
    init_scale: the table starts uniform in +-init_scale (the paper's 1e-4); seed: of that draw.
    """

    levels: int = 12
    features: int = 2
    base_resolution: int = 16
    max_resolution: int = 320
    log2_table_size: int = 17
    interpolation: Literal["linear", "smoothstep"] = "linear"
    extent: float = 1.0
    start_levels: int = 0
    init_scale: float = 1e-4
    seed: int = 0

    def __post_init__(self) -> None:
        self.spec()  # raises ValueError for impossible grids
        if not 0 <= self.start_levels <= self.levels:
            raise ValueError(f"start_levels must be in 0..levels = {self.levels}, got {self.start_levels}")

    def spec(self) -> HashGridSpec:
        return HashGridSpec(
            levels=self.levels,
            features=self.features,
            base_resolution=self.base_resolution,
            max_resolution=self.max_resolution,
            log2_table_size=self.log2_table_size,
            interpolation=self.interpolation,
            extent=self.extent,
        )

    def grid(self) -> Grid:
        return NativeGrid(self.spec())

    def build(self) -> GridEncoder:
        return HashGridEncoder(self)


@dataclass(frozen=True)
class CudaHashGridConfig(HashGridConfig):
    """As HashGridConfig; trained on a GPU or not at all. What was trained can be looked at everywhere."""

    def check_device(self, kind: str) -> None:
        if kind != "cuda":
            raise UsageError(
                f"encoder hashgrid_cuda: it is to be trained on an NVIDIA GPU, not on {kind}; give --device cuda, or take "
                "encoder hashgrid (--exp HashGrid), the same grid on every device"
            )


def visible_levels(fraction: float, start: int, levels: int) -> int:
    """How many levels show at this fraction of the way from `start` levels to all of them."""
    added = math.floor(fraction * (levels - start + 1))
    return min(start + max(added, 0), levels)


class GridEncoder(Encoder):
    """x [N, 3] -> [N, 3 + levels * features]: x, then the interpolated features of each level."""

    def __init__(self, config: HashGridConfig) -> None:
        super().__init__()
        self.levels = config.levels
        self.grid = config.grid()
        self.start_levels = config.start_levels or config.levels
        self.active_levels = config.levels
        self.output_dim = 3 + self.grid.output_dim
        table = torch.rand(*self.grid.table_shape, generator=torch.Generator().manual_seed(config.seed))
        self.table = nn.Parameter((2.0 * table - 1.0) * config.init_scale)

    def set_progress(self, fraction: float) -> None:
        self.active_levels = visible_levels(fraction, self.start_levels, self.levels)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x, self.grid.features(x, self.table, self.active_levels)], dim=1)

    def forward_with_vjp(self, x: Tensor) -> tuple[Tensor, VectorJacobian]:
        features, grid_vjp = self.grid.features_with_vjp(x, self.table, self.active_levels)
        return torch.cat([x, features], dim=1), lambda grad: grad[:, :3] + grid_vjp(grad[:, 3:])


class HashGridEncoder(GridEncoder):
    """On the native grid, which the fused networks know. spec: its geometry."""

    grid: NativeGrid

    @property
    def spec(self) -> HashGridSpec:
        return self.grid.spec
