"""A scene folder and a configuration so small that a whole run takes a second."""

from __future__ import annotations

import os
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from support.idr_folder import write_folder
from support.painted_ball import PaintedBall, photographs
from support.two_balls import cameras_around

from nsr.config import bind, find_conf, load_tree, to_hocon
from nsr.geometry.poses import look_at
from nsr.training.settings import Config
from nsr.types import Cameras

ROOT = Path(__file__).resolve().parents[2]
VIEWS, WIDTH, HEIGHT = 6, 32, 24
OTHER_WORLD = np.array([[0.7, 0, 0, -20.0], [0, 0, -0.7, 4.0], [0, 0.7, 0, 9.0], [0, 0, 0, 1]])  # of write_other_scene

SMALL = (
    *(f"model.{network}.dims=[16]" for network in ("implicit_network", "rendering_network")),
    "model.implicit_network.feature_size=7",
    *(
        f"model.{encoder}.hashgrid.{option}"
        for encoder in ("implicit_network.encoder", "rendering_network.point_encoder")
        for option in ("levels=3", "base_resolution=4", "max_resolution=16", "log2_table_size=9", "start_levels=2")
    ),
    *("sampling.rays=64", "sampling.color_rays=64", "sampling.neighbours=16", "sampling.volume_points=32"),
    *("start.resolution=24", "start.steps=10", "start.points=128"),
    *("train.shape_rate=0.3", "train.warmup_steps=0"),
)


def write_tiny_scene(folder: Path, **layout) -> Path:
    """VIEWS photographs of the painted ball from all round, in IDR layout; layout: see write_folder."""
    return write_folder(photographs(cameras_around(VIEWS, WIDTH, HEIGHT), PaintedBall()), folder, **layout)


def write_other_scene(folder: Path) -> Path:
    """Another ball, otherwise painted, in a world of another scale, place and up direction, by photographs of another size."""
    eye = cameras_around(VIEWS + 1).centers.roll(1, dims=1) * 1.1
    poses = look_at(eye, torch.zeros(3), torch.tensor([1.0, 0.0, 0.0]))
    intrinsics = torch.tensor([[60.0, 0, 21.0], [0, 60.0, 20.0], [0, 0, 1]]).repeat(len(eye), 1, 1)
    scene = photographs(Cameras(intrinsics, poses, 40, 42), PaintedBall(tint=0.1))
    return write_folder(replace(scene, world_from_scene=OTHER_WORLD), folder)


def write_tiny_conf(path: Path, *overrides: str) -> Path:
    """The instant configuration, shrunk, in a file of its own."""
    tree, _ = load_tree(find_conf("instant"), [*SMALL, *overrides])
    path.write_text(to_hocon(tree))
    return path


def tiny_config(*overrides: str) -> Config:
    """The same, bound."""
    tree, source = load_tree(find_conf("instant"), [*SMALL, *overrides])
    return bind(Config, tree, source)


def nsr_command(*arguments: object) -> tuple[list[str], dict[str, str]]:
    """Command and environment of `nsr ARGUMENTS` as a process of its own."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return [sys.executable, "-m", "nsr.apps.main", *map(str, arguments)], environment
