"""How the losses and metrics of a run changed: curves against epoch and time, their smoothing, and their slope at the end."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal, NamedTuple

import numpy as np

Axis = Literal["epoch", "minutes"]

SECONDS_PER_MINUTE = 60
MOST_SHOWN = 4000  # values of a curve in a plot: more than there are pixels, and a page of some megabytes


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
        """[N] since the run began: of training, or by the clock on the wall (by_wall_clock)."""
        return self.columns.get("seconds", np.full(len(self.steps), np.nan)) / SECONDS_PER_MINUTE

    def by_wall_clock(self, column: str) -> Curves:
        """The same with everything that went by since the run began, pauses too, in place of the time of training.

        column: when rows were written, in seconds of any clock. The run began as long before its first row as that says it
        had trained, and was evaluated where the row of that step is, whenever that was. Raises ValueError without such rows.
        """
        written, trained = (self.columns.get(name, np.full(len(self.steps), np.nan)) for name in (column, "seconds"))
        known = np.flatnonzero(np.isfinite(written) & np.isfinite(trained))
        if not known.size:
            raise ValueError(f"by_wall_clock: {self.name} has no row with {column} and seconds")
        wall = written - written[known[0]] + trained[known[0]]
        step = self.figures_at[0]
        at = float(np.interp(step, self.steps[known], wall[known])) if np.isfinite(step) else np.nan
        return replace(self, columns={**self.columns, "seconds": wall}, figures_at=(step, at))


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


def along(curves: Curves, axis: Axis, by_epoch: bool) -> tuple[np.ndarray, float]:
    """Where on an axis the rows are, [N], and where the evaluation is; by_epoch: "epoch" counts epochs, otherwise steps."""
    step, second = curves.figures_at
    if axis == "minutes":
        return curves.minutes, second / SECONDS_PER_MINUTE
    unit = curves.epoch_steps if by_epoch else 1
    return curves.steps / unit, step / unit


def slope(curves: Curves, name: str, tail: Tail, by_epoch: bool) -> Slope | None:
    """At the end of the curve of a column, of the values as they are, not smoothed; None where the column has no values."""
    values = curves.columns.get(name)
    present = np.isfinite(values) if values is not None else np.zeros(0, dtype=bool)
    if not present.any():
        return None
    at, minutes, values = along(curves, "epoch", by_epoch)[0][present], curves.minutes[present], values[present]
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


def shown(count: int) -> np.ndarray:
    """Which of so many values a plot shows: all, or MOST_SHOWN evenly spaced ones with the first and the last."""
    return np.linspace(0, max(count - 1, 0), min(count, MOST_SHOWN)).round().astype(np.int64)


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
