"""Writes a scene as an IDR folder, plainly, with room to spoil it afterwards."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from nsr.geometry.cameras import compose_projection
from nsr.geometry.poses import transform_cameras
from nsr.types import Scene


def world_matrices(scene: Scene) -> dict[str, np.ndarray]:
    cameras = transform_cameras(scene.cameras, scene.world_from_scene)
    top = compose_projection(cameras.intrinsics.numpy(), cameras.camera_to_world.numpy())
    return {f"world_mat_{i}": np.vstack([matrix, [0, 0, 0, 1]]) for i, matrix in enumerate(top)}


def write_folder(
    scene: Scene,
    folder: Path,
    *,
    names: tuple[str, str, str] = ("image", "mask", "cameras.npz"),
    suffix: str = "png",
    scale_mat: bool = True,
    stem: str = "{:06d}",
    mask_stem: str = "{:03d}",
) -> Path:
    (folder / names[0]).mkdir(parents=True)
    (folder / names[1]).mkdir()
    for view in range(len(scene)):
        Image.fromarray(scene.images[view].numpy()).save(folder / names[0] / f"{stem.format(view)}.{suffix}")
        Image.fromarray(scene.masks[view].numpy()).save(folder / names[1] / f"{mask_stem.format(view)}.png")
    matrices = world_matrices(scene)
    if scale_mat:
        matrices |= {f"scale_mat_{i}": scene.world_from_scene for i in range(len(scene))}
    np.savez(folder / names[2], **matrices)
    return folder
