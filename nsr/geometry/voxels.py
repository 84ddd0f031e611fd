"""A set of voxels, and whether points lie in it."""

from __future__ import annotations

from dataclasses import dataclass

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
        grown = self.occupied
        for axis in range(3):  # one axis after the other: a cube is their product
            length, before = grown.shape[axis], grown
            grown = before.clone()
            for shift in range(1, min(steps, length - 1) + 1):
                grown.narrow(axis, shift, length - shift).logical_or_(before.narrow(axis, 0, length - shift))
                grown.narrow(axis, 0, length - shift).logical_or_(before.narrow(axis, shift, length - shift))
        return Voxels(grown, self.extent)

    def shrunk(self, steps: int) -> Voxels:
        """Without the cells at most `steps` cells away, along each axis, from one that is not occupied."""
        return Voxels(~Voxels(~self.occupied, self.extent).grown(steps).occupied, self.extent)
