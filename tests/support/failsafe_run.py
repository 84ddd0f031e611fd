"""`nsr failsafe` as a process, over a tiny scene, to be killed, corrupted and starved while it works."""

from __future__ import annotations

import argparse
import csv
import os
import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

from support.tiny_run import nsr_command, write_tiny_conf, write_tiny_scene

from nsr.apps import failsafe
from nsr.apps.main import parse
from nsr.training.experiments import EXPERIMENTS
from nsr.training.folders import reached, run_folders

EXPERIMENT = "HashGrid_dtu_fixed_cameras_7"
EPOCHS = 20
PATIENCE = 120  # seconds until something that must happen has not


def write_workplace(folder: Path) -> Path:
    """A working directory with a configuration for every experiment, all alike, and the scene DTU/scan7."""
    conf = write_tiny_conf(folder / "tiny.conf")
    for name in EXPERIMENTS.values():
        place = folder / "confs" / "encoders" / name
        place.mkdir(parents=True)
        shutil.copy(conf, place / "dtu_fixed_cameras.conf")
    write_tiny_scene(folder / "DTU" / "scan7")
    return folder


def train_options(exps: Path, *more: object, checkpoint_seconds: float = 0.05) -> list[object]:
    """Of a run by epochs, with checkpoints every few steps and a start of half a second, which a kill can hit."""
    options = ["--exp", "HashGrid", "--scan_id", 7, "--data_dir", "DTU", "--exps_folder", exps, "--nepoch", EPOCHS, "--seed", 3]
    return [*options, *more, f"train.checkpoint_seconds={checkpoint_seconds}", "start.type=hull", "start.steps=300"]


def parsed(*arguments: object) -> argparse.Namespace:
    """As `nsr failsafe` parses its arguments."""
    return parse(failsafe.build_parser("nsr failsafe"), [str(argument) for argument in arguments])


def garble(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-2000] + b"\0" * 2000)


class FailsafeTraining:
    """`nsr failsafe train` in a working directory; lines: of its stderr, as far as they were read."""

    def __init__(self, workplace: Path, exps: Path, *options: object, **how: float) -> None:
        command, environment = nsr_command("failsafe", "train", *train_options(exps, *options, **how))
        pipes = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "text": True}
        self.process = subprocess.Popen(command, cwd=workplace, env={**environment, "OMP_NUM_THREADS": "1"}, **pipes)
        self.exps, self.lines = exps, []

    def __enter__(self) -> FailsafeTraining:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.communicate()

    @property
    def run(self) -> Path:
        """The folder of the newest run."""
        return run_folders(self.exps, EXPERIMENT)[-1]

    def step(self) -> int | None:
        state = reached(self.run) if run_folders(self.exps, EXPERIMENT) else None
        return state.step if state else None

    def child(self) -> int | None:
        """The process that holds the run's folder, and trains."""
        try:
            pid = int((self.run / ".lock").read_text())
            os.kill(pid, 0)
        except (OSError, ValueError, IndexError):
            return None
        return pid

    def wait_until(self, happened: Callable[[], object]) -> None:
        deadline = time.monotonic() + PATIENCE
        while not happened():
            assert self.process.poll() is None, self.process.stderr.read()
            assert time.monotonic() < deadline
            time.sleep(0.002)

    def read_until(self, words: str) -> None:
        """Read its stderr up to a line with these words."""
        for line in self.process.stderr:
            self.lines.append(line)
            if words in line:
                return
        raise AssertionError(f"ended without a line of {words!r}: {''.join(self.lines)}")

    def end(self) -> int:
        """Its exit code."""
        self.lines += self.process.communicate(timeout=PATIENCE)[1].splitlines(keepends=True)
        return self.process.returncode


def attempts(exps: Path, experiment: str = EXPERIMENT) -> list[dict[str, str]]:
    with open(exps / experiment / "failsafe.csv", newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))
