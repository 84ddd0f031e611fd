"""What a run folder tells of its course, while the run still goes on or later: metrics.csv and metrics.json. Without torch."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from nsr.evaluation.curves import Curves
from nsr.training.folders import CSV_NAME, steps_per_epoch
from nsr.utils.errors import DataError

FIGURES_NAME = "metrics.json"
ABOUT_THE_RUN = ("views", "seed", "steps", "rays", "train_seconds")  # numbers of metrics.json that measure nothing


def read_history(folder: Path, name: str) -> Curves:
    """The curves of a run, without rows where it has not come to its first. name: what to call it.

    Raises DataError with file and line where a file is missing, empty or damaged.

    A last line without its end is being written, or was when the run was killed: it does not count. Where a run was taken up
    again at an earlier step, what followed that step before is gone.
    """
    columns, rows = _read_csv(folder / CSV_NAME)
    figures, figures_at = _read_figures(folder / FIGURES_NAME)
    table = np.array(rows, dtype=np.float64).reshape(-1, len(columns))
    table[~np.isfinite(table)] = np.nan
    steps = table[:, 0].astype(np.int64)
    logged = dict(zip(columns[1:], table.T[1:], strict=True))
    return Curves(name, steps, logged, steps_per_epoch(folder), figures, figures_at)


def _read_csv(path: Path) -> tuple[list[str], list[list[float]]]:
    if not path.is_file():
        raise DataError(f"{path}: no such file; expected the folder of a run that nsr train or nsr reconstruct has begun")
    data = path.read_bytes()
    lines = data[: data.rfind(b"\n") + 1].splitlines()
    if not lines:
        raise DataError(f"{path}, line 1: empty; expected a line of names, step first; the run has not begun or lost the file")
    columns = _cells(path, 1, lines[0])
    if columns[:1] != ["step"] or len(set(columns)) != len(columns):
        raise DataError(f"{path}, line 1: expected different names, step first; got {','.join(columns)[:80]!r}")
    rows: list[list[float]] = []
    for row in _rows(path, lines, len(columns)):
        while rows and rows[-1][0] >= row[0]:
            rows.pop()
        rows.append(row)
    return columns, rows


def _rows(path: Path, lines: Sequence[bytes], count: int) -> Iterator[list[float]]:
    for number, line in enumerate(lines[1:], start=2):
        cells = _cells(path, number, line)
        if len(cells) != count:
            raise DataError(
                f"{path}, line {number}: damaged: expected {count} values, as names, got {len(cells)}; remove the line"
            )
        try:
            row = [float(cell) if cell else math.nan for cell in cells]
        except ValueError as error:
            raise DataError(f"{path}, line {number}: damaged: expected numbers, {error}; remove the line") from error
        if not (row[0] >= 0 and row[0] == math.floor(row[0]) < math.inf):
            raise DataError(f"{path}, line {number}: damaged: expected a step, got {cells[0]!r}; remove the line")
        yield row


def _cells(path: Path, number: int, line: bytes) -> list[str]:
    try:
        return next(csv.reader([line.decode("utf-8")]), [])
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path}, line {number}: damaged: {error}; remove the line") from error


def _read_figures(path: Path) -> tuple[dict[str, float], tuple[float, float]]:
    """Finite numbers of an evaluation, and the step and second at which it was made; nothing where there was none."""
    if not path.is_file():
        return {}, (math.nan, math.nan)
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise DataError(f"{path}, line {error.lineno}: damaged: {error.msg}; run nsr eval again") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: damaged: {error}; run nsr eval again") from error
    if not isinstance(content, dict):
        raise DataError(f"{path}, line 1: expected an object with the figures of nsr eval; run it again")
    numbers = {name: float(value) for name, value in content.items() if type(value) in (int, float) and math.isfinite(value)}
    at = (numbers.get("steps", math.nan), numbers.get("train_seconds", math.nan))
    return {name: value for name, value in numbers.items() if name not in ABOUT_THE_RUN}, at
