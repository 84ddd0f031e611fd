"""The wavefront sphere tracer in plain PyTorch: the specification of the ops nsr::sphere_trace_*.

csrc/kernels/sphere_trace.h explains the state machine; here each of its branches is a mask over all rays at once.
`state` is [N, 12], `flags` int32 [N, 7] and `brackets` [B, 7], with the columns named below; item 2 r asks for the
front of ray r, item 2 r + 1 for its back.
"""

from __future__ import annotations

import math
from enum import IntEnum
from types import SimpleNamespace

import torch
from torch import Tensor


class Status(IntEnum):
    MARCHING = 0
    CONVERGED = 1  # |g| <= threshold at hi_t
    BRACKETED = 2  # g > 0 at from_t, g <= 0 at hi_t
    MISSED = 3  # left the interval, or met NaN
    UNFINISHED = 4  # out of iterations; g > 0 at from_t, and the surface, if any, lies in [from_t, far]
    PASSED = 5  # hit at hi_t; went on to look for the smallest SDF behind
    OUTSIDE = 6  # misses the bounding sphere


STATE = ("near", "exit", "t", "from_t", "from_g", "far", "back_t", "back_from_t", "best_t", "best_f", "hi_t", "hi_g")
FLAGS = ("status", "orientation", "iterations", "backtracks", "seek_minimum", "back_iterations", "back_backtracks")
BRACKET = ("lo_t", "lo_g", "hi_t", "hi_g", "t", "side", "orientation")
SECANT_TOLERANCE = 1e-6
TOUCHING = 1.0001


def column(state: Tensor, name: str) -> Tensor:
    """A column of state, flags or brackets, as a view."""
    names = STATE if state.shape[1] == len(STATE) else BRACKET if state.is_floating_point() else FLAGS
    return state[:, names.index(name)]


def _rows(names: tuple[str, ...], state: Tensor, rows: Tensor) -> SimpleNamespace:
    return SimpleNamespace(**dict(zip(names, state[rows].unbind(1), strict=True)))


def _store(names: tuple[str, ...], state: Tensor, rows: Tensor, values: SimpleNamespace) -> None:
    state[rows] = torch.stack([getattr(values, name).to(state.dtype) for name in names], 1)


def _put(values: SimpleNamespace, mask: Tensor, **changes: Tensor | float | int) -> None:
    """values.<name> = change where the mask holds."""
    for name, change in changes.items():
        old = getattr(values, name)
        change = change if isinstance(change, Tensor) else torch.full_like(old, change)
        setattr(values, name, torch.where(mask, change.to(old.dtype), old))


def sphere_trace_start(
    origins: Tensor, directions: Tensor, radius: float, seek_minimum: Tensor | None
) -> tuple[Tensor, Tensor]:
    """state and flags of rays before their first value."""
    closest = -(origins * directions).sum(1)
    perpendicular = origins + closest[:, None] * directions
    squared_half_chord = radius * radius - (perpendicular**2).sum(1)
    half_chord = squared_half_chord.clamp(min=0).sqrt()
    near, exit_ = (closest - half_chord).clamp(min=0), closest + half_chord
    meets = (squared_half_chord >= 0) & (exit_ > 0)
    zero = torch.zeros_like(closest)
    best_t = torch.where(meets, near, torch.where(closest > 0, closest, zero))
    best_f = torch.full_like(closest, math.inf)
    state = torch.stack([near, exit_, near, near, zero, exit_, exit_, exit_, best_t, best_f, zero, zero], 1)
    flags = torch.zeros(len(origins), len(FLAGS), dtype=torch.int32, device=origins.device)
    column(flags, "status")[:] = torch.where(meets, int(Status.MARCHING), int(Status.OUTSIDE))
    if seek_minimum is not None:
        column(flags, "seek_minimum")[:] = seek_minimum.int()
    return state, flags


