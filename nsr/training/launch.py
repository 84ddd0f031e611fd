"""Starting runs: from a configuration, a scene and a folder to a trained model on disk."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from nsr._ext import check_device_served
from nsr.config import bind, to_tree
from nsr.datasets.check import check_scene
from nsr.datasets.detect import parse_views
from nsr.datasets.h3ds import published_views
from nsr.datasets.idr import START_CAMERA_FILE
from nsr.geometry.poses import align_cameras, transform_cameras
from nsr.training.checkpoint import load_checkpoint, load_legacy_idr, unflatten
from nsr.training.estimated_masks import FOLDER as MASK_FOLDER
from nsr.training.estimated_masks import masked_scene, write_masks
from nsr.training.folders import checkpoint_path, has_checkpoint
from nsr.training.guards import TerminationSignal
from nsr.training.log import MetricsLog
from nsr.training.prior_files import open_prior
from nsr.training.prior_start import starts_from_weights
from nsr.training.results import render_view
from nsr.training.run import reading, run_meta, split_views
from nsr.training.settings import Config
from nsr.training.trainer import Trainer
from nsr.types import Scene, Sphere
from nsr.utils.errors import CheckpointError, ConfigError, DataError, RetriableError, UsageError
from nsr.utils.files import LOCK_NAME, atomic_write, file_lock
from nsr.utils.hocon import find_conf, load_tree, to_hocon

PREVIEW_WIDTH = 320
DEFAULT_CONF = "instant"
AUTO = "auto"  # a device: a GPU where torch finds one, else the CPU


@dataclass(frozen=True)
class RunRequest:
    """What the command line asks of a run.

    data: scene folder or built-in name; views, holdout: see split_views; nepoch, budget: one given without the other does away
    with the configuration's other end, but not with one among the overrides; sphere: the object's, in world units, instead of
    the scene's own. None is what nobody asked for: DEFAULT_CONF, all views, none held out, seed 0; or, where a run is
    continued, whatever it began with. device: as check_device takes it.
    """

    data: str
    conf: str | None = None
    overrides: tuple[str, ...] = ()
    views: str | None = None
    holdout: int | None = None
    nepoch: int | None = None
    budget: float | None = None
    train_cameras: bool = False
    seed: int | None = None
    device: str = "cpu"
    init_weights: Path | None = None
    prior: Path | None = None
    sphere: Sphere | None = None


def read_config(request: RunRequest) -> Config:
    """The configuration file with the command line's overrides, bound and checked."""
    tree, source = load_tree(find_conf(request.conf or DEFAULT_CONF), overrides_of(request))
    return bind(Config, tree, source)


def read_config_for_training(request: RunRequest) -> tuple[Config, torch.device]:
    """The configuration, and the device to train it on. Raises what read_config and check_device raise, and UsageError or
    ExtensionError where an encoder of it cannot be trained there."""
    config, device = read_config(request), check_device(request.device)
    config.model.check_device(device.type)
    return config, device


def overrides_of(request: RunRequest) -> list[str]:
    """The overrides asked for, with the run's end as further ones: before them which is none, behind them which is one."""
    ends = {"train.nepoch": request.nepoch, "train.budget": request.budget}
    if all(end is None for end in ends.values()):
        return list(request.overrides)
    unbounded = [f"{name}=0" for name, end in ends.items() if end is None]
    return [*unbounded, *request.overrides, *(f"{name}={end}" for name, end in ends.items() if end is not None)]


def check_device(name: str) -> torch.device:
    """The device of a name, such as cpu, cuda:1 or AUTO.

    Raises UsageError when it does not exist here, ExtensionError when the native library has no kernels for it: a GPU that AUTO
    finds is not passed over, since a run that takes the CPU instead would say so by its speed alone.
    """
    if name == AUTO:
        name = "cuda" if torch.cuda.is_available() else "cpu"
    device = _torch_device(name)
    check_device_served(device.type)
    return device


def _torch_device(name: str) -> torch.device:
    try:
        device = torch.device(name)
        torch.zeros(1, device=device).item()
    except (RuntimeError, AssertionError) as error:
        raise UsageError(
            f"--device {name}: not usable here ({str(error).splitlines()[0]}); `nsr doctor` lists devices"
        ) from error
    return device


