"""Scenes that are heads with their scans: what the data set's files say, as its evaluation takes it."""

from __future__ import annotations

from pathlib import Path

from nsr.datasets.h3ds import LANDMARKS, MESH, REGIONS, H3dsScene, is_h3ds_scene
from nsr.evaluation.h3ds import HeadReference
from nsr.utils.errors import DataError


def head_reference(folder: str | Path) -> HeadReference:
    """The scan, landmarks and regions of a scene folder in H3DS's layout. Raises DataError where it is none, or is damaged."""
    if not is_h3ds_scene(folder):
        raise DataError(
            f"{folder}: no head with its scan; expected the folder of a scene in H3DS's layout, with {MESH}, {LANDMARKS} and "
            "regions/ (docs/heads.md)"
        )
    scene = H3dsScene(Path(folder))
    regions = {name: scene.region(name) for name in REGIONS if (scene.folder / "regions" / f"{name}.txt").is_file()}
    return HeadReference(scene.load_mesh(), scene.landmarks(), regions, str(folder))


def head_reference_of(folder: str | Path) -> HeadReference | None:
    """The same, or None where a scene is no such head."""
    return head_reference(folder) if is_h3ds_scene(folder) else None