def sphere_trace_march_(
    state: Tensor,
    flags: Tensor,
    items: Tensor,
    values: Tensor | None,
    origins: Tensor,
    directions: Tensor,
    max_iterations: int,
    line_search_steps: int,
    threshold: float,
    relaxation: float,
    min_step: float,
) -> tuple[Tensor, Tensor]:
    """Items that go on and the points [M, 3] they ask for; without values, those of `items` as they are."""
    if values is not None:
        options = SimpleNamespace(
            max_iterations=max_iterations,
            line_search_steps=line_search_steps,
            threshold=threshold,
            relaxation=relaxation,
            min_step=min_step,
        )
        alive = torch.zeros_like(items, dtype=torch.bool)
        front, rays = items % 2 == 0, items // 2
        for end, advance in ((~front, _advance_back), (front, _advance_front)):
            ray = _rows(STATE, state, rays[end])
            for name, value in vars(_rows(FLAGS, flags, rays[end])).items():
                setattr(ray, name, value)
            alive[end] = advance(options, ray, values[end])
            _store(STATE, state, rays[end], ray)
            _store(FLAGS, flags, rays[end], ray)
        front_marches = torch.zeros(len(state), dtype=torch.bool, device=state.device)
        front_marches[rays[front]] = alive[front] & (column(flags, "status")[rays[front]] == Status.MARCHING)
        items = items[alive & (front | front_marches[rays])]
    rays = items // 2
    t = torch.where(items % 2 == 0, column(state, "t")[rays], column(state, "back_t")[rays])
    return items.clone(), origins[rays] + t[:, None] * directions[rays]


def _seek_minimum(options: SimpleNamespace, ray: SimpleNamespace, where: Tensor, f: Tensor, falling: Tensor) -> Tensor:
    """Moves the rays `where` on behind their hit; returns which of them go on."""
    _put(ray, where, from_g=f, t=ray.t + f.abs().clamp(min=max(options.min_step, 1e-3)))
    more = where & falling & (ray.iterations < options.max_iterations)
    _put(ray, where & falling, iterations=ray.iterations + 1)
    return more & (ray.t <= ray.exit)


def _advance_front(options: SimpleNamespace, ray: SimpleNamespace, f: Tensor) -> Tensor:
    passed = ray.status == Status.PASSED
    falling = f < ray.from_g
    _put(ray, f < ray.best_f, best_f=f, best_t=ray.t)
    alive = _seek_minimum(options, ray, passed, f, falling)
    nan = ~passed & f.isnan()
    _put(ray, nan, status=Status.MISSED)
    rest = ~passed & ~nan

    first = rest & (ray.orientation == 0)
    _put(ray, first, orientation=torch.where(f < 0, -1, 1))
    g = f * ray.orientation
    step, safe_step = ray.t - ray.from_t, ray.from_g.clamp(min=options.min_step)
    safe_t = ray.from_t + safe_step
    gap = (g.abs() + ray.from_g) * TOUCHING + options.min_step < step
    undo = rest & ~first & (step > TOUCHING * safe_step) & (safe_t < ray.t) & gap  # an undo that moves nothing never ends
    _put(ray, undo, t=safe_t)
    alive |= undo
    rest = rest & ~undo

    converged = rest & (g.abs() <= options.threshold)
    negative = rest & ~converged & (g <= 0)
    halve = negative & (ray.backtracks < options.line_search_steps)
    _put(ray, negative, backtracks=ray.backtracks + 1)
    hit = converged | (negative & ~halve)
    _put(ray, hit, hi_t=ray.t, hi_g=g, status=torch.where(converged, int(Status.CONVERGED), int(Status.BRACKETED)))
    seeking = hit & (ray.seek_minimum != 0)
    _put(ray, seeking, status=Status.PASSED)
    alive |= _seek_minimum(options, ray, seeking, f, seeking)
    _put(ray, halve, t=ray.from_t + 0.5 * (ray.t - ray.from_t))
    alive |= halve

    rest = rest & ~converged & ~negative
    _put(ray, rest, from_t=ray.t, from_g=g, backtracks=0)
    finished = rest & (ray.iterations >= options.max_iterations)
    _put(ray, rest, iterations=ray.iterations + 1)
    _put(ray, finished, status=Status.UNFINISHED)
    rest = rest & ~finished
    t = ray.from_t + (options.relaxation * g).clamp(min=options.min_step)
    t = torch.where(t > ray.far, ray.from_t + g.clamp(min=options.min_step), t)
    _put(ray, rest, t=t)
    inside = rest & (ray.t <= ray.far)
    _put(ray, rest & ~inside, status=Status.MISSED)
    return alive | inside


