"""Curves of runs as a PNG (matplotlib) and as one HTML page that needs no network (plotly)."""

from __future__ import annotations

import html
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from nsr.evaluation.curves import SECONDS_PER_MINUTE, Curves, Slope, Tail, fitted_line, positions, slope, smoothed
from nsr.utils.errors import ExtensionError
from nsr.utils.files import atomic_write

_COLORS = ("#1f77b4", "#d62728", "#2ca02c", "#9467bd", "#ff7f0e", "#17becf", "#8c564b", "#e377c2", "#7f7f7f", "#bcbd22")
_FAINT = 0.25  # opacity of values behind their smoothed curve


@dataclass(frozen=True)
class Style:
    """tail: over which the slope is taken; smoothing: weight of nsr.evaluation.curves.smoothed, 0 for none; log: the axes that
    are logarithmic, of "x" and "y"."""

    tail: Tail
    smoothing: float = 0.0
    log: str = ""

    def note(self, runs: Sequence[Curves]) -> str:
        """What a reader must know of the plots."""
        notes = [f"dashed: least-squares line through the {self.tail} of each curve, whose slope the legend gives"]
        if self.smoothing:
            smoothing = f"curves smoothed exponentially with weight {self.smoothing:g} per row"
            notes.append(f"{smoothing}, the values faint behind them; slopes are of the values")
        if any(run.figures for run in runs):
            notes.append("diamonds: evaluations")
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


AXES = ("epoch", "minutes")


def axis_title(axis: str, by_epoch: bool) -> str:
    return "training time, minutes" if axis == "minutes" else "epoch" if by_epoch else "step"


def has_epochs(runs: Sequence[Curves]) -> bool:
    """Whether all runs know how long an epoch is, without which they are drawn against steps."""
    return all(run.epoch_steps is not None for run in runs)


def slope_text(found: Slope | None, axis: str, by_epoch: bool) -> str:
    """Such as '-0.0012 per epoch'; nothing where there is no slope."""
    value = math.nan if found is None else found.per_minute if axis == "minutes" else found.per_epoch
    unit = "minute" if axis == "minutes" else "epoch" if by_epoch else "step"
    return "" if math.isnan(value) else f"{value:+.2g} per {unit}"


def lines_of(runs: Sequence[Curves], name: str, axis: str, style: Style) -> list[Line]:
    """The lines of a plot of one quantity, of the runs that have it."""
    by_epoch, lines = has_epochs(runs), []
    for number, run in enumerate(runs):
        if name not in run.columns and name not in run.figures:
            continue
        x = run.minutes if axis == "minutes" else positions(run, by_epoch)
        raw = run.columns.get(name, np.full(len(x), np.nan))
        present = np.isfinite(raw) & np.isfinite(x)
        found, fit = slope(run, name, style.tail, by_epoch), (np.zeros(0), np.zeros(0))
        text = slope_text(found, axis, by_epoch)
        if text:
            last = present & (run.steps >= found.first) & (run.steps <= found.last)
            gradient = found.per_minute if axis == "minutes" else found.per_epoch
            fit = fitted_line(x[last], raw[last], gradient, 50 if style.log else 2)
        step, second = run.figures_at
        at = second / SECONDS_PER_MINUTE if axis == "minutes" else step / (run.epoch_steps if by_epoch else 1)
        measured = (at, run.figures[name]) if name in run.figures and math.isfinite(at) else None
        lines.append(
            Line(
                run.name,
                _COLORS[number % len(_COLORS)],
                x[present],
                raw[present],
                smoothed(raw[present], style.smoothing),
                fit,
                measured,
                text,
            )
        )
    return lines


def scale(lines: Sequence[Line], axis: str, style: Style) -> str:
    """Of the axis "x" or "y": log where that is asked for and something can be shown on it."""
    which = "xy".index(axis)
    values = [(line.x, line.raw)[which] for line in lines]
    values += [np.array([line.figure[which]]) for line in lines if line.figure is not None]
    return "log" if axis in style.log and any((part > 0).any() for part in values) else "linear"


def write_png(path: Path, runs: Sequence[Curves], names: Sequence[str], style: Style) -> None:
    """A row for each quantity: against epochs on the left, against minutes on the right."""
    require("matplotlib")
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13, 3.6 * len(names) + 0.5), layout="constrained")
    FigureCanvasAgg(figure)
    for row, name in zip(figure.subplots(len(names), 2, squeeze=False), names, strict=True):
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
            plot.set(xscale=scale(lines, "x", style), yscale=scale(lines, "y", style))
            plot.set(xlabel=axis_title(axis, has_epochs(runs)), ylabel=name)
            plot.grid(alpha=0.3, which="both", linewidth=0.5)
            plot.legend(fontsize=8)
    figure.supxlabel(style.note(runs), fontsize=8)
    with atomic_write(path, "wb") as file:
        figure.savefig(file, format="png", dpi=110)


_PAGE = """<!doctype html>
<html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
  body {{ font: 15px/1.5 system-ui, sans-serif; max-width: 90rem; margin: 2rem auto; padding: 0 1rem; color: #202020; }}
  h1 {{ font-weight: 600; font-size: 1.4rem; }} h2 {{ font-weight: 600; font-size: 1.1rem; margin: 2rem 0 0; }}
</style>
<script>{script}</script>
<h1>{title}</h1>
<p>{note}</p>
{plots}
</html>
"""


def write_html(path: Path, runs: Sequence[Curves], names: Sequence[str], style: Style) -> None:
    """The same as a page: values under the pointer, a click in the legend hides a run. plotly's script is inside."""
    require("plotly")
    from plotly.offline import get_plotlyjs

    plots = [f"<h2>{html.escape(name)}</h2>\n{_interactive(runs, name, style)}" for name in names]
    title = html.escape(", ".join(run.name for run in runs))
    note = html.escape(f"{style.note(runs).capitalize()}.")
    page = _PAGE.format(title=title, script=get_plotlyjs(), note=note, plots="\n".join(plots))
    with atomic_write(path) as file:
        file.write(page)


def _interactive(runs: Sequence[Curves], name: str, style: Style) -> str:
    """The two plots of one quantity, which share its axis and its legend."""
    from plotly.graph_objects import Scatter
    from plotly.subplots import make_subplots

    plots = make_subplots(rows=1, cols=2, shared_yaxes=True, horizontal_spacing=0.03)
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
        title = axis_title(axis, has_epochs(runs))
        plots.update_xaxes(title_text=title, type=scale(lines, "x", style), row=1, col=column)
        plots.update_yaxes(type=scale(lines, "y", style), exponentformat="power", row=1, col=column)
    legend = {"orientation": "h", "yanchor": "bottom", "y": 1.02, "x": 0, "groupclick": "togglegroup"}
    plots.update_layout(showlegend=True, template="plotly_white", height=430, legend=legend)
    plots.update_layout(margin={"t": 30, "l": 60, "r": 20, "b": 50})
    return plots.to_html(full_html=False, include_plotlyjs=False, config={"displaylogo": False, "responsive": True})


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


def require(package: str) -> None:
    """Raises ExtensionError where a package of the extra `plot` is not installed."""
    try:
        __import__(package)
    except ImportError as error:
        raise ExtensionError(f"drawing curves needs {package}, which is not installed; run: pip install 'nsr[plot]'") from error
