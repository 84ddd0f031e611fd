"""`nsr plot`: losses and metrics of one or several runs against epoch and time, and how they still change at the end."""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from nsr.apps.options import check_folder, newest_run, run_name
from nsr.training.folders import CSV_NAME, WALL_CLOCK
from nsr.utils.errors import DataError, UsageError

if TYPE_CHECKING:
    from nsr.evaluation.curve_plots import Style
    from nsr.evaluation.curves import Curves

EXAMPLES = """examples:
  nsr plot runs/bust                                       curves.png and curves.html in runs/bust/plots
  nsr plot exps/instant_65 exps/idr_65 --out compare       the newest run of each experiment, compare.png and compare.html
  nsr plot runs/bust --what rgb,psnr --log y --smooth 0.9
  nsr plot runs/bust --last 5                              slopes over the last 5 epochs

Losses are those of metrics.csv. Metrics are those of metrics.json: nsr eval measures one checkpoint, so each is a diamond, a
point without a slope (benchmarks/convergence.py draws metrics over a run). An epoch is as many steps as the run has
photographs; where a run has no checkpoint to tell how many, all are drawn against steps. Time is that of training, as the
run's budget counts it, without gaps where it was stopped; --clock wall has them. Slopes are those of least-squares lines
through the logged values. Runs that still go on are drawn as far as they have come."""

METRICS = ("psnr", "ssim", "iou", "chamfer_percent", "dtu_overall_mm")  # drawn unasked where a run was evaluated
NOT_LOSSES = ("rays", "seconds", "progress", WALL_CLOCK)
CLOCKS = {"training": "training time", "wall": "wall clock"}
FORMATS = (".png", ".html")


def build_parser(prog: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=prog, description=__doc__, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "runs",
        metavar="RUN",
        nargs="+",
        type=Path,
        help="run folder, or that of an experiment (its newest run)",
    )
    parser.add_argument(
        "--what", metavar="NAME,...", help="names of columns or metrics (default: all losses, and the usual metrics)"
    )
    parser.add_argument(
        "--out", type=Path, metavar="FILE",
        help="a .png or .html file, or a name that gets both endings (default RUN/plots/curves, of several runs curves)",
    )  # fmt: skip
    parser.add_argument(
        "--last", type=tail, default="20%", metavar="N",
        help="slopes over the last N epochs, or with a %% sign the last N percent of each curve (default 20%%)",
    )  # fmt: skip
    parser.add_argument(
        "--smooth", type=smoothing, default=0.0, metavar="W",
        help="weight of an exponential moving average, 0 to less than 1, such as 0.9 (default 0: as logged)",
    )  # fmt: skip
    parser.add_argument(
        "--clock", choices=CLOCKS, default="training",
        help="which time: training, or wall, since the run began, with pauses and previews (default training)",
    )  # fmt: skip
    parser.add_argument("--log", choices=("x", "y", "xy"), default="", help="logarithmic axes (default none)")
    parser.set_defaults(run=run_plot)
    return parser


def tail(text: str):
    """An argparse type: '5' epochs, or '20%'."""
    from nsr.evaluation.curves import Tail

    value = _number(text.removesuffix("%"))
    of_curve = text.endswith("%")
    if not 0 < value <= (100 if of_curve else math.inf) or math.isinf(value):
        raise argparse.ArgumentTypeError(f"expected a number of epochs, or a percentage such as 20%, got {text!r}")
    return Tail(value / 100 if of_curve else value, of_curve)


def smoothing(text: str) -> float:
    """An argparse type: a weight from 0 up to but not 1."""
    value = _number(text)
    if not 0 <= value < 1:
        raise argparse.ArgumentTypeError(f"expected a weight from 0 to less than 1, got {text!r}")
    return value


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan


def run_plot(args: argparse.Namespace) -> None:
    from nsr.evaluation.curve_plots import Style, has_epochs, write_html, write_png
    from nsr.evaluation.plots import require

    folders = list(dict.fromkeys(newest_run(folder).resolve() for folder in args.runs))
    outputs = output_files(args.out, folders)
    for path in outputs:
        require("matplotlib" if path.suffix.lower() == ".png" else "plotly")
    runs = read_histories(folders)
    if args.clock == "wall":
        runs = [on_the_wall(run) for run in runs]
    if not args.last.is_fraction and not has_epochs(runs):
        unknown = next(run.name for run in runs if run.epoch_steps is None)
        raise UsageError(
            f"--last {args.last.amount:g}: {unknown} has no checkpoint that tells how many steps an epoch has; expected a "
            "percentage instead, such as 20%"
        )
    names = chosen(args.what, runs)
    style = Style(args.last, args.smooth, args.log, CLOCKS[args.clock])
    for path in outputs:
        (write_png if path.suffix.lower() == ".png" else write_html)(path, runs, names, style)
    print_slopes(runs, names, style)
    print(f"{', '.join(map(str, outputs))}: {len(names)} quantities of {len(runs)} run{'s' if len(runs) > 1 else ''}")


