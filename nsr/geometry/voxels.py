"""A set of voxels, and whether points lie in it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


@dataclass(frozen=True)
class Voxels:
    """occupied: [R, R, R] bool, the cells around the vertices of a grid over [-extent, extent]^3, indexed [x, y, z]."""

    occupied: Bool[Tensor, "R R R"]
    extent: float

    @property
    def size(self) -> float:
        """Length of a cell's side, scene units."""
        return 2.0 * self.extent / (self.occupied.shape[0] - 1)

    def index(self, points: Float[Tensor, "*N 3"]) -> Int[Tensor, "*N"]:
        """Positions in the flattened grid of the cells nearest to the points."""
        resolution = self.occupied.shape[0]
        x, y, z = ((points + self.extent) / self.size).round().long().clamp(0, resolution - 1).unbind(-1)
        return (x * resolution + y) * resolution + z

    def contain(self, points: Float[Tensor, "*N 3"]) -> Bool[Tensor, "*N"]:
        return self.occupied.view(-1)[self.index(points)]

    def grown(self, steps: int) -> Voxels:
        """With all cells that lie at most `steps` cells away along each axis."""
        grown = torch.nn.functional.max_pool3d(self.occupied[None, None].float(), 2 * steps + 1, stride=1, padding=steps)
        return Voxels(grown[0, 0] > 0, self.extent)
