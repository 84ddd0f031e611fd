"""The metrics log: rows that survive crashes and resumes, readable TensorBoard files, a line without a terminal."""

from __future__ import annotations

import csv
import io
import os
import re
import time
from contextlib import suppress

import numpy as np
import pytest
import torch

from nsr.training.log import MetricsLog, ProgressLine, peak_memory_mb
from nsr.training.step_times import PARTS, StepTimes


def rows(folder) -> list[dict[str, str]]:
    with open(folder / "metrics.csv", newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def write_steps(folder, steps, resume_step=None, **names):
    with MetricsLog(folder, resume_step, every=1, show=False) as log:
        for step in steps:
            log.log(step, {"loss": 1 / step, **names})


def test_rows_are_on_disk_as_they_are_written(tmp_path):
    times = StepTimes(torch.device("cpu"))
    with MetricsLog(tmp_path, every=2, show=False) as log:
        for step in range(1, 5):
            times.begin()
            for part in PARTS:
                time.sleep(0.01 * (part == "backward"))
                times.end(part)
            log.step(step, {"loss": 0.1 * step}, rays=512 * step, seconds=0.5, progress=0.25, times=times)
            assert len(rows(tmp_path)) == step // 2
    last = rows(tmp_path)[1]
    assert abs(time.time() - float(last.pop("unix_time"))) < 60
    parts = {part: float(last.pop(f"ms_{part}")) for part in PARTS}
    assert last == {"step": "4", "loss": "0.4", "rays": "2048", "seconds": "0.5", "progress": "0.25"}
    assert parts["backward"] >= 10 > parts["forward"] > 0


def test_a_new_column_leaves_earlier_rows_empty(tmp_path):
    with MetricsLog(tmp_path, show=False) as log:
        log.log(1, {"loss": 1.0})
        log.log(2, {"psnr": 20.0, "loss": 0.5})
        log.log(3, {"loss": 0.25})
    assert [(row["step"], row["loss"], row["psnr"]) for row in rows(tmp_path)] == [
        ("1", "1", ""),
        ("2", "0.5", "20"),
        ("3", "0.25", ""),
    ]


def test_resuming_drops_what_will_be_repeated(tmp_path):
    write_steps(tmp_path, range(1, 10), ncc=2.0)
    write_steps(tmp_path, range(6, 8), resume_step=5)
    assert [row["step"] for row in rows(tmp_path)] == ["1", "2", "3", "4", "5", "6", "7"]
    assert rows(tmp_path)[-1] == {"step": "7", "loss": f"{1 / 7:.9g}", "ncc": ""}


@pytest.mark.parametrize("cut", [1, 3, 8])
def test_resuming_after_a_crash_in_the_middle_of_a_line(tmp_path, cut):
    write_steps(tmp_path, range(1, 4))
    path = tmp_path / "metrics.csv"
    path.write_bytes(path.read_bytes()[:-cut])
    write_steps(tmp_path, [3], resume_step=2)
    assert [row["step"] for row in rows(tmp_path)] == ["1", "2", "3"]
    assert rows(tmp_path)[-1]["loss"] == f"{1 / 3:.9g}"


def test_a_new_run_starts_anew_and_an_empty_file_is_no_obstacle(tmp_path):
    write_steps(tmp_path, range(1, 4))
    write_steps(tmp_path, [1])
    assert len(rows(tmp_path)) == 1
    (tmp_path / "metrics.csv").write_text("")
    write_steps(tmp_path, [2], resume_step=1)
    assert [row["step"] for row in rows(tmp_path)] == ["2"]


def test_tensorboard_reads_scalars_and_pictures_back(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    with MetricsLog(tmp_path, tensorboard=True, show=False) as log:
        log.log(3, {"loss": 0.5})
        log.image(3, "preview", np.zeros((4, 6, 3), np.uint8))
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [(event.step, event.value) for event in events.Scalars("loss")] == [(3, 0.5)]
    assert [(picture.height, picture.width) for picture in events.Images("preview")] == [(4, 6)]


class Clock:
    """time.monotonic, moved by hand."""

    def __init__(self, monkeypatch) -> None:
        self.now = 100.0
        monkeypatch.setattr("nsr.training.log.time.monotonic", lambda: self.now)


def make_line(terminal: bool) -> tuple[ProgressLine, io.StringIO]:
    from rich.console import Console

    text = io.StringIO()
    return ProgressLine(console=Console(file=text, force_terminal=terminal, width=120)), text


def test_without_a_terminal_a_line_every_few_seconds(monkeypatch):
    clock = Clock(monkeypatch)
    line, text = make_line(terminal=False)
    for step in range(101):
        line.update(step / 100, step, {"loss": 0.125}, rays_seen=1000 * step)
        clock.now += 0.6
    line.close()
    lines = text.getvalue().splitlines()
    assert len(lines) == 12  # 60 s at one line per 5 s (each rounded up to a step), and the end
    assert re.fullmatch(r" *9%  step 9  loss 0\.1250  1\.7k rays/s  eta 0:55", lines[0])
    assert lines[-1].startswith("100%")


def test_a_reader_that_has_gone_is_no_reason_to_stop(monkeypatch):
    """rich itself would end the process, and training without a checkpoint."""
    from rich.console import Console

    clock = Clock(monkeypatch)
    read, write = os.pipe()
    os.close(read)
    gone = open(write, "w", buffering=1)  # noqa: SIM115 (what is still in its buffer cannot be written when it is closed)
    line = ProgressLine(console=Console(file=gone))
    for step in range(3):
        line.update(step / 4, step, {"loss": 0.5}, rays_seen=step)
        clock.now += 10
    line.close()
    assert line.console.quiet
    with suppress(BrokenPipeError):
        gone.close()


def test_on_a_terminal_a_bar(monkeypatch):
    clock = Clock(monkeypatch)
    line, text = make_line(terminal=True)
    for step in range(5):
        line.update(step / 4, step, {"loss": 0.5}, rays_seen=step)
        clock.now += 1
    line.close()
    assert "100%" in text.getvalue()
    assert "loss 0.5000" in text.getvalue()


def test_peak_memory_grows_with_what_is_held():
    before = peak_memory_mb()
    block = np.ones(2**25)  # 256 MiB, touched
    assert peak_memory_mb() >= before
    assert peak_memory_mb() >= block.nbytes / 2**20
