"""Where runs and their checkpoints lie, and how far they have come. Without torch: what watches over a run must stay small."""

from __future__ import annotations

import itertools
import json
from datetime import datetime
from pathlib import Path
from typing import NamedTuple

from nsr.utils.errors import CheckpointError, UsageError, is_transient

LATEST, PREVIOUS = "latest", "previous"  # checkpoints: the newest, and the one that it replaced
CSV_NAME = "metrics.csv"
WALL_CLOCK = "unix_time"  # column of it: when a row was written, in seconds since 1970


def new_run_folder(experiments: Path, name: str, timestamp: str = LATEST) -> Path:
    """experiments/name/<time stamp>, as IDR lays its experiments out; created, and this caller's alone.

    timestamp: the name that the folder shall have instead. It may be there already, if no run has come to a checkpoint in it;
    otherwise UsageError.
    """
    if timestamp != LATEST:
        folder = experiments / name / timestamp
        if timestamp in ("", "..") or Path(timestamp).name != timestamp:
            raise UsageError(f"--timestamp {timestamp}: expected the name of a folder in {experiments / name}, without a path")
        if has_checkpoint(folder):
            raise UsageError(
                f"--timestamp {timestamp}: {folder} holds a run; continue it with --is_continue, or choose another"
            )
        folder.mkdir(parents=True, exist_ok=True)
        return folder
    stamp = datetime.now().strftime("%Y_%m_%d_%H_%M_%S")
    for number in itertools.count(1):
        folder = experiments / name / (stamp if number == 1 else f"{stamp}_{number}")
        try:
            folder.mkdir(parents=True)
        except FileExistsError:  # another run began in this second
            continue
        return folder


def run_folders(experiments: Path, name: str) -> list[Path]:
    """The folders of all runs of this name, the oldest first."""
    parent = experiments / name
    return sorted(path for path in parent.iterdir() if path.is_dir()) if parent.is_dir() else []


def find_run_folder(experiments: Path, name: str, timestamp: str = LATEST) -> Path:
    """The folder of an earlier run of this name: the latest one, or that of a time stamp."""
    found = {folder.name: folder for folder in run_folders(experiments, name)}
    if timestamp == LATEST and found:
        return [*found.values()][-1]
    if timestamp in found:
        return found[timestamp]
    raise CheckpointError(
        f"no run to continue: expected {'a run' if timestamp == LATEST else timestamp} in {experiments / name}, found "
        f"{', '.join(found) or 'none'}; start without --is_continue or give --exps_folder, --expname and --timestamp of a run"
    )


def checkpoint_path(run: Path, checkpoint: str = LATEST) -> Path:
    """The checkpoint file of a run folder, or `run` itself when it is a file."""
    return run if run.is_file() else run / "checkpoints" / f"{checkpoint}.safetensors"


def has_checkpoint(run: Path) -> bool:
    """Whether there is something to continue: the latest checkpoint, or at least the one before it."""
    return any(checkpoint_path(run, name).is_file() for name in (LATEST, PREVIOUS))


class Reached(NamedTuple):
    """How far a run has come: in steps, and of its schedule from 0 to 1; and what it is trained on, as nsr train names it."""

    step: int
    progress: float
    data: str = ""


def reached(run: Path, checkpoint: str = LATEST) -> Reached | None:
    """What a run's checkpoint says; None where there is none that can be read."""
    try:
        meta = _meta(run, checkpoint)
        return Reached(int(meta["step"]), float(meta["state"]["progress"]), str(meta.get("data_dir", "")))
    except (ValueError, KeyError, TypeError):
        return None


def steps_per_epoch(run: Path) -> int | None:
    """As many as the photographs that a run trains on; None where no checkpoint of it can be read."""
    for checkpoint in (LATEST, PREVIOUS):
        try:
            return len(_meta(run, checkpoint)["train_views"]) or None
        except (KeyError, TypeError):
            continue
    return None


def _meta(run: Path, checkpoint: str) -> dict:
    """What the head of a checkpoint holds, empty where it cannot be read. The tensors are not looked at.

    An OSError that may be gone at another time passes through.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(checkpoint_path(run, checkpoint), "numpy") as file:
            return json.loads(json.loads(file.metadata()["nsr"])["meta"])
    except (OSError, SafetensorError, ValueError, KeyError, TypeError) as error:
        if is_transient(error):
            raise
        return {}
