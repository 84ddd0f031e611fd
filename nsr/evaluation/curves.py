"""How the losses and metrics of a run changed: curves against epoch and time, their smoothing, and their slope at the end."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

SECONDS_PER_MINUTE = 60


@dataclass(frozen=True)
class Curves:
    """What one run has logged, N rows by ascending step, and what it was measured at.

    steps: [N]; columns: [N] float64 each, NaN where a row has nothing finite; epoch_steps: steps per epoch, None where unknown;
    figures: of its evaluation, and figures_at: at which step and second.
    """

    name: str
    steps: np.ndarray
    columns: Mapping[str, np.ndarray]
    epoch_steps: int | None = None
    figures: Mapping[str, float] = field(default_factory=dict)
    figures_at: tuple[float, float] = (np.nan, np.nan)

    @property
    def minutes(self) -> np.ndarray:
        """[N] of training since the run began."""
        return self.columns.get("seconds", np.full(len(self.steps), np.nan)) / SECONDS_PER_MINUTE


class Tail(NamedTuple):
    """The last part of a curve: so many epochs, or a fraction of the curve's length."""

    amount: float
    is_fraction: bool

    def __str__(self) -> str:
        return f"last {100 * self.amount:g} %" if self.is_fraction else f"last {self.amount:g} epochs"


class Slope(NamedTuple):
    """Of the straight line through the last rows with the least squared error: how much a quantity changes per epoch (per step,
    where epochs are not known) and per minute, NaN where nothing can be said. first, last: the steps that it spans; rows: how
    many it is fitted to."""

    per_epoch: float
    per_minute: float
    first: int
    last: int
    rows: int


def positions(curves: Curves, by_epoch: bool) -> np.ndarray:
    """[N] epochs, or steps."""
    return curves.steps / curves.epoch_steps if by_epoch else curves.steps.astype(np.float64)


def slope(curves: Curves, name: str, tail: Tail, by_epoch: bool) -> Slope | None:
    """At the end of the curve of a column, of the values as they are, not smoothed; None where the column has no values."""
    values = curves.columns.get(name)
    present = np.isfinite(values) if values is not None else np.zeros(0, dtype=bool)
    if not present.any():
        return None
    at, minutes, values = positions(curves, by_epoch)[present], curves.minutes[present], values[present]
    length = tail.amount * (at[-1] - at[0]) if tail.is_fraction else tail.amount
    last = at >= at[-1] - length * (1 + 1e-9)
    steps = curves.steps[present][last]
    return Slope(
        _least_squares(at[last], values[last]),
        _least_squares(minutes[last], values[last]),
        int(steps[0]),
        int(steps[-1]),
        int(last.sum()),
    )


def _least_squares(x: np.ndarray, y: np.ndarray) -> float:
    """The slope of the line through the points with finite x; NaN where these are not at two places."""
    x, y = x[np.isfinite(x)], y[np.isfinite(x)]
    if len(x) < 2 or np.ptp(x) == 0:
        return float("nan")
    away = x - x.mean()
    return float(away @ (y - y.mean()) / (away @ away))


def fitted_line(x: np.ndarray, y: np.ndarray, gradient: float, count: int = 2) -> tuple[np.ndarray, np.ndarray]:
    """x and y, [count] each, along the line of that gradient through the points; it is bent where an axis is logarithmic."""
    along = np.linspace(x.min(), x.max(), count)
    return along, y.mean() + gradient * (along - x.mean())


def smoothed(values: np.ndarray, weight: float) -> np.ndarray:
    """Exponential moving average of [N] values, row by row: s = weight * s + (1 - weight) * value.

    Divided by the weights that have come in so far (Kingma & Ba 2015, sec. 3), so that it begins at the first value. NaN stays
    NaN and has no weight.
    """
    result, mean, total = np.full(len(values), np.nan), 0.0, 0.0
    for i in np.flatnonzero(np.isfinite(values)):
        mean, total = weight * mean + (1 - weight) * values[i], weight * total + (1 - weight)
        result[i] = mean / total
    return result
