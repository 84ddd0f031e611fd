"""Run folders by name and time, and how far their runs have come, as told without torch."""

from __future__ import annotations

import errno
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from nsr.training.checkpoint import save_checkpoint
from nsr.training.folders import (
    PREVIOUS,
    Reached,
    checkpoint_path,
    has_checkpoint,
    new_run_folder,
    reached,
    run_folders,
    steps_per_epoch,
)
from nsr.utils.errors import UsageError

ROOT = Path(__file__).resolve().parents[2]


def save(run: Path, step: int, progress: float, name: str = "latest") -> Path:
    meta = {"step": step, "state": {"progress": progress}}
    save_checkpoint(checkpoint_path(run, name), {"w": torch.ones(1000)}, meta)
    return checkpoint_path(run, name)


def test_folders_of_one_second_are_apart(tmp_path):
    folders = [new_run_folder(tmp_path, "cup") for _ in range(3)]
    assert len({*folders}) == 3
    assert run_folders(tmp_path, "cup") == sorted(folders)
    assert run_folders(tmp_path, "mug") == []


def test_a_named_folder_may_be_there_as_long_as_no_run_is_in_it(tmp_path):
    folder = new_run_folder(tmp_path, "cup", "first")
    assert folder == tmp_path / "cup" / "first"
    assert new_run_folder(tmp_path, "cup", "first") == folder
    save(folder, 1, 0.5, PREVIOUS)
    with pytest.raises(UsageError, match=r"--timestamp first: .* holds a run"):
        new_run_folder(tmp_path, "cup", "first")
    for name in ("../mug", "a/b", "..", ".", ""):
        with pytest.raises(UsageError, match="name of a folder"):
            new_run_folder(tmp_path, "cup", name)
    assert [path.name for path in tmp_path.iterdir()] == ["cup"]


def test_how_far_a_run_has_come(tmp_path):
    assert reached(tmp_path) is None
    assert not has_checkpoint(tmp_path)
    save(tmp_path, 12, 0.25, PREVIOUS)
    assert has_checkpoint(tmp_path)
    assert reached(tmp_path) is None
    file = save(tmp_path, 24, 1.0)
    assert reached(tmp_path) == Reached(24, 1.0)
    file.write_bytes(file.read_bytes()[:-1])
    assert reached(tmp_path) is None
    file.write_bytes(b"")
    assert reached(tmp_path) is None
    assert reached(tmp_path, PREVIOUS) == Reached(12, 0.25)
    save_checkpoint(file, {}, {"of": "another program"})
    assert reached(tmp_path) is None


def test_an_epoch_is_as_many_steps_as_the_run_has_photographs(tmp_path):
    assert steps_per_epoch(tmp_path) is None
    save_checkpoint(checkpoint_path(tmp_path, PREVIOUS), {}, {"train_views": [0, 2, 4]})
    assert steps_per_epoch(tmp_path) == 3
    save_checkpoint(checkpoint_path(tmp_path), {}, {"train_views": [0, 2, 4, 6]})
    assert steps_per_epoch(tmp_path) == 4
    checkpoint_path(tmp_path).write_bytes(b"cut off")
    assert steps_per_epoch(tmp_path) == 3
    save(tmp_path, 12, 0.25, PREVIOUS)  # which knows no views
    assert steps_per_epoch(tmp_path) is None


def test_without_torch(tmp_path):
    save(tmp_path, 12, 0.25)
    code = (
        "import sys; from pathlib import Path; from nsr.training.folders import reached\n"
        f"print(reached(Path({str(tmp_path)!r})).step, 'torch' in sys.modules)"
    )
    shown = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert shown.split() == ["12", "False"]


def test_a_checkpoint_that_cannot_be_read_for_a_while_is_no_missing_one(tmp_path, monkeypatch):
    def away(*_):
        raise OSError(errno.ESTALE, "Stale file handle")

    monkeypatch.setattr("safetensors.safe_open", away)
    with pytest.raises(OSError, match="Stale"):
        reached(tmp_path)
