"""Curves of runs as a PNG (matplotlib) and as one HTML page that needs no network (plotly)."""

from __future__ import annotations

import html
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from nsr.evaluation.curves import (
    MOST_SHOWN,
    Axis,
    Curves,
    Slope,
    Tail,
    along,
    fitted_line,
    shown,
    slope,
    smoothed,
)
from nsr.evaluation.plots import COLORS, interactive_html, new_picture, plain_numbers, save_picture, write_page

_FAINT = 0.25  # opacity of values behind their smoothed curve
_BENT = 64  # points of a straight line on logarithmic axes


@dataclass(frozen=True)
class Style:
    """tail: over which the slope is taken; smoothing: weight of nsr.evaluation.curves.smoothed, 0 for none; log: the axes that
    are logarithmic, of "x" and "y"; clock: what the runs' minutes are of."""

    tail: Tail
    smoothing: float = 0.0
    log: str = ""
    clock: str = "training time"

    def note(self, runs: Sequence[Curves]) -> str:
        """What a reader must know of the plots."""
        notes = [f"dashed: least-squares line through the {self.tail} of each curve, whose slope the legend gives"]
        if self.smoothing:
            smoothing = f"curves smoothed exponentially with weight {self.smoothing:g} per row"
            notes.append(f"{smoothing}, the values faint behind them; slopes are of the values")
        if any(run.figures for run in runs):
            notes.append("diamonds: evaluations")
        if any(len(run.steps) > MOST_SHOWN for run in runs):
            notes.append(f"of curves with more values {MOST_SHOWN} are shown")
        return "; ".join(notes)


class Line(NamedTuple):
    """One run's part in a plot: values against x, as they are and as shown; the ends of the fitted line, and its slope in
    words, empty where there is none; and the evaluation."""

    run: str
    color: str
    x: np.ndarray
    raw: np.ndarray
    shown: np.ndarray
    fit: tuple[np.ndarray, np.ndarray]
    figure: tuple[float, float] | None
    slope: str


AXES: tuple[Axis, ...] = ("epoch", "minutes")


def axis_title(axis: Axis, by_epoch: bool, style: Style) -> str:
    return f"{style.clock}, minutes" if axis == "minutes" else "epoch" if by_epoch else "step"


def has_epochs(runs: Sequence[Curves]) -> bool:
    """Whether all runs know how long an epoch is, without which they are drawn against steps."""
    return all(run.epoch_steps is not None for run in runs)


def slope_text(found: Slope | None, axis: Axis, by_epoch: bool) -> str:
    """Such as '-0.0012 per epoch'; nothing where there is no slope."""
    value = math.nan if found is None else found.per_minute if axis == "minutes" else found.per_epoch
    unit = "minute" if axis == "minutes" else "epoch" if by_epoch else "step"
    return "" if math.isnan(value) else f"{value:+.2g} per {unit}"


def lines_of(runs: Sequence[Curves], name: str, axis: Axis, style: Style) -> list[Line]:
    """The lines of a plot of one quantity, of the runs that have it."""
    by_epoch, lines = has_epochs(runs), []
    for number, run in enumerate(runs):
        if name not in run.columns and name not in run.figures:
            continue
        x, figure_at = along(run, axis, by_epoch)
        raw = run.columns.get(name, np.full(len(x), np.nan))
        present = np.isfinite(raw) & np.isfinite(x)
        found, fit = slope(run, name, style.tail, by_epoch), (np.zeros(0), np.zeros(0))
        text = slope_text(found, axis, by_epoch)
        if text:
            last = present & (run.steps >= found.first) & (run.steps <= found.last)
            gradient = found.per_minute if axis == "minutes" else found.per_epoch
            fit = fitted_line(x[last], raw[last], gradient, _BENT if style.log else 2)
        measured = (figure_at, run.figures[name]) if name in run.figures and math.isfinite(figure_at) else None
        x, raw, color = x[present], raw[present], COLORS[number % len(COLORS)]
        part, smooth = shown(len(raw)), smoothed(raw, style.smoothing)
        lines.append(Line(run.name, color, x[part], raw[part], smooth[part], fit, measured, text))
    return lines


def scale(lines: Sequence[Line], axis: str, style: Style) -> str:
    """Of the axis "x" or "y": log where it is asked for and something of a curve can be shown on it (evaluations have none)."""
    values = [line.x if axis == "x" else line.raw for line in lines]
    return "log" if axis in style.log and any((part > 0).any() for part in values) else "linear"


def reach(runs: Sequence[Curves], axis: Axis, style: Style) -> tuple[float, float] | None:
    """From where to where the plots of all quantities go along an axis of AXES; None leaves that to each plot."""
    ends = [end for run in runs for rows, figure in [along(run, axis, has_epochs(runs))] for end in (*rows, figure)]
    end = max(filter(math.isfinite, ends), default=0.0)
    return (0.0, 1.02 * end) if end > 0 and "x" not in style.log else None