def _advance_back(options: SimpleNamespace, ray: SimpleNamespace, f: Tensor) -> Tensor:
    valid = ~f.isnan()
    _put(ray, f < ray.best_f, best_f=f, best_t=ray.back_t)
    valid &= ray.orientation >= 0  # a ray that starts inside looks for where it leaves, and that is where its back would end
    _put(ray, valid, far=ray.back_t)
    rest = valid & (f.abs() > options.threshold)
    negative = rest & (f <= 0)
    halve = negative & (ray.back_iterations > 0) & (ray.back_backtracks < options.line_search_steps)
    _put(ray, negative & (ray.back_iterations > 0), back_backtracks=ray.back_backtracks + 1)
    _put(ray, halve, back_t=ray.back_from_t + 0.5 * (ray.back_t - ray.back_from_t))
    rest = rest & ~negative
    _put(ray, rest, back_from_t=ray.back_t, back_backtracks=0)
    forward = rest & (ray.back_iterations < options.max_iterations)
    _put(ray, rest, back_iterations=ray.back_iterations + 1)
    _put(ray, forward, back_t=ray.back_t - f)
    return halve | forward


def sphere_trace_secant_(
    brackets: Tensor, rows: Tensor, values: Tensor | None, origins: Tensor, directions: Tensor
) -> tuple[Tensor, Tensor]:
    """Rows that go on and the points [M, 3] they ask for; without values, those of `rows`, aimed for the first time."""
    bracket = _rows(BRACKET, brackets, rows)
    alive = torch.ones_like(rows, dtype=torch.bool)
    if values is not None:
        g = values * bracket.orientation
        alive = g.abs() > SECANT_TOLERANCE
        low, high = alive & (g > 0), alive & (g <= 0)
        _put(bracket, low & (bracket.side < 0), hi_g=0.5 * bracket.hi_g)
        _put(bracket, high & (bracket.side > 0), lo_g=0.5 * bracket.lo_g)
        _put(bracket, low, lo_t=bracket.t, lo_g=g, side=-1)
        _put(bracket, high, hi_t=bracket.t, hi_g=g, side=1)
    t = bracket.lo_t + (bracket.hi_t - bracket.lo_t) * (bracket.lo_g / (bracket.lo_g - bracket.hi_g))
    inside = (t >= bracket.lo_t) & (t <= bracket.hi_t)
    _put(bracket, alive, t=torch.where(inside, t, 0.5 * (bracket.lo_t + bracket.hi_t)))
    _store(BRACKET, brackets, rows, bracket)
    rows = rows[alive]
    return rows, origins[rows] + column(brackets, "t")[rows, None] * directions[rows]


def sphere_trace_scan(values: Tensor, orientation: Tensor) -> tuple[Tensor, Tensor]:
    """Per ray of values [R, S]: first k >= 1 where orientation * f changes from + to - (S if none), and argmin f."""
    g = values * orientation[:, None]
    samples = values.shape[1]
    index = torch.arange(1, samples, device=values.device)
    changes = torch.where((g[:, :-1] > 0) & (g[:, 1:] <= 0), index, samples)
    never = torch.full((len(values), 1), samples, dtype=torch.long, device=values.device)
    return torch.cat([changes, never], 1).amin(1), values.nan_to_num(nan=math.inf, posinf=math.inf).argmin(1)
