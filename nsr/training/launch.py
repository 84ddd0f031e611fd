"""Starting and continuing runs: from a configuration, a scene and a folder to a trained model on disk."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import torch
from PIL import Image

from nsr.config import bind, to_tree
from nsr.datasets.detect import load_scene, parse_views
from nsr.training.checkpoint import load_checkpoint, load_legacy_idr, unflatten
from nsr.training.guards import TerminationSignal
from nsr.training.log import MetricsLog
from nsr.training.results import render_view
from nsr.training.run import checkpoint_path, run_meta, split_views
from nsr.training.settings import Config
from nsr.training.trainer import Trainer
from nsr.types import Scene
from nsr.utils.errors import CheckpointError, UsageError
from nsr.utils.files import atomic_write, file_lock
from nsr.utils.hocon import find_conf, load_tree, to_hocon

PREVIEW_WIDTH = 320


@dataclass(frozen=True)
class RunRequest:
    """What the command line asks of a run. data: scene folder or built-in name; views, holdout: see split_views."""

    data: str
    conf: str = "instant"
    overrides: tuple[str, ...] = ()
    views: str | None = None
    holdout: int = 0
    nepoch: int | None = None
    budget: float | None = None
    train_cameras: bool = False
    seed: int = 0
    device: str = "cpu"
    init_weights: Path | None = None


def read_config(request: RunRequest) -> Config:
    """The configuration file with the command line's overrides, bound and checked."""
    overrides = list(request.overrides)
    if request.nepoch is not None:
        overrides.append(f"train.nepoch={request.nepoch}")
    if request.budget is not None:
        overrides.append(f"train.budget={request.budget}")
    tree, source = load_tree(find_conf(request.conf), overrides)
    return bind(Config, tree, source)


def check_device(name: str) -> torch.device:
    """Raises UsageError when the device does not exist here."""
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise UsageError(
            f"--device {name}: not usable here ({str(error).splitlines()[0]}); `nsr doctor` lists devices"
        ) from error
    return device


def open_scene(request: RunRequest) -> tuple[Scene, list[int], list[int]]:
    """The whole scene, the training views and the held-out views."""
    scene = load_scene(request.data)
    views = parse_views(request.views, len(scene)) if request.views else None
    try:
        return scene, *split_views(len(scene), views, request.holdout)
    except ValueError as error:
        raise UsageError(f"--holdout {request.holdout}: {error}") from error


def new_trainer(request: RunRequest, scene: Scene, train_views: list[int], holdout_views: list[int]) -> Trainer:
    """A trainer at its first step."""
    config = read_config(request)
    trainer = Trainer(
        config,
        scene.select(train_views).to(check_device(request.device)),
        seed=request.seed,
        train_cameras=request.train_cameras,
        meta=run_meta(request.data, scene, train_views, holdout_views),
    )
    if request.init_weights is not None:
        load_weights(trainer, request.init_weights)
    return trainer


def load_weights(trainer: Trainer, file: Path) -> None:
    """Weights alone, from one of our checkpoints or from an IDR .pth file. Raises CheckpointError where they do not fit."""
    if file.suffix == ".pth":
        weights = load_legacy_idr(file)
    else:
        checkpoint = load_checkpoint(checkpoint_path(file))
        weights = unflatten("run", checkpoint.tensors, checkpoint.meta["state"])["model"]
    try:
        trainer.model.load_state_dict(weights)
    except RuntimeError as error:
        raise CheckpointError(
            f"{file}: the weights do not fit the model of this configuration: {error}; use the one they were trained with"
        ) from error
    trainer.started = True  # trained weights replace the initial surface


def continue_trainer(run: Path, checkpoint: str, request: RunRequest) -> Trainer:
    """The trainer of an earlier run, as it was at its checkpoint; of its configuration, nepoch and budget may change."""
    saved = load_checkpoint(checkpoint_path(run, checkpoint))
    meta = saved.meta
    config = bind(Config, meta["config"], str(run))
    train = replace(
        config.train,
        nepoch=config.train.nepoch if request.nepoch is None else request.nepoch,
        budget=config.train.budget if request.budget is None else request.budget,
    )
    scene = load_scene(meta["data_dir"]).select(meta["train_views"]).to(check_device(request.device))
    kept = {key: meta[key] for key in ("data_dir", "scene", "train_views", "holdout_views", "world_from_scene")}
    trainer = Trainer(replace(config, train=train), scene, seed=meta["seed"], train_cameras=meta["train_cameras"], meta=kept)
    trainer.resume(saved)
    return trainer


def train(trainer: Trainer, folder: Path, *, tensorboard: bool = False) -> None:
    """Run the trainer to its end in a folder of its own: configuration, metrics, previews, checkpoints.

    Raises what Trainer.fit raises, and UsageError when another process is writing the folder.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with file_lock(folder), TerminationSignal() as signal:
        with atomic_write(folder / "runconf.conf") as file:
            file.write(to_hocon(to_tree(trainer.config)))
        with MetricsLog(folder, resume_step=trainer.clock.step, tensorboard=tensorboard) as log:

            def on_step(trainer: Trainer, losses: dict[str, float]) -> None:
                log.step(
                    trainer.clock.step,
                    losses,
                    rays=trainer.rays_seen,
                    seconds=trainer.clock.seconds,
                    progress=trainer.clock.progress,
                )
                every = trainer.config.train.preview_steps
                if every and trainer.clock.step % every == 0:
                    write_preview(trainer, folder / "plots" / f"step_{trainer.clock.step:06d}.png")

            trainer.fit(folder, on_step=on_step, signal=signal)


def write_preview(trainer: Trainer, path: Path) -> None:
    """Photograph, rendering and normals of one training view side by side; views take turns."""
    cameras, scene = trainer.cameras(), trainer.scene
    view = trainer.clock.step // trainer.config.train.preview_steps % len(scene)
    rgb, normal, _ = render_view(trainer.model, cameras, view, scale=min(1.0, PREVIEW_WIDTH / cameras.width))
    height, width = rgb.shape[:2]
    photograph = Image.fromarray(scene.images[view].cpu().numpy()).resize((width, height))
    picture = Image.new("RGB", (3 * width, height))
    panels = (rgb, 0.5 + 0.5 * normal)
    for i, panel in enumerate([photograph, *(Image.fromarray((p.cpu().numpy() * 255).astype("uint8")) for p in panels)]):
        picture.paste(panel, (i * width, 0))
    path.parent.mkdir(exist_ok=True)
    with atomic_write(path, "wb") as file:
        picture.save(file, format="png")
