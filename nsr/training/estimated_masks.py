"""Scenes without masks: silhouettes are estimated once, kept as pictures beside the run, and read from there ever after."""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from nsr.datasets.detect import is_built_in, load_scene
from nsr.datasets.idr import has_masks
from nsr.datasets.images import list_images, read_many, read_mask
from nsr.geometry.normalisation import OBJECT_MASK_RADIUS
from nsr.training.settings import PhotometricConfig
from nsr.training.silhouettes import estimate_silhouettes
from nsr.types import Scene, Sphere
from nsr.utils.errors import DataError, UsageError

CUT = 1.1  # radii of a sphere that cameras alone told, beyond which the object must not reach
FOLDER = "estimated_masks"  # of a run; users may look at it, but the run is bound to it


def masked_scene(
    data: str | Path,
    config: PhotometricConfig,
    *,
    run: Path | None = None,
    train_cameras: bool = False,
    sphere: Sphere | None = None,
    device: torch.device | str = "cpu",
    say: Callable[[str], None] = print,
) -> tuple[Scene, float]:
    """A scene with masks, estimated where it has none, and the seconds that took (0: none were estimated).

    data, train_cameras, sphere: see load_scene. run: where an earlier run may have left its estimate, which is used again. All
    photographs of the folder take part, since their silhouettes together make the hull; without scale_mat or sphere they also
    say, better than the cameras alone, where the object is. Raises what load_scene and estimate_silhouettes raise, and
    UsageError where there are masks in the folder by now, which the earlier run did not have.
    """
    if run is not None:
        refuse_later_masks(run, data)
    masks = read_masks(run) if run is not None else None
    options = {"train_cameras": train_cameras, "sphere": sphere}
    scene = load_scene(data, masks=masks, **options)
    if scene.masked:
        return scene, 0.0
    began = time.monotonic()
    masked = with_silhouettes(scene, data, config, device=device, **options)
    seconds = time.monotonic() - began
    say(f"{scene.name}: no masks; silhouettes of {len(scene)} views estimated in {seconds:.1f} s")
    return masked, seconds


def with_silhouettes(
    scene: Scene, data: str | Path, config: PhotometricConfig, *, device: torch.device | str = "cpu", **options: Any
) -> Scene:
    """A scene with masks that are estimated. Where they say that the object goes on outside the sphere, which cameras alone
    have told, they are estimated again in the sphere that they tell; a scene that has masks of its own keeps its sphere.

    data, options: what load_scene was given for the scene.
    """
    if scene.masked:
        return replace(scene, masks=estimate_silhouettes(scene.to(device), config).cpu())
    masked = _estimated(scene, data, config, device, options)
    return _estimated(masked, data, config, device, options) if _reaches_out(masked, scene) else masked


def _estimated(scene: Scene, data: str | Path, config: PhotometricConfig, device: torch.device | str, options: dict) -> Scene:
    masks = estimate_silhouettes(scene.to(device), config).cpu()
    return load_scene(data, masks=masks, **options)


def _reaches_out(masked: Scene, scene: Scene) -> bool:
    """Whether the object, by its silhouettes, goes on outside the sphere in which they were looked for: it was cut there.

    Never where that sphere was given, as then both scenes have one frame.
    """
    then_from_now = np.linalg.inv(scene.world_from_scene) @ masked.world_from_scene
    reach = np.linalg.norm(then_from_now[:3, 3]) + OBJECT_MASK_RADIUS * np.linalg.norm(then_from_now[:3, 0])
    return bool(reach > CUT)


def refuse_later_masks(run: Path, data: str | Path) -> None:
    """UsageError where a run has estimated masks and its data have masks of their own by now, which it does not know of."""
    if (run / FOLDER).is_dir() and not is_built_in(data) and Path(data).is_dir() and has_masks(Path(data)):
        raise UsageError(
            f"{run}: holds a run with estimated masks, and {data} has masks of its own by now; begin again with these "
            "(nsr reconstruct --overwrite, nsr train without --is_continue), or elsewhere"
        )


def read_masks(run: Path) -> Tensor | None:
    """[V, H, W] uint8, the masks that were estimated for a run; None where there are none."""
    files = list_images(run / FOLDER) if (run / FOLDER).is_dir() else []
    if not files:
        return None
    masks = read_many(read_mask, files)
    if other := [path.name for path, mask in zip(files, masks, strict=True) if mask.shape != masks[0].shape]:
        raise DataError(f"{run / FOLDER}: {other[0]} differs in size from {files[0].name}; start the run again")
    return torch.from_numpy(np.stack(masks))


def write_masks(scene: Scene, folder: Path) -> None:
    """The masks of all views as folder/<view name>.png, all or none; what the folder held before is replaced."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}-"))
    try:
        for name, mask in zip(scene.view_names, scene.masks.cpu().numpy(), strict=True):
            Image.fromarray(mask).save(partial / f"{name}.png")
        partial.chmod(0o755)
        if folder.exists():
            shutil.rmtree(folder)
        os.replace(partial, folder)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
