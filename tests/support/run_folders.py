"""What is in the folders of runs, and whether two runs came to the same."""

from __future__ import annotations

import csv
from pathlib import Path

import torch

from nsr.training.checkpoint import Checkpoint, load_checkpoint
from nsr.training.folders import WALL_CLOCK


def runs_in(exps: Path, name: str = "tiny_ball") -> list[Path]:
    return sorted((exps / name).iterdir())


def checkpoint(run: Path) -> Checkpoint:
    return load_checkpoint(run / "checkpoints" / "latest.safetensors")


def rows(run: Path) -> list[dict[str, str]]:
    with open(run / "metrics.csv", newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def assert_same_state(run: Path, other: Path) -> None:
    """Every tensor (weights, moments, cameras, generators) and every row of losses is the same, bit for bit."""
    ours, theirs = checkpoint(run), checkpoint(other)
    assert ours.meta["step"] == theirs.meta["step"]
    assert ours.tensors.keys() == theirs.tensors.keys()
    assert any("table" in name for name in ours.tensors)
    for name, tensor in ours.tensors.items():
        assert torch.equal(tensor, theirs.tensors[name]), name

    def without_time(run: Path) -> list[dict[str, str]]:
        return [
            {name: value for name, value in row.items() if not name.startswith(("seconds", "ms_", WALL_CLOCK))}
            for row in rows(run)
        ]

    assert without_time(run) == without_time(other)
