"""Multi-resolution hash grid encoding (Mueller, Evans, Schied, Keller: Instant Neural Graphics Primitives, 2022).

Points x in a cube around the origin are located in L vertex grids of growing resolution; each returns F features,
interpolated between the eight vertices of the cell. A level whose (resolution + 1)^3 vertices fit the table stores them
all; a finer one shares its 2^log2_table_size entries by the spatial hash of the paper (eq. 4). Maths:
csrc/kernels/hash_grid.h.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from nsr import _ext
from nsr.ops.reference import hash_grid as reference

MAX_LEVELS = 32  # kMaxGridLevels in csrc/kernels/hash_grid.h
_DTYPES = {(torch.float32, torch.float32), (torch.float64, torch.float64), (torch.float32, torch.float16)}  # of x and table


@dataclass(frozen=True)
class HashGridSpec:
    """Geometry of a hash grid.

    levels: L, 1 to 32; features: F per level, any number >= 1.
    base_resolution, max_resolution: cells per axis of the first and the last level; those between grow geometrically,
        rounded down (the paper's eq. 2 and 3). A single level has base_resolution.
    log2_table_size: a level has at most 2^log2_table_size entries.
    extent: half the side of the cube [-extent, extent]^3 that the grids span, scene units.
    interpolation: "linear", or "smoothstep" for continuous first derivatives (3t^2 - 2t^3).

    Derived: resolutions [L]; offsets [L + 1], the first entry of each level, then the total; table_entries T;
    output_dim L*F.

    Raises:
        ValueError: a value out of range.
    """

    levels: int = 12
    features: int = 2
    base_resolution: int = 16
    max_resolution: int = 320
    log2_table_size: int = 17
    interpolation: Literal["linear", "smoothstep"] = "linear"
    extent: float = 1.0

    def __post_init__(self) -> None:
        self._require("levels", 1 <= self.levels <= MAX_LEVELS, f"1 to {MAX_LEVELS}")
        self._require("features", self.features >= 1, "1 or more")
        self._require("base_resolution", self.base_resolution >= 1, "1 or more")
        above_base = self.base_resolution <= self.max_resolution < 2**20
        self._require("max_resolution", above_base, f"base_resolution ({self.base_resolution}) to {2**20 - 1}")
        self._require("log2_table_size", 0 <= self.log2_table_size <= 28, "0 to 28")
        self._require("extent", 0 < self.extent < math.inf, "more than 0")
        self._require("interpolation", self.interpolation in ("linear", "smoothstep"), "'linear' or 'smoothstep'")

    def _require(self, field: str, holds: bool, expected: str) -> None:
        if not holds:
            raise ValueError(f"{field} is {getattr(self, field)!r}; expected {expected}")

    @cached_property
    def resolutions(self) -> tuple[int, ...]:
        if self.levels == 1:
            return (self.base_resolution,)
        growth = math.log(self.max_resolution / self.base_resolution) / (self.levels - 1)
        # The tolerance keeps a whole number whole, such as the last level, which is max_resolution itself.
        return tuple(math.floor(self.base_resolution * math.exp(growth * level) + 1e-6) for level in range(self.levels))

    @cached_property
    def offsets(self) -> tuple[int, ...]:
        offsets = [0]
        for resolution in self.resolutions:
            offsets.append(offsets[-1] + min((resolution + 1) ** 3, 2**self.log2_table_size))
        return tuple(offsets)

    @property
    def table_entries(self) -> int:
        return self.offsets[-1]

    @property
    def output_dim(self) -> int:
        return self.levels * self.features

    @property
    def smoothstep(self) -> bool:
        return self.interpolation == "smoothstep"


def hash_grid(
    x: Float[Tensor, "N 3"], table: Float[Tensor, "T F"], spec: HashGridSpec, active_levels: int | None = None
) -> Float[Tensor, "N C"]:
    """Encodes points; twice differentiable with respect to x and table (a third derivative raises by name).

    Args:
        x: [N, 3] points, scene frame, the domain is [-spec.extent, spec.extent]^3. A coordinate outside takes the value at
            the nearest face and has derivative zero along that axis; NaN gives NaN.
        table: [T, F], T = spec.table_entries, of the dtype (float32 or float64) and device of x; or float16 beside x in
            float32, which computes in float32 what it reads, and whose gradient is added up in float32 and rounded once.
        spec: the grid.
        active_levels: only the first so many levels are evaluated, the others are exactly zero and receive no gradient
            (coarse to fine); None is all of them.

    Returns:
        h [N, L*F], level by level: column l*F + f is feature f of level l.

    Raises:
        ValueError: a tensor's shape, dtype or device does not fit, or active_levels is out of range.
    """
    arguments = _checked(x, table, spec, active_levels, "hash_grid")
    if _ext.backend() == "reference":
        return reference.hash_grid(*arguments)
    return torch.ops.nsr.hash_grid(*arguments)


def hash_grid_with_jacobian(
    x: Float[Tensor, "N 3"], table: Float[Tensor, "T F"], spec: HashGridSpec, active_levels: int | None = None
) -> tuple[Float[Tensor, "N C"], Float[Tensor, "N C 3"]]:
    """Encodes points and differentiates the encoding, in one pass over the table.

    Once differentiable with respect to x and table, exactly, through h and through J (a second derivative raises by
    name): losses on normals need no double backward, because h and J are both linear in the table.

    Arguments and errors as for `hash_grid`.

    Returns:
        h [N, L*F] and J [N, L*F, 3] = dh/dx.
    """
    arguments = _checked(x, table, spec, active_levels, "hash_grid_with_jacobian")
    if _ext.backend() == "reference":
        return reference.hash_grid_jac(*arguments)
    return torch.ops.nsr.hash_grid_jac(*arguments)


def _checked(x: Tensor, table: Tensor, spec: HashGridSpec, active_levels: int | None, name: str) -> tuple:
    """The positional arguments of the op, after the checks that a user can trip over."""
    if x.dim() != 2 or x.shape[1] != 3:
        raise ValueError(f"{name}: x has shape {tuple(x.shape)}; expected [N, 3] (reshape(-1, 3) first)")
    grid = check_grid(table, spec, spec.levels if active_levels is None else active_levels, name)
    if (x.dtype, table.dtype) not in _DTYPES:
        raise ValueError(
            f"{name}: x is {x.dtype} and table {table.dtype}; expected both float32, both float64, or float32 and float16"
        )
    if x.device != table.device:
        raise ValueError(f"{name}: x is on {x.device} and table on {table.device}; move one of them")
    return x, table, *grid


def check_grid(table: Tensor, spec: HashGridSpec, active_levels: int, name: str) -> tuple:
    """The arguments of the native ops behind the table."""
    if tuple(table.shape) != (spec.table_entries, spec.features):
        expected = [spec.table_entries, spec.features]
        raise ValueError(f"{name}: table has shape {tuple(table.shape)}; expected {expected} for {spec}")
    if not 0 <= active_levels <= spec.levels:
        raise ValueError(f"{name}: active_levels is {active_levels}; expected 0 to {spec.levels}")
    return spec.resolutions, spec.offsets, spec.smoothstep, spec.extent, active_levels


def _if_needed(gradient: Tensor, needed: bool) -> Tensor | None:
    return gradient if needed else None


@_ext.on_load
def _register() -> None:
    """Attaches shapes for tracing and derivatives to the native ops."""
    ops = torch.ops.nsr

    def save_forward(ctx, inputs, output):
        x, table, *ctx.grid = inputs
        ctx.save_for_backward(x, table)
        ctx.set_materialize_grads(False)

    def hash_grid_backward(ctx, grad_h):
        if grad_h is None:
            return (None,) * 7
        x, table = ctx.saved_tensors
        need_x, need_table = ctx.needs_input_grad[:2]
        grad_x, grad_table = ops.hash_grid_bwd(grad_h, x, table, *ctx.grid, need_x, need_table)
        return _if_needed(grad_x, need_x), _if_needed(grad_table, need_table), *(None,) * 5

    def save_bwd(ctx, inputs, output):
        grad_h, x, table, *ctx.grid, ctx.need_x, ctx.need_table = inputs
        ctx.save_for_backward(grad_h, x, table)
        ctx.set_materialize_grads(False)

    def hash_grid_bwd_backward(ctx, grad_grad_x, grad_grad_table):
        grad_grad_x = grad_grad_x if ctx.need_x else None
        grad_grad_table = grad_grad_table if ctx.need_table else None
        if grad_grad_x is None and grad_grad_table is None:
            return (None,) * 10
        grads = ops.hash_grid_bwd_bwd(grad_grad_x, grad_grad_table, *ctx.saved_tensors, *ctx.grid)
        return *grads, *(None,) * 7

    def third_order(ctx, *grads):
        raise NotImplementedError(
            "nsr::hash_grid_bwd_bwd: third derivatives of hash_grid are not implemented; "
            "set NSR_BACKEND=reference to compute them in plain PyTorch"
        )

    def hash_grid_jac_backward(ctx, grad_h, grad_jacobian):
        if grad_h is None and grad_jacobian is None:
            return (None,) * 7
        x, table = ctx.saved_tensors
        need_x, need_table = ctx.needs_input_grad[:2]
        grads = ops.hash_grid_jac_bwd(grad_h, grad_jacobian, x, table, *ctx.grid, need_x, need_table)
        return _if_needed(grads[0], need_x), _if_needed(grads[1], need_table), *(None,) * 5

    def second_order(ctx, *grads):
        raise NotImplementedError(
            "nsr::hash_grid_jac_bwd: second derivatives of hash_grid_with_jacobian are not implemented; "
            "use hash_grid, which is twice differentiable, or set NSR_BACKEND=reference"
        )

    attach = torch.library.register_autograd
    attach("nsr::hash_grid", hash_grid_backward, setup_context=save_forward)
    attach("nsr::hash_grid_bwd", hash_grid_bwd_backward, setup_context=save_bwd)
    attach("nsr::hash_grid_bwd_bwd", third_order)
    attach("nsr::hash_grid_jac", hash_grid_jac_backward, setup_context=save_forward)
    attach("nsr::hash_grid_jac_bwd", second_order)


@_ext.on_load
def _register_fake() -> None:
    fake = torch.library.register_fake

    def outputs(x, table, resolutions):
        return x.new_empty(x.shape[0], len(resolutions) * table.shape[1])

    def jacobian(x, table, resolutions):
        return x.new_empty(x.shape[0], len(resolutions) * table.shape[1], 3)

    def gradients(x, table, need_x, need_table):
        grad_x = x.new_empty(x.shape) if need_x else x.new_empty(0)
        return grad_x, table.new_empty(table.shape) if need_table else x.new_empty(0)

    @fake("nsr::hash_grid")
    def _(x, table, resolutions, offsets, smoothstep, extent, active_levels):
        return outputs(x, table, resolutions)

    @fake("nsr::hash_grid_bwd")
    def _(grad_h, x, table, resolutions, offsets, smoothstep, extent, active_levels, need_x, need_table):
        return gradients(x, table, need_x, need_table)

    @fake("nsr::hash_grid_bwd_bwd")
    def _(gg_x, gg_table, grad_h, x, table, resolutions, offsets, smoothstep, extent, active_levels):
        return grad_h.new_empty(grad_h.shape), x.new_empty(x.shape), table.new_empty(table.shape)

    @fake("nsr::hash_grid_jac")
    def _(x, table, resolutions, offsets, smoothstep, extent, active_levels):
        return outputs(x, table, resolutions), jacobian(x, table, resolutions)

    @fake("nsr::hash_grid_jac_bwd")
    def _(grad_h, grad_jacobian, x, table, resolutions, offsets, smoothstep, extent, active_levels, need_x, need_table):
        return gradients(x, table, need_x, need_table)