def read_histories(folders: Sequence[Path]) -> list[Curves]:
    """The curves of the runs that have logged something; of the others a warning. Raises DataError where all are others."""
    from nsr.training.history import read_history

    runs = [read_history(folder, name) for folder, name in zip(folders, distinct_names(folders), strict=True)]
    empty = [folder / CSV_NAME for folder, run in zip(folders, runs, strict=True) if not len(run.steps)]
    if len(empty) == len(runs):
        raise DataError(f"{empty[0]}, line 2: no rows yet; wait until the run has come to its first")
    for path in empty:
        print(f"warning: {path} has no rows yet; its run is left out", file=sys.stderr)
    return [run for run in runs if len(run.steps)]


def on_the_wall(run: Curves) -> Curves:
    """Raises UsageError for a run that has not logged when its rows were written."""
    try:
        return run.by_wall_clock(WALL_CLOCK)
    except ValueError as error:
        raise UsageError(
            f"--clock wall: {run.name} has no column {WALL_CLOCK} in its {CSV_NAME}; expected a run that an nsr with this "
            "option has trained; leave it out, or take --clock training"
        ) from error


def output_files(out: Path | None, folders: Sequence[Path]) -> list[Path]:
    """The files to write."""
    if out is None:
        out = folders[0] / "plots" / "curves" if len(folders) == 1 else Path("curves")
    if out.is_dir():
        out = out / "curves"
    check_folder(out.parent, "--out")
    return [out] if out.suffix.lower() in FORMATS else [out.with_name(out.name + suffix) for suffix in FORMATS]


def distinct_names(folders: Sequence[Path]) -> list[str]:
    """What to call the runs: as run_name, with the folder where that is not enough, or its whole path."""
    for naming in (run_name, lambda folder: f"{folder.parent.name}/{folder.name}"):
        names = [naming(folder) for folder in folders]
        if len(set(names)) == len(names):
            return names
    return [str(folder) for folder in folders]


def chosen(what: str | None, runs: Sequence[Curves]) -> list[str]:
    """The quantities to draw. Raises UsageError for a name that no run has."""
    columns = list(dict.fromkeys(name for run in runs for name in run.columns))
    figures = sorted({name for run in runs for name in run.figures})
    if what is None:
        losses = [name for name in columns if name not in NOT_LOSSES and not name.startswith("ms_")]
        names = [*losses, *(name for name in METRICS if name in figures and name not in losses)]
        return names or columns
    from nsr.utils.hocon import did_you_mean

    known = list(dict.fromkeys([*columns, *figures]))
    names = list(dict.fromkeys(filter(None, (name.strip() for name in what.split(",")))))
    for name in names:
        if name not in known:
            raise UsageError(f"--what {name}: no run has it.{did_you_mean(name, known)} Available: {', '.join(known)}")
    if not names:
        raise UsageError(f"--what {what!r}: expected names, separated by commas. Available: {', '.join(known)}")
    return names


def print_slopes(runs: Sequence[Curves], names: Sequence[str], style: Style) -> None:
    """A line for each quantity of each run: its last value, and how it still changes."""
    import numpy as np

    from nsr.evaluation.curve_plots import AXES, has_epochs, slope_text
    from nsr.evaluation.curves import slope

    by_epoch = has_epochs(runs)
    rows = []
    for run in runs:
        for name in names:
            found = slope(run, name, style.tail, by_epoch)
            if found is not None:
                values = run.columns[name]
                slopes = [slope_text(found, axis, by_epoch) for axis in AXES]
                span = f"steps {found.first} to {found.last}, {found.rows} row{'s' if found.rows > 1 else ''}"
                rows.append((run.name, name, f"{values[np.isfinite(values)][-1]:.4g}", *slopes, span))
            elif name in run.figures:
                rows.append((run.name, name, f"{run.figures[name]:.4g}", "", "", "evaluated"))
    head = ("run", "what", "last", "slope", "", f"over the {style.tail}")
    widths = [max(len(row[i]) for row in [head, *rows]) for i in range(len(head))]
    for row in [head, *rows]:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
