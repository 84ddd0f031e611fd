"""Run folders: where a run writes, and how a finished or interrupted one is opened again."""

from __future__ import annotations

import os
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from nsr.config import bind
from nsr.datasets.detect import is_built_in, load_scene
from nsr.geometry.poses import align_cameras, transform_cameras
from nsr.models.exposure import AffineExposure
from nsr.models.idr import IDRModel
from nsr.training.checkpoint import Checkpoint, load_checkpoint, unflatten
from nsr.training.estimated_masks import FOLDER as MASK_FOLDER
from nsr.training.estimated_masks import read_masks
from nsr.training.folders import PREVIOUS, checkpoint_path
from nsr.training.schedule import show_detail
from nsr.training.settings import Config
from nsr.types import Cameras, Scene, Sphere
from nsr.utils.errors import CheckpointError, DataError


@dataclass(frozen=True)
class Run:
    """A trained model and what is needed to use it. Cameras are the training views', in the scene frame, as trained.

    checkpoint: its checksum; step, rays, seconds: spent on training. aligned: training has refined the cameras, so that the
    scene frame may have drifted, and world_from_scene is the similarity that carries them onto the reference cameras.
    exposure: the training views' maps of colours, where these were learned.
    """

    model: IDRModel
    config: Config
    folder: Path
    checkpoint: str
    step: int
    rays: int
    seconds: float
    seed: int
    world_from_scene: np.ndarray
    data_dir: str
    cameras: Cameras
    train_views: list[int]
    holdout_views: list[int]
    aligned: bool = False
    noisy_start: bool = False  # the scene's cameras are those of IDR's noisy start, see load_idr
    identity: dict | None = None  # see scene_identity
    exposure: AffineExposure | None = None
    sphere: Sphere | None = None  # what was given instead of the scene's own, see load_idr

    def load_scene(self) -> Scene:
        """The scene the run was trained on, with all its views."""
        views = [*self.train_views, *self.holdout_views]
        size = (self.cameras.width, self.cameras.height)
        return load_run_scene(self.data_dir, views, size, self.identity, self.noisy_start, self.folder, self.sphere)


def load_run_scene(
    data: str,
    views: Sequence[int],
    size: Sequence[int],
    identity: dict | None,
    noisy_start: bool = False,
    run: Path | None = None,
    sphere: Sphere | None = None,
) -> Scene:
    """The whole scene of a run.

    views: those the run used, in the order of its identity; size: [width, height] of its images; identity: what
    scene_identity said when it began, None in checkpoints from before it was kept; noisy_start: whether it began with
    noisy cameras; run: its folder, which holds the masks where they were estimated; sphere: that it was given. Raises
    DataError for another scene.
    """
    masks = read_masks(run) if run is not None else None
    scene = load_scene(data, train_cameras=noisy_start, masks=masks, sphere=sphere)
    if not scene.masked:
        raise DataError(
            f"{data}: has no masks, and those estimated for the run are not in {run}/{MASK_FOLDER}; put that folder back, or "
            "start a new run"
        )
    now = (scene.cameras.width, scene.cameras.height)
    if max(views) >= len(scene) or now != tuple(size):
        raise DataError(
            f"{data}: not the data of this run, which used views up to {max(views)} of {size[0]}x{size[1]} pixels; found "
            f"{len(scene)} views of {now[0]}x{now[1]}. Put the original photographs back (train: or name their --data_dir)"
        )
    if identity is not None and (other := differences(scene_identity(scene, views), identity)):
        raise DataError(
            f"{data}: not the data of this run, which was trained on {identity['scene']}: found other {' and '.join(other)}. "
            "Put the original photographs and cameras back (train: or name their --data_dir), or start a new run"
        )
    return scene


def scene_identity(scene: Scene, views: Sequence[int]) -> dict:
    """What tells a scene from another of as many views: its name; and of the views used their names, cameras (as read), and
    checksums of their photographs and masks.

    The pixels of built-in scenes have no checksum: they may be rounded otherwise on another machine.
    """
    used = scene.select(list(views))
    identity = {
        "scene": scene.name,
        "view_names": list(used.view_names),
        "intrinsics": used.cameras.intrinsics.tolist(),
        "camera_to_world": used.cameras.camera_to_world.tolist(),
    }
    if os.path.isdir(scene.source):
        identity |= {name: _crc32(getattr(scene, name), views) for name in ("images", "masks")}
    return identity


def _crc32(pixels: torch.Tensor, views: Sequence[int]) -> int:
    crc = 0
    for view in views:
        crc = zlib.crc32(pixels[view].contiguous().cpu().numpy(), crc)
    return crc


def differences(found: dict, expected: dict) -> list[str]:
    """In which respects two scene identities differ, in words; cameras are compared up to rounding, pixels where both tell."""

    def close(name: str) -> bool:
        pair = [np.asarray(identity[name], dtype=np.float64) for identity in (found, expected)]
        return pair[0].shape == pair[1].shape and np.allclose(*pair, rtol=1e-5, atol=1e-5)

    def same_pixels(name: str) -> bool:
        return name not in found or name not in expected or found[name] == expected[name]

    same = {
        f"scene name ({found['scene']})": found["scene"] == expected["scene"],
        "image names": found["view_names"] == expected["view_names"],
        "cameras": close("intrinsics") and close("camera_to_world"),
        "photographs": same_pixels("images"),
        "masks": same_pixels("masks"),
    }
    return [what for what, agrees in same.items() if not agrees]


