"""Checks of command-line values that several programs share; each is a usage error before anything costly begins."""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from pathlib import Path

from nsr.utils.errors import UsageError

MAX_RESOLUTION = 2048
TRAIN_CAMERAS = (
    "refine the camera poses as well: from those of cameras_linear_init.npz where the scene has that file, else from its own; "
    "its own (cameras.npz) are the reference that results are aligned to"
)


def seconds(text: str) -> float:
    """An argparse type: a length of time."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"expected a positive number of seconds, got {text!r}")
    return value


def whole_number(least: int, what: str):
    """An argparse type: an integer from `least` up; `what` says in the error what it counts."""

    def parse(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = least - 1
        if not least <= value < 2**63:
            raise argparse.ArgumentTypeError(f"expected {what}, a whole number from {least} up, got {text!r}")
        return value

    return parse


def add_unseen_options(parser: argparse.ArgumentParser) -> None:
    """--unseen and --min-views, of the programs that write meshes."""
    parser.add_argument(
        "--unseen",
        choices=("keep", "mark", "trim"),
        default="keep",
        help="surface that no training view saw: keep closes the mesh with it; mark greys it, and .ply holds the number of "
        "views (views) and 0 or 1 (seen) of each vertex; trim cuts it away (default keep)",
    )
    parser.add_argument(
        "--min-views",
        type=whole_number(1, "views"),
        default=1,
        metavar="N",
        help="how many training views must have seen what counts as seen (default 1)",
    )


def check_folder(path: Path, option: str) -> None:
    """An output folder may exist or not, but nothing on its way may be a file."""
    for place in (path, *path.parents):
        if place.exists() and not place.is_dir():
            raise UsageError(f"{option} {path}: {place} is a file; expected a folder, or a name that is free")


def check_resolution(resolution: int) -> None:
    if not 8 <= resolution <= MAX_RESOLUTION:
        raise UsageError(f"--resolution {resolution}: expected 8 to {MAX_RESOLUTION} cells per axis")


def check_suffix(path: Path, suffixes: Sequence[str], option: str = "--out") -> None:
    if path.suffix.lower() not in suffixes:
        raise UsageError(f"{option} {path}: expected a file name that ends in {', '.join(suffixes)}")
