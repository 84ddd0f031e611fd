"""What may be wrong with a scene folder: functions that make functions which spoil one."""

from __future__ import annotations

import io
import shutil
from pathlib import Path

import numpy as np
from PIL import Image

from nsr.geometry.cameras import decompose_projection


def drop(*names: str):
    def spoil(scene: Path) -> None:
        for name in names:
            path = scene / name
            shutil.rmtree(path) if path.is_dir() else path.unlink()

    return spoil


def cut(name: str, share: float = 0.6):
    def spoil(scene: Path) -> None:
        data = (scene / name).read_bytes()
        (scene / name).write_bytes(data[: int(share * len(data))])

    return spoil


def overwrite(name: str, data: bytes):
    return lambda scene: (scene / name).write_bytes(data)


def new_mask(name: str, size: tuple[int, int], value: int):
    return lambda scene: Image.new("L", size, value).save(scene / name)


def new_cameras(change):
    """change(matrices) alters the dict of camera matrices in place."""

    def spoil(scene: Path) -> None:
        with np.load(scene / "cameras.npz") as archive:
            matrices = dict(archive)
        change(matrices)
        np.savez(scene / "cameras.npz", **matrices)

    return spoil


def array_of_another_kind(scene: Path) -> None:
    data = io.BytesIO()
    np.save(data, np.eye(4))
    (scene / "cameras.npz").write_bytes(data.getvalue())


def with_nan(matrices: dict) -> None:
    matrices["world_mat_2"][1, 3] = np.nan


def turned_round(*views: int):
    """Cameras that stand where they stood, and look the other way."""

    def change(matrices: dict) -> None:
        for view in views:
            scale = matrices[f"scale_mat_{view}"]
            intrinsics, pose = decompose_projection((matrices[f"world_mat_{view}"] @ scale)[:3])
            turned = np.diag([-1.0, 1.0, -1.0, 1.0]) @ np.linalg.inv(pose)
            matrices[f"world_mat_{view}"][:3] = intrinsics @ turned[:3] @ np.linalg.inv(scale)

    return change