def split_views(count: int, views: list[int] | None, holdout: int) -> tuple[list[int], list[int]]:
    """Training views and held-out views of a scene of `count` views.

    views: those to use at all (default: every one); of them, `holdout` evenly spaced ones are kept from training.
    Raises ValueError when nothing would be left to train on.
    """
    used = list(range(count)) if views is None else views
    if not 0 <= holdout < len(used):
        raise ValueError(f"cannot hold out {holdout} of {len(used)} views: at least one must be left to train on")
    held = [used[(2 * i + 1) * len(used) // (2 * holdout)] for i in range(holdout)]
    return [view for view in used if view not in set(held)], held


def reference_cameras(scene: Scene) -> Cameras:
    """All cameras of a scene as they are known, in the world frame: what refined cameras are measured against."""
    return scene.reference if scene.reference is not None else transform_cameras(scene.cameras, scene.world_from_scene)


def run_meta(
    data: str,
    scene: Scene,
    train_views: list[int],
    holdout_views: list[int],
    overrides: Sequence[str] = (),
    train_cameras: bool = False,
    sphere: Sphere | None = None,
) -> dict:
    """What a checkpoint must remember of its beginning, beside the training state.

    data, sphere: what load_scene was given; overrides: those of the configuration, which tell it from its file when continued.
    """
    reference = reference_cameras(scene)[train_views].camera_to_world.tolist() if train_cameras else None
    return {
        "noisy_start": scene.reference is not None,
        "reference_poses": reference,
        "data_dir": data_place(data),
        "scene": scene.name,
        "train_views": train_views,
        "holdout_views": holdout_views,
        "world_from_scene": scene.world_from_scene.tolist(),
        "identity": scene_identity(scene, [*train_views, *holdout_views]),
        "overrides": list(overrides),
        "sphere": list(sphere) if sphere is not None else None,
    }


def data_place(data: str) -> str:
    """What to give load_scene in another working directory: the full path of a folder, the name of a built-in scene."""
    return data if is_built_in(data) or not Path(data).is_dir() else str(Path(data).resolve())


def load_run(path: Path | str, device: torch.device | str = "cpu") -> Run:
    """Open a run folder or a checkpoint file. Raises CheckpointError when it is missing, damaged or not one of ours."""
    path = Path(path)
    file = checkpoint_path(path)
    try:
        checkpoint = load_checkpoint(file)
    except CheckpointError as error:
        if path.is_file() or not checkpoint_path(path, PREVIOUS).is_file():
            raise
        # What was trained last may be what counts: a user decides whether less will do.
        raise CheckpointError(
            f"{error}; {checkpoint_path(path, PREVIOUS)}, the one before it, can be given instead, and training with "
            "--is_continue goes on from there"
        ) from error
    with reading(file):
        return _open(checkpoint, file, device)


@contextmanager
def reading(file: Path) -> Iterator[None]:
    """A whole checkpoint that does not hold what a run's has is a CheckpointError."""
    try:
        yield
    except (KeyError, TypeError) as error:
        raise CheckpointError(
            f"{file}: the checkpoint lacks {error}; expected one that `nsr train` wrote; train again or choose another file"
        ) from error


def _open(checkpoint: Checkpoint, file: Path, device: torch.device | str) -> Run:
    meta = checkpoint.meta
    config = bind(Config, meta["config"], where=str(file))
    model = IDRModel.build(config.model, meta["seed"])
    state = unflatten("run", checkpoint.tensors, meta["state"])
    model.load_state_dict(state["model"])
    exposure = None
    if state.get("exposure") is not None:  # checkpoints from before there were any lack the entry
        exposure = AffineExposure(len(meta["train_views"]))
        exposure.load_state_dict(state["exposure"])
    show_detail(model, config.train, state["progress"])
    width, height = state["cameras"]["size"]
    cameras = Cameras(state["cameras"]["intrinsics"], state["cameras"]["camera_to_world"], width, height)
    world_from_scene = np.asarray(meta["world_from_scene"])
    reference = meta.get("reference_poses")
    if reference is not None:
        world_from_scene = align_cameras(cameras, replace(cameras, camera_to_world=torch.tensor(reference)))
    return Run(
        model=model.to(device).eval(),
        config=config,
        folder=file.parent.parent if file.parent.name == "checkpoints" else file.parent,
        checkpoint=checkpoint.checksum,
        step=meta["step"],
        rays=state["rays_seen"],
        seconds=state["clock"]["seconds"],
        seed=meta["seed"],
        world_from_scene=world_from_scene,
        data_dir=meta["data_dir"],
        cameras=cameras.to(device),
        train_views=meta["train_views"],
        holdout_views=meta["holdout_views"],
        aligned=reference is not None,
        noisy_start=meta.get("noisy_start", False),
        identity=meta.get("identity"),
        exposure=exposure.to(device).requires_grad_(False) if exposure is not None else None,
        sphere=tuple(meta["sphere"]) if meta.get("sphere") else None,
    )
