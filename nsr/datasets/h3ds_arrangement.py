"""H3DS arranged by the number of views in IDR's layout, for programs that read that: DIR/view3/scan0/image/000000.jpg ...

DIR/
  scan_list.txt        which head a scan is, and which of its views it has: view3/scan0 1b2a8613401e42a8 0,18,65
  view3/scan0/
    image/000000.jpg   mask/000.png   cameras.npz      the views of the published list, counted from 0
    full_head.obj      landmarks.txt  regions/         what nsr eval --h3ds takes
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from nsr.datasets.h3ds import LANDMARKS, MESH, H3dsScene
from nsr.datasets.idr import camera_numbers, find_files, read_matrices
from nsr.utils.errors import DataError
from nsr.utils.files import atomic_folder

SCAN_LIST = "scan_list.txt"


def write_arrangement(scenes: Sequence[H3dsScene], counts: Sequence[int], out: str | Path) -> list[str]:
    """Write the scenes' published lists of `counts` views to a folder, all of it or nothing; returns the lines of SCAN_LIST.

    Scans are numbered as the scenes stand; where one has no list of so many views, its number is left out there. Files are
    copied as they are. Raises DataError where a scene is not whole or none has such a list, UsageError where `out` is in use.
    """
    for scene in scenes:
        if missing := scene.missing():
            raise DataError(f"{scene.folder}: not whole: no {', no '.join(missing)}; fetch it again, or leave the scene out")
    if not any(count in scene.splits for scene in scenes for count in counts):
        raise DataError(
            f"no scene has a list of {', '.join(map(str, counts))} views; expected one in its default_views_configs"
        )
    lines = []
    with atomic_folder(out) as folder:
        for count in counts:
            for number, scene in enumerate(scenes):
                if count in scene.splits:
                    place = f"view{count}/scan{number}"
                    _write_scan(scene, scene.splits[count], folder / place)
                    lines.append(f"{place} {scene.name} {','.join(map(str, scene.splits[count]))}")
        (folder / SCAN_LIST).write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return lines


def _write_scan(scene: H3dsScene, views: Sequence[int], folder: Path) -> None:
    files = find_files(scene.folder)
    matrices = read_matrices(files.cameras)
    numbers = camera_numbers(files, matrices)
    for kind in ("image", "mask", "regions"):
        (folder / kind).mkdir(parents=True)
    for i, view in enumerate(views):
        image, mask = scene.image_file(view), scene.mask_file(view)
        shutil.copyfile(image, folder / "image" / f"{i:06}{image.suffix}")
        shutil.copyfile(mask, folder / "mask" / f"{i:03}{mask.suffix}")
    chosen = [numbers[files.images.index(scene.image_file(view))] for view in views]
    np.savez(folder / "cameras.npz", **_renumbered(matrices, chosen, files.cameras))
    for name in (MESH, LANDMARKS):
        shutil.copyfile(scene.folder / name, folder / name)
    for region in sorted((scene.folder / "regions").glob("*.txt")):
        shutil.copyfile(region, folder / "regions" / region.name)


def _renumbered(matrices: dict[str, np.ndarray], numbers: Sequence[int], file: Path) -> dict[str, np.ndarray]:
    """The matrices of some cameras, by keys that count them from 0; keys without a number stay."""
    renumbered = {}
    for i, number in enumerate(numbers):
        for kind in ("world_mat", "scale_mat"):
            if f"{kind}_{number}" not in matrices:
                raise DataError(f"{file}: key {kind}_{number} is missing; expected world_mat and scale_mat of every view")
        for key, matrix in matrices.items():
            name, _, end = key.rpartition("_")
            if re.fullmatch(r"\d+", end) is None:
                renumbered[key] = matrix
            elif int(end) == number:
                renumbered[f"{name}_{i}"] = matrix
    return renumbered
