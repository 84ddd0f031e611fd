"""A run whose trained model is a ball in closed form, opened without a checkpoint."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from support.painted_ball import WORLD_FROM_SCENE, PaintedBall, photographs, ring_of_cameras
from support.tiny_run import tiny_config

VIEWS, TRAINED, HELD_OUT = 6, [0, 1, 2, 4, 5], [3]


def open_as_run(monkeypatch: pytest.MonkeyPatch, folder: Path, **of_scene: str) -> SimpleNamespace:
    """What load_run returns from now on, whatever it is given. of_scene: fields of its scene, such as its source."""
    scene = replace(photographs(ring_of_cameras(VIEWS), PaintedBall()), **of_scene)
    opened = SimpleNamespace(
        model=PaintedBall(),
        config=tiny_config(),
        folder=folder,
        checkpoint="0123abcd",
        step=700,
        rays=9000,
        seconds=12.5,
        seed=3,
        world_from_scene=WORLD_FROM_SCENE,
        data_dir="ball",
        cameras=scene.cameras[TRAINED],
        train_views=TRAINED,
        holdout_views=HELD_OUT,
        aligned=False,
        exposure=None,
        load_scene=lambda: scene,
    )
    opened.folder.mkdir()
    monkeypatch.setattr("nsr.training.run.load_run", lambda path, device="cpu": opened)
    return opened