def open_scene(
    request: RunRequest, say: Callable[[str], None], run: Path | None = None
) -> tuple[Scene, list[int], list[int], float]:
    """The whole scene, the training views, the held-out views, and the seconds spent on estimating masks where it has none.

    run: folder of an unfinished run of it, which may hold masks estimated before. Mistakes in the configuration and the device
    are found first: reading photographs takes a while.
    """
    config, device = read_config_for_training(request)
    scene, seconds = masked_scene(
        request.data,
        config.photometric,
        run=run,
        train_cameras=request.train_cameras,
        sphere=request.sphere,
        device=device,
        say=say,
    )
    views = views_of(request.views, scene, say) if request.views else configured_views(config.data.views, scene, say)
    return scene, *choose_views(request, len(scene), views), seconds


def views_of(text: str, scene: Scene, say: Callable[[str], None]) -> list[int]:
    """The views that --views TEXT means in a scene: for a number those that the data set publishes for so many, which are said;
    where it does not, and for a list, see parse_views."""
    number = text.strip()
    published = published_views(scene.source, int(number), len(scene)) if number.isdecimal() else None
    if published is None:
        return parse_views(text, len(scene))
    say(f"{scene.name}: views {', '.join(map(str, published))}: those published for {number}")
    return published


def configured_views(wanted: int, scene: Scene, say: Callable[[str], None]) -> list[int] | None:
    """The views that data.views means in a scene; None for all. Raises ConfigError where it has fewer."""
    count = len(scene)
    if wanted > count:
        where = scene.source or scene.name
        raise ConfigError(f"data.views is {wanted}, but {where} has {count} views; choose with --views, or data.views=0")
    return views_of(str(wanted), scene, say) if wanted else None


def choose_views(request: RunRequest, count: int, views: list[int] | None = None) -> tuple[list[int], list[int]]:
    """Training and held-out views of a scene of `count`, of which `views` are used (None: all)."""
    try:
        return split_views(count, views, request.holdout or 0)
    except ValueError as error:
        raise UsageError(f"--holdout {request.holdout}: {error}") from error


def refuse_errors(scene: Scene, say: Callable[[str], None]) -> None:
    """Raises DataError with every error that the check of a scene finds; warnings are said.

    Noisy cameras would not pass, and training is there to mend them: the reference cameras are checked in their place.
    """
    if scene.reference is not None:
        scene_from_world = np.linalg.inv(align_cameras(scene.cameras, scene.reference))
        scene = replace(scene, cameras=transform_cameras(scene.reference, scene_from_world))
    findings = check_scene(scene)
    for finding in findings:
        if finding.level == "warning":
            say(f"warning: {finding.message} ({finding.advice})")
    errors = [f"{finding.message} ({finding.advice})" for finding in findings if finding.level == "error"]
    if errors:
        raise DataError(f"{scene.source or scene.name}: " + "; ".join(errors) + "; --no-check trains nevertheless")


def new_trainer(request: RunRequest, scene: Scene, train_views: list[int], holdout_views: list[int]) -> Trainer:
    """A trainer at its first step."""
    config, device = read_config_for_training(request)
    prior = open_prior(request.prior, device) if request.prior is not None else None
    meta = run_meta(request.data, scene, train_views, holdout_views, request.overrides, request.train_cameras, request.sphere)
    if prior is not None:
        starts_from_weights(prior, config)  # a mistake in it is to be found before anything is trained
        meta["prior"] = {"source": prior.source, "checksum": prior.checksum}
    trainer = Trainer(
        config,
        scene.select(train_views).to(device),
        seed=request.seed or 0,
        train_cameras=request.train_cameras,
        meta=meta,
        prior=prior,
    )
    if request.init_weights is not None:
        if prior is not None:
            raise UsageError("--init_weights and --prior exclude each other: both say what training begins with")
        load_weights(trainer, request.init_weights)
    return trainer


def load_weights(trainer: Trainer, file: Path) -> None:
    """Weights alone, from one of our checkpoints or from an IDR .pth file. Raises CheckpointError where they do not fit."""
    if file.suffix == ".pth":
        weights = load_legacy_idr(file)
    else:
        checkpoint = load_checkpoint(checkpoint_path(file) if file.is_dir() else file)
        with reading(file):
            weights = unflatten("run", checkpoint.tensors, checkpoint.meta["state"])["model"]
    try:
        trainer.model.load_state_dict(weights)
    except RuntimeError as error:
        raise CheckpointError(
            f"{file}: the weights do not fit the model of this configuration: {error}; use the one they were trained with"
        ) from error
    trainer.started = True  # trained weights replace the initial surface


