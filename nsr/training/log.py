"""What a run says about itself: metrics.csv, TensorBoard, the progress line, and how much memory it took."""

from __future__ import annotations

import csv
import io
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import IO, TYPE_CHECKING

import numpy as np
import torch

from nsr.training.folders import CSV_NAME, WALL_CLOCK
from nsr.training.step_times import StepTimes
from nsr.utils.files import atomic_write

if TYPE_CHECKING:
    from rich.console import Console

TENSORBOARD_NAME = "tensorboard"


class MetricsLog:
    """Scalars by step, in folder/metrics.csv and, with tensorboard=True, in TensorBoard files in folder/tensorboard.

    resume_step: continue the files of an earlier run that is taken up again at this step. Rows beyond it, which the run
    is about to repeat, are dropped, and so is a last line that a crash cut short. None starts the files anew.
    every: how many steps lie between two rows; show: print a progress line on stderr as well.
    """

    def __init__(
        self,
        folder: str | Path,
        resume_step: int | None = None,
        *,
        tensorboard: bool = False,
        every: int = 10,
        show: bool = True,
    ) -> None:
        self.every = every
        self.line = ProgressLine() if show else None
        self.path = Path(folder) / CSV_NAME
        self.columns, rows = ["step"], []
        if resume_step is not None and self.path.is_file():
            self.columns, rows = _read_rows(self.path, resume_step)
        self._rewrite(rows)
        self._writer = _tensorboard_writer(Path(folder) / TENSORBOARD_NAME, resume_step) if tensorboard else None

    def step(
        self, step: int, losses: Mapping[str, float], *, rays: int, seconds: float, progress: float, times: StepTimes
    ) -> None:
        """Take note of one training step. rays, seconds: since the run began; progress: 0..1, the share done.

        times: of its parts; their means since the last row become columns ms_draw, ms_forward, ... WALL_CLOCK is added.
        """
        if self.line is not None:
            self.line.update(progress, step, losses, rays)
        if step % self.every == 0:
            parts = {f"ms_{part}": milliseconds for part, milliseconds in times.take().items()}
            of_run = {"rays": rays, "seconds": seconds, "progress": progress, WALL_CLOCK: time.time()}
            self.log(step, {**losses, **of_run, **parts})

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Append one row. A name not seen before becomes a new column, empty in the rows above."""
        new = [name for name in values if name not in self.columns]
        if new:
            self._file.close()
            self.columns, rows = _read_rows(self.path)
            self.columns += new
            self._rewrite(rows)
        row = {"step": str(step)} | {name: _number(name, value) for name, value in values.items()}
        self._file.write(_csv_line([row.get(name, "") for name in self.columns]))
        self._file.flush()
        if self._writer is not None:
            for name, value in values.items():
                self._writer.add_scalar(name, float(value), step)

    def image(self, step: int, name: str, picture: np.ndarray) -> None:
        """Show a picture [H, W, 3] uint8 in TensorBoard."""
        if self._writer is not None:
            self._writer.add_image(name, picture, step, dataformats="HWC")

    def close(self) -> None:
        self._file.close()
        if self._writer is not None:
            self._writer.close()
        if self.line is not None:
            self.line.close()

    def __enter__(self) -> MetricsLog:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _rewrite(self, rows: list[list[str]]) -> None:
        """Replace the file by the header and rows, padded to the columns of now, and open it for appending."""
        with atomic_write(self.path, "w") as file:
            file.write(_csv_line(self.columns))
            for row in rows:
                file.write(_csv_line(row + [""] * (len(self.columns) - len(row))))
        self._file: IO[str] = open(self.path, "a", encoding="utf-8", newline="")  # noqa: SIM115 (close() closes it)


def _number(name: str, value: float) -> str:
    return f"{value:.2f}" if name == WALL_CLOCK else f"{float(value):.9g}"  # which would round it to ten seconds


def _csv_line(cells: list[str]) -> str:
    line = io.StringIO()
    csv.writer(line, lineterminator="\n").writerow(cells)
    return line.getvalue()


def _read_rows(path: Path, last_step: int | None = None) -> tuple[list[str], list[list[str]]]:
    """The columns, and the complete rows up to a step."""
    # A row is complete when its newline was written: a cut number may still look like one.
    text = path.read_text(encoding="utf-8")
    lines = text[: text.rfind("\n") + 1].splitlines()
    columns, *rows = csv.reader(lines) if lines else [["step"]]
    complete = [row for row in rows if len(row) == len(columns) and row[0].isdigit()]
    return columns, [row for row in complete if last_step is None or int(row[0]) <= last_step]


def _tensorboard_writer(folder: Path, resume_step: int | None):
    from torch.utils.tensorboard import SummaryWriter

    # purge_step hides what an earlier run logged in this folder beyond the step at which this one continues.
    return SummaryWriter(str(folder), purge_step=0 if resume_step is None else resume_step + 1)


class ProgressLine:
    """How far training is, on stderr: a live bar on a terminal, else one line every `interval` seconds."""

    def __init__(self, *, interval: float = 5.0, console: Console | None = None) -> None:
        from rich.console import Console

        self.console = console or Console(stderr=True)
        # A reader that has gone is no reason to stop. rich would end the process, and so the trainer of a killed supervisor.
        self.console.on_broken_pipe = lambda: setattr(self.console, "quiet", True)
        self.interval = 0.2 if self.console.is_terminal else interval
        self._bar = None
        self._begin: tuple[float, float] | None = None  # time and progress at the first update
        self._shown: tuple[float, int] | None = None  # time and rays when a line was last shown

    def close(self) -> None:
        if self._bar is not None:
            self._bar.stop()

    def update(self, progress: float, step: int, losses: Mapping[str, float], rays_seen: int) -> None:
        """progress in 0..1; losses by name; rays_seen since the run began. Cheap enough for every step."""
        now = time.monotonic()
        if self._begin is None or self._shown is None:
            self._begin, self._shown = (now, progress), (now, rays_seen)
            return
        since = now - self._shown[0]
        if since < self.interval and progress < 1.0:
            return
        rate = (rays_seen - self._shown[1]) / max(since, 1e-9)
        self._shown = (now, rays_seen)
        shown = "  ".join(f"{name} {value:.4f}" for name, value in losses.items())
        with suppress(OSError):
            self._show(progress, f"step {step}  {shown}  {rate / 1000:.1f}k rays/s  {self._remaining(now, progress)}")

    def _remaining(self, now: float, progress: float) -> str:
        began, progress_then = self._begin
        if progress <= progress_then:
            return "eta -:--"
        seconds = round((now - began) * (1.0 - progress) / (progress - progress_then))
        hours, minutes = seconds // 3600, seconds // 60 % 60
        return f"eta {hours}:{minutes:02}:{seconds % 60:02}" if hours else f"eta {minutes}:{seconds % 60:02}"

    def _show(self, progress: float, text: str) -> None:
        if not self.console.is_terminal:
            self.console.print(f"{progress:4.0%}  {text}", highlight=False, soft_wrap=True)
            return
        if self._bar is None:
            from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn

            columns = (BarColumn(24), TaskProgressColumn(), TextColumn("{task.description}", markup=False))
            self._bar = Progress(*columns, console=self.console, auto_refresh=False)
            self._bar.start()
            self._bar.add_task("", total=1.0)
        self._bar.update(self._bar.task_ids[0], completed=progress, description=text, refresh=True)


def peak_memory_mb(device: torch.device | str = "cpu") -> float:
    """Most memory this process has held at a time, in MiB: resident on the CPU, allocated by torch on a GPU."""
    if torch.device(device).type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    # ru_maxrss starts from the parent's value after an exec; the kernel's high-water mark is this process's own.
    status = Path("/proc/self/status")
    if status.is_file():
        for line in status.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) / 1024
    import resource  # which Windows lacks

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 1024)
