"""Checks of command-line values that several programs share; each is a usage error before anything costly begins."""

from __future__ import annotations

import argparse
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from nsr.utils.errors import CheckpointError, UsageError

if TYPE_CHECKING:
    from nsr.types import Sphere

RESOLUTION = 384  # of the meshes that figures are measured on, hence the same wherever they are
MAX_RESOLUTION = 2048
TIME_STAMP = re.compile(r"\d{4}(_\d\d){5}(_\d+)?")  # as nsr train names the runs of an experiment
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


def add_device(parser: argparse._ActionsContainer, default: str = "cpu") -> None:
    """The option --device; nsr.training.launch.check_device says what there is."""
    parser.add_argument(
        "--device", default=default, help=f"cpu, cuda, cuda:1, or auto: a GPU where torch finds one (default {default})"
    )


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


def add_prior(parser: argparse._ActionsContainer) -> None:
    """The option --prior."""
    parser.add_argument(
        "--prior", type=Path, metavar="RUN|FILE",
        help="begin from what is known of such objects: a run, or what nsr prior has written (prior.* says how)",
    )  # fmt: skip


def add_sphere(parser: argparse._ActionsContainer) -> None:
    """The option --sphere; see the_sphere."""
    parser.add_argument(
        "--sphere",
        nargs=4,
        type=float,
        metavar=("X", "Y", "Z", "R"),
        help="centre and radius, in world units, of the sphere around the object (default: the camera file's, else estimated)",
    )


def the_sphere(values: Sequence[float] | None) -> Sphere | None:
    """The value of --sphere. Raises UsageError when there is no such sphere."""
    if values is None:
        return None
    if not all(math.isfinite(value) for value in values) or values[3] <= 0:
        given = " ".join(f"{value:g}" for value in values)
        raise UsageError(f"--sphere {given}: expected four finite numbers, X Y Z and a radius of more than 0, in world units")
    return tuple(values)


def check_folder(path: Path, option: str) -> None:
    """An output folder may exist or not, but nothing on its way may be a file."""
    for place in (path, *path.parents):
        if place.exists() and not place.is_dir():
            raise UsageError(f"{option} {path}: {place} is a file; expected a folder, or a name that is free")


def is_run(folder: Path) -> bool:
    return (folder / "checkpoints").is_dir() or (folder / "metrics.csv").is_file()


def newest_run(folder: Path) -> Path:
    """The folder itself where it is a run's; in that of an experiment, EXPS_FOLDER/EXPNAME, the newest run by its time stamp,
    else the only one, whatever its name (--timestamp NAME)."""
    if is_run(folder):
        return folder
    inside = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
    if runs := [name for name in inside if TIME_STAMP.fullmatch(name)]:
        return folder / runs[-1]
    named = [name for name in inside if is_run(folder / name)]
    if len(named) == 1:
        return folder / named[0]
    if named:
        raise CheckpointError(
            f"{folder}: {len(named)} runs without time stamps, {', '.join(named[:8])}; give the folder of one"
        )
    found = ", ".join(inside[:8]) or ("nothing" if folder.is_dir() else "no folder")
    raise CheckpointError(
        f"{folder}: no run; expected the folder of a run (with checkpoints and metrics.csv) or of an experiment (with runs "
        f"named by time stamps), found {found}; give the folder that nsr train or nsr reconstruct wrote to"
    )


def run_name(folder: Path) -> str:
    """What to call a run: its folder, or its experiment where the folder is named by a time stamp."""
    folder = folder.resolve()
    return folder.parent.name if TIME_STAMP.fullmatch(folder.name) else folder.name


def full_run_name(folder: Path) -> str:
    """The same with the time stamp, which tells the runs of an experiment apart."""
    folder = folder.resolve()
    return f"{run_name(folder)}_{folder.name}" if TIME_STAMP.fullmatch(folder.name) else folder.name


def add_resolution(parser: argparse.ArgumentParser, default: int = RESOLUTION) -> None:
    parser.add_argument("--resolution", type=int, default=default, help=f"marching-cubes cells per axis (default {default})")


def check_resolution(resolution: int) -> None:
    if not 8 <= resolution <= MAX_RESOLUTION:
        raise UsageError(f"--resolution {resolution}: expected 8 to {MAX_RESOLUTION} cells per axis")


def check_suffix(path: Path, suffixes: Sequence[str], option: str = "--out") -> None:
    if path.suffix.lower() not in suffixes:
        raise UsageError(f"{option} {path}: expected a file name that ends in {', '.join(suffixes)}")
