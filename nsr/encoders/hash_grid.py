"""Multi-resolution hash grid (Mueller et al. 2022) as an encoder: the table is a parameter, the maths is nsr.ops.hash_grid."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from nsr.encoders.base import Encoder, VectorJacobian
from nsr.ops.hash_grid import HashGridSpec, hash_grid, hash_grid_with_jacobian


@dataclass(frozen=True)
class HashGridConfig:
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

    def build(self) -> HashGridEncoder:
        return HashGridEncoder(self)


def visible_levels(fraction: float, start: int, levels: int) -> int:
    """How many levels show at this fraction of the way from `start` levels to all of them."""
    added = math.floor(fraction * (levels - start + 1))
    return min(start + max(added, 0), levels)


class HashGridEncoder(Encoder):
    """x [N, 3] -> [N, 3 + levels * features]: x, then the interpolated features of each level."""

    def __init__(self, config: HashGridConfig) -> None:
        super().__init__()
        self.spec = config.spec()
        self.start_levels = config.start_levels or config.levels
        self.active_levels = config.levels
        self.output_dim = 3 + self.spec.output_dim
        table = torch.rand(self.spec.table_entries, config.features, generator=torch.Generator().manual_seed(config.seed))
        self.table = nn.Parameter((2.0 * table - 1.0) * config.init_scale)

    def set_progress(self, fraction: float) -> None:
        self.active_levels = visible_levels(fraction, self.start_levels, self.spec.levels)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x, hash_grid(x, self.table, self.spec, self.active_levels)], dim=1)

    def forward_with_vjp(self, x: Tensor) -> tuple[Tensor, VectorJacobian]:
        features, jacobian = hash_grid_with_jacobian(x, self.table, self.spec, self.active_levels)

        def vjp(grad_value: Tensor) -> Tensor:
            from_grid = torch.bmm(grad_value[:, None, 3:], jacobian)  # [N, 1, C] x [N, C, 3]
            return grad_value[:, :3] + from_grid[:, 0]

        return torch.cat([x, features], dim=1), vjp