def train(
    trainer: Trainer,
    folder: Path,
    *,
    tensorboard: bool = False,
    old: Iterable[str] = (),
    estimated: Scene | None = None,
    how_to_continue: str,
    say: Callable[[str], None],
    after_step: Callable[[Trainer, dict[str, float]], None] | None = None,
) -> None:
    """Run the trainer to its end in a folder of its own: configuration, metrics, previews, checkpoints.

    The folder is held by the caller (run_folder). The first checkpoint is written before the first step: nothing is left behind
    by a run that cannot begin. Raises what Trainer.fit raises.
    old: what to remove of earlier results in the folder before anything is written; estimated: the whole scene, where its masks
    were estimated for this run and are to be kept in MASK_FOLDER; how_to_continue: the advice to a user whose
    run was interrupted; say: where a warning goes, and which cameras are refined; after_step: see Trainer.fit.
    """
    if trainer.poses is not None:
        noisy = trainer.scene.reference is not None
        start = f"those of {START_CAMERA_FILE}; the scene's own are" if noisy else "the scene's own, which stay"
        say(f"cameras: refined from {start} the reference")
    with TerminationSignal() as signal:
        trainer.start()  # may find that the masks contradict the cameras: nothing is written yet
        for name in old:
            path = folder / name
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
        if estimated is not None:
            write_masks(estimated, folder / MASK_FOLDER)
        elif not has_checkpoint(folder):  # of a run that did not come to its first checkpoint
            shutil.rmtree(folder / MASK_FOLDER, ignore_errors=True)
        trainer.save(folder, keep=False)  # nothing new: where a checkpoint is replaced, it is the one that was continued
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
                    times=trainer.times,
                )
                every = trainer.config.train.preview_steps
                if every and trainer.clock.step % every == 0:
                    with trainer.untimed():
                        picture = write_preview(trainer, folder / "plots" / f"step_{trainer.clock.step:06d}.png")
                        log.image(trainer.clock.step, "preview", picture)
                if after_step is not None:
                    after_step(trainer, losses)

            try:
                trainer.fit(folder, on_step=on_step, signal=signal)
            except RetriableError as error:
                raise RetriableError(f"{error}: {how_to_continue}") from error
    if trainer.guard.total:
        say(f"warning: {trainer.guard.total} of {trainer.clock.step} steps had losses that are not finite and were left out")
    if trainer.rays < trainer.config.sampling.rays:
        say(f"warning: memory ran out; steps had {trainer.rays} rays in the end, not {trainer.config.sampling.rays}")
    if trainer.clock.step == 0:
        say(
            f"warning: not one step was trained in {trainer.clock.seconds:.2g} s, so the surface is only where training "
            "starts; give a longer --budget"
        )


@contextmanager
def run_folder(folder: Path, new: bool = False) -> Iterator[None]:
    """Hold a run folder for this process; where no file but the lock was made, an error leaves everything as it was found.

    new: the folder was made for this run, and goes with it (its parents stay). Raises UsageError when another process is
    writing the folder.
    """
    found = set(folder.iterdir()) if folder.is_dir() else set()
    missing = [place for place in (folder, *folder.parents) if not place.exists()]  # the innermost first
    with file_lock(folder):
        try:
            yield
        except BaseException:
            made = set(folder.iterdir()) - found
            if not any(path.is_file() and path.name != LOCK_NAME for top in made for path in (top, *top.rglob("*"))):
                with suppress(OSError):  # what another process has put there meanwhile stays, and on Windows the lock
                    for path in made:
                        shutil.rmtree(path) if path.is_dir() else path.unlink()
                    for place in [folder] if new else missing:
                        place.rmdir()
            raise


def write_preview(trainer: Trainer, path: Path) -> np.ndarray:
    """Photograph, rendering and normals of one training view side by side, [H, 3 W, 3] uint8; views take turns."""
    cameras, scene = trainer.cameras(), trainer.scene
    view = trainer.clock.step // trainer.config.train.preview_steps % len(scene)
    shown = render_view(trainer.model, cameras, view, min(1.0, PREVIEW_WIDTH / cameras.width), samples=1)
    height, width = shown.coverage.shape
    photograph = Image.fromarray(scene.images[view].cpu().numpy()).resize((width, height))
    panels = [(panel.cpu().numpy() * 255).astype(np.uint8) for panel in (shown.rgb, 0.5 + 0.5 * shown.normal)]
    picture = np.concatenate([np.asarray(photograph), *panels], axis=1)
    path.parent.mkdir(exist_ok=True)
    with atomic_write(path, "wb") as file:
        Image.fromarray(picture).save(file, format="png")
    return picture
