"""Checks of command-line values that several programs share; each raises UsageError before anything costly begins."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from nsr.utils.errors import UsageError

MAX_RESOLUTION = 2048


def check_resolution(resolution: int) -> None:
    if not 8 <= resolution <= MAX_RESOLUTION:
        raise UsageError(f"--resolution {resolution}: expected 8 to {MAX_RESOLUTION} cells per axis")


def check_suffix(path: Path, suffixes: Sequence[str], option: str = "--out") -> None:
    if path.suffix.lower() not in suffixes:
        raise UsageError(f"{option} {path}: expected a file name that ends in {', '.join(suffixes)}")
