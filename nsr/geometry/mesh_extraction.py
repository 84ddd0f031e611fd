"""From a signed distance function to a closed triangle mesh in the scene frame. What follows: nsr/geometry/meshes.py.

Marching cubes (Lewiner et al. 2003, by scikit-image) runs on a volume that is evaluated only near the surface: an
octree of blocks is descended as long as |f(centre)| <= L * half diagonal, L bounding |grad f|. Should f be steeper than
L somewhere, the surface would end at an unevaluated block; such open edges are found and the surface is followed into
the neighbouring blocks.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from nsr.geometry.meshes import new_mesh
from nsr.utils.errors import DataError, UsageError

if TYPE_CHECKING:
    import trimesh

_BLOCK = 4  # cells along the side of the smallest block
_COARSE = 16  # blocks along the side of the cube where the octree starts, at least


@dataclass
class _Grid:
    """Samples of f at the vertices of `cells`^3 cells over [-extent, extent]^3, evaluated where they are asked for."""

    f: Callable[[Tensor], Tensor]
    cells: int
    extent: float
    chunk: int
    device: torch.device

    @property
    def step(self) -> float:
        return 2 * self.extent / self.cells

    def evaluate(self, index: np.ndarray) -> np.ndarray:
        """f at grid coordinates [N, 3] (fractions allowed), [N] float32."""
        values = np.empty(len(index), dtype=np.float32)
        for start in range(0, len(index), self.chunk):
            part = torch.from_numpy(np.ascontiguousarray(index[start : start + self.chunk], dtype=np.float32))
            points = part.to(self.device) * self.step - self.extent
            values[start : start + self.chunk] = self.f(points).reshape(-1).float().cpu().numpy()
        return values


@torch.no_grad()
def extract_mesh(
    sdf: Callable[[Tensor], Tensor],
    *,
    resolution: int = 256,
    extent: float = 1.0,
    clip_radius: float | None = 1.0,
    lipschitz: float = 2.0,
    refine_steps: int = 1,
    chunk: int = 2**18,
    device: torch.device | str = "cpu",
) -> trimesh.Trimesh:
    """The zero level of a signed distance function as a closed triangle mesh in the scene frame, normals outwards.

    Args:
        sdf: maps points [N, 3] float32 to distances [N] (or [N, 1]), negative inside.
        resolution: cells along each side of the cube, at least 2.
        extent: half the side of the cube, which is centred at the origin.
        clip_radius: f is replaced by max(f, |x| - clip_radius): a network is noise outside the ball it was trained in.
            None, or a radius beyond the cube, may leave the surface open where it leaves the cube.
        lipschitz: an upper bound of |grad f| that decides which blocks may hold the surface. 1 for an exact distance;
            networks stay below 2.
        refine_steps: regula falsi steps that move each vertex along its grid edge towards f = 0.
        chunk: points per call of sdf, which bounds the memory of one call.
        device: where sdf wants its points.

    Raises:
        DataError: f has no zero inside the ball, or is NaN somewhere.
        UsageError: resolution, extent or lipschitz is out of range.
    """
    if resolution < 2 or extent <= 0 or lipschitz <= 0:
        raise UsageError(
            f"extract_mesh: expected resolution >= 2, extent > 0 and lipschitz > 0, got {resolution}, {extent} and {lipschitz}"
        )
    f = sdf if clip_radius is None else _clipped(sdf, clip_radius)
    grid = _Grid(f, resolution, float(extent), chunk, torch.device(device))
    blocks = _blocks_near_surface(grid, lipschitz)
    for reach in itertools.count(1):  # ends: every round adds blocks of a finite grid
        volume, active, origin = _sample(grid, blocks)
        vertices, faces = _march(volume, active)
        missing = _missing_blocks(vertices + origin, faces, blocks, resolution, reach)
        if len(missing) == 0:
            break
        blocks = np.concatenate([blocks, missing])
    vertices = _refine(grid, volume, vertices, origin, refine_steps)
    return new_mesh((vertices + origin) * grid.step - grid.extent, faces)


def _clipped(sdf: Callable[[Tensor], Tensor], radius: float) -> Callable[[Tensor], Tensor]:
    """f intersected with the ball of a radius about the origin.

    The ball is a millionth smaller, so that rounding cannot put its poles outside a cube of the same radius: the surface
    would be open there.
    """
    radius *= 1 - 1e-6

    def f(points: Tensor) -> Tensor:
        return torch.maximum(sdf(points).reshape(-1), points.norm(dim=-1) - radius)

    return f


def _blocks_near_surface(grid: _Grid, lipschitz: float) -> np.ndarray:
    """[B, 3] the blocks of _BLOCK^3 cells, in units of blocks, that the surface may cross."""
    size = _BLOCK
    while size * 2 * _COARSE <= grid.cells:
        size *= 2
    side = np.arange(-(-grid.cells // size))
    blocks = np.stack(np.meshgrid(side, side, side, indexing="ij"), axis=-1).reshape(-1, 3)
    children = np.stack(np.meshgrid(*[[0, 1]] * 3, indexing="ij"), axis=-1).reshape(1, 8, 3)
    while True:
        values = grid.evaluate((blocks + 0.5) * size)
        if np.isnan(values).any():
            raise DataError("extract_mesh: the signed distance function returns NaN; the model has diverged")
        half_diagonal = size * grid.step * np.sqrt(3) / 2
        blocks = blocks[np.abs(values) <= lipschitz * half_diagonal]
        if len(blocks) == 0:
            _raise_no_surface(float(values.min()), float(values.max()))
        if size == _BLOCK:
            return blocks
        size //= 2
        blocks = (2 * blocks[:, None] + children).reshape(-1, 3)
        blocks = blocks[(blocks * size < grid.cells).all(axis=1)]


def _sample(grid: _Grid, blocks: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Evaluate the vertices of the blocks.

    Returns:
        volume: float32 over the bounding box of the blocks, undefined (+1) where not evaluated.
        active: bool of the same shape; True at the upper corner of every cell of the blocks (scikit-image's mask).
        origin: [3] grid coordinates of volume[0, 0, 0].
    """
    first, last = blocks.min(axis=0), blocks.max(axis=0) + 1
    occupied = np.zeros(last - first, dtype=bool)
    occupied[tuple((blocks - first).T)] = True
    origin = first * _BLOCK
    cells = np.minimum(last * _BLOCK, grid.cells) - origin

    active = np.zeros(cells + 1, dtype=bool)
    for axis in range(3):
        occupied = occupied.repeat(_BLOCK, axis=axis)
    active[1:, 1:, 1:] = occupied[: cells[0], : cells[1], : cells[2]]

    volume = np.ones(cells + 1, dtype=np.float32)
    planes = max(1, 2**22 // int(np.prod(cells[1:] + 1)))  # as many x planes at a time as keep the index list small
    for start in range(0, cells[0] + 1, planes):
        needed = _corners(active[start : start + planes + 1])[:planes]
        index = np.argwhere(needed)
        values = grid.evaluate(index + origin + [start, 0, 0])
        if np.isnan(values).any():
            raise DataError("extract_mesh: the signed distance function returns NaN; the model has diverged")
        volume[start : start + planes][needed] = values
    # An exact zero would give triangles of zero size and, on the side of the cube, an open edge: push it outside.
    volume[volume == 0] = 1e-6 * grid.step
    return volume, active, origin


def _corners(active: np.ndarray) -> np.ndarray:
    """The vertices of the cells whose upper corners are active: each True spreads one step down along every axis."""
    needed = active.copy()
    for axis in range(3):
        lower = [slice(None)] * 3
        upper = [slice(None)] * 3
        lower[axis], upper[axis] = slice(None, -1), slice(1, None)
        needed[tuple(lower)] |= needed[tuple(upper)].copy()
    return needed


def _march(volume: np.ndarray, active: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Vertices [M, 3] in steps of the volume and faces [K, 3], counter-clockwise seen from where f is positive."""
    from skimage.measure import marching_cubes

    # scikit-image tests the mask at a cell's upper corner, and demands that the level lie within the volume's range.
    if not volume.min() < 0 < volume.max():
        _raise_no_surface(float(volume.min()), float(volume.max()))
    vertices, faces, _, _ = marching_cubes(volume, 0.0, mask=active, gradient_direction="descent")
    return vertices.astype(np.float64), faces.astype(np.int64)


def _missing_blocks(vertices: np.ndarray, faces: np.ndarray, blocks: np.ndarray, cells: int, reach: int) -> np.ndarray:
    """[B, 3] blocks to add because the surface ends where they begin; empty when the surface is closed inside the cube.

    vertices: [M, 3] in grid coordinates. reach: how many blocks to go on from an open edge.
    """
    edges = np.sort(faces[:, [0, 1, 1, 2, 2, 0]].reshape(-1, 2), axis=1)
    keys, count = np.unique(edges[:, 0] * len(vertices) + edges[:, 1], return_counts=True)
    open_edges = np.stack(np.divmod(keys[count == 1], len(vertices)), axis=1)
    middle = vertices[open_edges].mean(axis=1)
    at_end = np.floor((middle[:, None] + _neighbours(1) * 1e-3) / _BLOCK).astype(np.int64)
    at_end = np.unique(at_end.reshape(-1, 3), axis=0)
    base = np.array([cells**2, cells, 1])

    def missing(candidates: np.ndarray) -> np.ndarray:
        inside = ((candidates >= 0) & (candidates * _BLOCK < cells)).all(axis=1)
        return candidates[inside & ~np.isin(candidates @ base, blocks @ base)]

    beyond = missing(at_end)
    return np.unique(missing((beyond[:, None] + _neighbours(reach - 1)).reshape(-1, 3)), axis=0)


def _neighbours(reach: int) -> np.ndarray:
    """[(2 * reach + 1)^3, 3] integer offsets of at most reach along every axis."""
    side = np.arange(-reach, reach + 1)
    return np.stack(np.meshgrid(side, side, side, indexing="ij"), axis=-1).reshape(-1, 3)


def _refine(grid: _Grid, volume: np.ndarray, vertices: np.ndarray, origin: np.ndarray, steps: int) -> np.ndarray:
    """Move vertices along their grid edges by regula falsi; topology and welding stay as they are.

    vertices: [M, 3] in steps of the volume. Vertices on a grid point, or inside a cell (the tables add some to get the
    topology right), stay where they are.
    """
    low = np.floor(vertices)
    on_edge = np.flatnonzero((vertices > low).sum(axis=1) == 1)
    if steps <= 0 or len(on_edge) == 0:
        return vertices
    axis = np.argmax(vertices[on_edge] > low[on_edge], axis=1)
    rows = np.arange(len(on_edge))
    corner_a = low[on_edge].astype(np.int64)
    corner_b = corner_a.copy()
    corner_b[rows, axis] += 1
    f_a, f_b = volume[tuple(corner_a.T)].astype(np.float64), volume[tuple(corner_b.T)].astype(np.float64)
    t_a, t_b = np.zeros(len(on_edge)), np.ones(len(on_edge))
    point = vertices[on_edge]
    t = point[rows, axis] - corner_a[rows, axis]
    for _ in range(steps):
        f_t = grid.evaluate(point + origin).astype(np.float64)
        same_as_a = np.sign(f_t) == np.sign(f_a)
        t_a, f_a = np.where(same_as_a, t, t_a), np.where(same_as_a, f_t, f_a)
        t_b, f_b = np.where(same_as_a, t_b, t), np.where(same_as_a, f_b, f_t)
        span = f_b - f_a
        t = np.where(span != 0, t_a - f_a * (t_b - t_a) / np.where(span != 0, span, 1.0), t)
        point[rows, axis] = corner_a[rows, axis] + t
    vertices = vertices.copy()
    vertices[on_edge] = point
    return vertices


def _raise_no_surface(low: float, high: float) -> None:
    raise DataError(
        f"extract_mesh: no surface: the signed distance lies in [{low:.4g}, {high:.4g}] at the points tried and never "
        "changes sign; expected negative values inside the object. Train longer, or check that the object lies inside "
        "the clip radius"
    )