def write_png(path: Path, runs: Sequence[Curves], names: Sequence[str], style: Style) -> None:
    """A row for each quantity: against epochs on the left, against minutes on the right."""
    picture = new_picture(13, 3.6 * len(names) + 0.5)
    for row, name in zip(picture.subplots(len(names), len(AXES), squeeze=False), names, strict=True):
        for plot, axis in zip(row, AXES, strict=True):
            lines = lines_of(runs, name, axis, style)
            for line in lines:
                if style.smoothing:
                    plot.plot(line.x, line.raw, color=line.color, alpha=_FAINT, linewidth=0.8)
                plot.plot(
                    line.x, line.shown, color=line.color, linewidth=1.4, label=f"{line.run}  {line.slope}".replace("$", r"\$")
                )
                plot.plot(*line.fit, color=line.color, linewidth=1.4, linestyle="--")
                if line.figure is not None:
                    plot.plot(*line.figure, color=line.color, marker="D", markersize=7, markeredgecolor="black", linestyle="")
            for side, set_scale, ticks in (("x", plot.set_xscale, plot.xaxis), ("y", plot.set_yscale, plot.yaxis)):
                if scale(lines, side, style) == "log":
                    set_scale("log", nonpositive="mask")
                    plain_numbers(ticks)
            plot.set(xlabel=axis_title(axis, has_epochs(runs), style), ylabel=name, xlim=reach(runs, axis, style))
            plot.grid(alpha=0.3, which="both", linewidth=0.5)
            plot.legend(fontsize=8)
    picture.supxlabel(style.note(runs), fontsize=8)
    save_picture(path, picture)


def write_html(path: Path, runs: Sequence[Curves], names: Sequence[str], style: Style) -> None:
    """The same as a page: values under the pointer, a click in the legend hides a run. plotly's script is inside."""
    plots = [f"<h2>{html.escape(name)}</h2>\n{_interactive(runs, name, style)}" for name in names]
    title, note = ", ".join(run.name for run in runs), style.note(runs)
    about = f"<h1>{html.escape(title)}</h1>\n<p>{html.escape(note[0].upper() + note[1:])}.</p>"
    write_page(path, title, "\n".join([about, *plots]))


def _interactive(runs: Sequence[Curves], name: str, style: Style) -> str:
    """The two plots of one quantity, which share its axis and its legend."""
    from plotly.graph_objects import Scatter
    from plotly.subplots import make_subplots

    plots = make_subplots(rows=1, cols=len(AXES), shared_yaxes=True, horizontal_spacing=0.03)
    sides = [lines_of(runs, name, axis, style) for axis in AXES]
    for pair in zip(*sides, strict=True):
        slopes = filter(None, (line.slope for line in pair))
        label = html.escape(f"{pair[0].run}  {', '.join(slopes)}".rstrip())
        explained = False  # one entry of the legend stands for all of a run
        for column, line in enumerate(pair, start=1):
            for values in _scatters(line, style):
                shown = not explained and values["opacity"] == 1
                explained |= shown
                plots.add_trace(Scatter(legendgroup=line.run, name=label, showlegend=shown, **values), 1, column)
    for column, (axis, lines) in enumerate(zip(AXES, sides, strict=True), start=1):
        x_axis = {"title_text": axis_title(axis, has_epochs(runs), style), "range": reach(runs, axis, style)}
        plots.update_xaxes(type=scale(lines, "x", style), **x_axis, row=1, col=column)
        plots.update_yaxes(type=scale(lines, "y", style), exponentformat="power", row=1, col=column)
    legend = {"orientation": "h", "yanchor": "bottom", "y": 1.02, "x": 0, "groupclick": "togglegroup"}
    plots.update_layout(showlegend=True, template="plotly_white", height=410 + 8 * len(runs), legend=legend)
    plots.update_layout(margin={"t": 30, "l": 60, "r": 20, "b": 50})
    return interactive_html(plots)


def _scatters(line: Line, style: Style) -> Iterator[dict]:
    """What plotly draws of a line: the curve, the values behind a smoothed one, the fitted line, the evaluation."""
    pen, silent = {"color": line.color, "width": 1.8}, {"mode": "lines", "hoverinfo": "skip"}
    text = {"hovertemplate": f"%{{x:.4g}}, %{{y:.4g}}<extra>{html.escape(line.run)}</extra>"}
    if line.x.size:
        if style.smoothing:
            yield {"x": line.x, "y": line.raw, "line": pen, "opacity": _FAINT, **silent}
        yield {"x": line.x, "y": line.shown, "line": pen, "opacity": 1, "mode": "lines", **text}
    if line.slope:
        yield {"x": line.fit[0], "y": line.fit[1], "line": {**pen, "dash": "dash"}, "opacity": 1, **silent}
    if line.figure is not None:
        marker = {"symbol": "diamond", "size": 11, "color": line.color, "line": {"width": 1, "color": "black"}}
        yield {"x": line.figure[:1], "y": line.figure[1:], "marker": marker, "opacity": 1, "mode": "markers", **text}
