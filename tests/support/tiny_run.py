"""A scene folder and a configuration so small that a whole run takes a second."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from support.idr_folder import write_folder
from support.painted_ball import PaintedBall, photographs
from support.two_balls import cameras_around

ROOT = Path(__file__).resolve().parents[2]
VIEWS, WIDTH, HEIGHT = 6, 32, 24

_GRID = "levels = 3, base_resolution = 4, max_resolution = 16, log2_table_size = 9, start_levels = 2"
_CONF = f"""include "{ROOT}/confs/instant.conf"
model.implicit_network {{ dims = [16], feature_size = 7, encoder.hashgrid {{ {_GRID} }} }}
model.rendering_network {{ dims = [16], point_encoder.hashgrid {{ {_GRID} }} }}
sampling {{ rays = 64, neighbours = 16, volume_points = 32 }}
start {{ resolution = 24, steps = 10, points = 128 }}
"""


def write_tiny_scene(folder: Path, **layout) -> Path:
    """VIEWS photographs of the painted ball from all round, in IDR layout; layout: see write_folder."""
    return write_folder(photographs(cameras_around(VIEWS, WIDTH, HEIGHT), PaintedBall()), folder, **layout)


def write_tiny_conf(path: Path, extra: str = "") -> Path:
    """The instant configuration, shrunk; extra: further lines of HOCON."""
    path.write_text(_CONF + extra)
    return path


def nsr_command(*arguments: object) -> tuple[list[str], dict[str, str]]:
    """Command and environment of `nsr ARGUMENTS` as a process of its own."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return [sys.executable, "-m", "nsr.apps.main", *map(str, arguments)], environment
