"""Continuing runs: the trainer of an earlier run as it was at its checkpoint, and what a continuation may change."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path

import torch

from nsr.config import bind
from nsr.training.checkpoint import Checkpoint, DamagedCheckpointError, load_checkpoint, unflatten
from nsr.training.estimated_masks import refuse_later_masks
from nsr.training.folders import LATEST, PREVIOUS, checkpoint_path
from nsr.training.launch import AUTO, RunRequest, check_device, new_trainer, overrides_of, read_config, views_of
from nsr.training.run import data_place, differences, load_run_scene, reading
from nsr.training.settings import Config
from nsr.training.trainer import Trainer
from nsr.types import Scene
from nsr.utils.errors import CheckpointError, UsageError
from nsr.utils.hocon import override_tree

KEPT_FIGURES = ("silhouette_seconds", "prior_placed_by", "prior_agreement")  # what a start has found out
# What a continued run may do otherwise than the one it continues: when it ends, and what it writes on the way.
MAY_CHANGE = ("nepoch", "budget", "checkpoint_seconds", "preview_steps", "max_bad_steps", "cuda_graph")


def resume_trainer(
    run: Path,
    request: RunRequest,
    scene: Scene,
    train_views: list[int],
    holdout_views: list[int],
    say: Callable[[str], None] = print,
) -> Trainer:
    """The trainer of an unfinished run in a folder, when it is the run that `request` asks for; say: see last_whole_checkpoint.

    Raises UsageError when it is another one: other data, configuration, views, seed or choice to train cameras.
    """
    file, saved = last_whole_checkpoint(run, say)
    trainer = new_trainer(request, scene, train_views, holdout_views)
    with reading(file):
        meta, ours = saved.meta, trainer.meta
        identity = meta["identity"]
        same = {
            "data": meta["data_dir"] == ours["data_dir"]
            and meta["state"]["cameras"]["size"] == [scene.cameras.width, scene.cameras.height],
            "configuration": _same_but_end(trainer.config, bind(Config, meta["config"], str(run))),
            "views": all(meta[key] == ours[key] for key in ("train_views", "holdout_views")),
            "--seed": meta["seed"] == trainer.seed,
            "--train_cameras": meta["train_cameras"] == request.train_cameras,
            "--prior": meta.get("prior", {}).get("checksum") == ours.get("prior", {}).get("checksum"),
        }
        other = [what for what, agrees in same.items() if not agrees]
        other = other or differences(ours["identity"], identity)
        if other:
            raise UsageError(
                f"--out {run}: holds an unfinished run with other {', '.join(other)}; the command it began with continues it, "
                "--overwrite removes it, another --out keeps it"
            )
        trainer.resume(saved)
        trainer.meta |= {key: meta[key] for key in KEPT_FIGURES if key in meta}
    return trainer


def last_whole_checkpoint(run: Path, say: Callable[[str], None]) -> tuple[Path, Checkpoint]:
    """A run's latest checkpoint, with its file; where that is damaged or lost, the one before, and `say` is told.

    Raises CheckpointError when neither can be used, or the latest is of another program or version.
    """
    latest, previous = checkpoint_path(run), checkpoint_path(run, PREVIOUS)
    try:
        return latest, load_checkpoint(latest)
    except CheckpointError as error:
        lost = not latest.exists()
        if not previous.is_file() or not (lost or isinstance(error, DamagedCheckpointError)):
            raise
        try:
            saved = load_checkpoint(previous)
        except CheckpointError as neither:
            raise CheckpointError(f"{error}; nor can the one before it be used: {neither}") from error
        say(f"warning: {error}: continuing from {previous.name}, the one before it")
        return previous, saved


def continue_trainer(run: Path, checkpoint: str, request: RunRequest, say: Callable[[str], None] = print) -> Trainer:
    """The trainer of an earlier run, as it was at its checkpoint; the latest may be that of last_whole_checkpoint.

    It keeps its configuration, views and seed: what `request` says about them may repeat the run's values, and change those of
    MAY_CHANGE; None asks for nothing.

    `request.data` is where the photographs are now, "" for where they were. Raises UsageError for other changes,
    CheckpointError and DataError when the checkpoint or the photographs are not usable.
    """
    file = checkpoint_path(run, checkpoint)
    usable = [file, checkpoint_path(run, PREVIOUS)] if checkpoint == LATEST else [file]
    if not any(path.is_file() for path in usable):
        found = ", ".join(sorted(path.stem for path in file.parent.glob("*.safetensors"))) or "none"
        raise CheckpointError(
            f"{run}: no checkpoint {checkpoint!r}, found {found}; choose one with --checkpoint or --timestamp; "
            "a run that was stopped before its first checkpoint has to be started again"
        )
    file, saved = last_whole_checkpoint(run, say) if checkpoint == LATEST else (file, load_checkpoint(file))
    with reading(file):
        device = check_device(continued_device(request.device, saved))
        meta = saved.meta
        config = _continued_config(meta["config"], run, request)
        config.model.check_device(device.type)
        data = data_place(request.data) if request.data else meta["data_dir"]
        size, seed, train_cameras = meta["state"]["cameras"]["size"], meta["seed"], meta["train_cameras"]
        kept = {key: meta[key] for key in ("scene", "train_views", "holdout_views", "world_from_scene")}
        optional = ("identity", "overrides", "noisy_start", "reference_poses", "sphere", "prior", *KEPT_FIGURES)
        kept |= {key: meta[key] for key in optional if key in meta}
    _refuse_new_beginning(request, run, seed, config, tuple(kept.get("overrides", ())))
    if request.train_cameras and not train_cameras:
        raise UsageError(f"--train_cameras: the run in {run} has fixed cameras; start a new run to refine them")
    used = kept["train_views"] + kept["holdout_views"]
    sphere = tuple(kept["sphere"]) if kept.get("sphere") else None
    if request.sphere is not None and request.sphere != sphere:
        raise UsageError(f"--sphere {_numbers(request.sphere)}: the run in {run} has another; leave the option out")
    refuse_later_masks(run, data)
    scene = load_run_scene(data, used, size, kept.get("identity"), kept.get("noisy_start", False), run, sphere)
    _refuse_other_views(request, run, scene, kept["train_views"], kept["holdout_views"])
    views = scene.select(kept["train_views"]).to(device)
    trainer = Trainer(config, views, seed=seed, train_cameras=train_cameras, meta={"data_dir": data, **kept})
    with reading(file):
        trainer.resume(saved)
    return trainer


def continued_device(name: str, saved: Checkpoint) -> str:
    """The device that a name means for a run to continue: of AUTO the CPU where it was trained on one, whatever else there is.

    Only that kind continues its random numbers. (A run of a GPU where there is none is refused by Trainer.resume.)
    """
    generator = unflatten("run", saved.tensors, saved.meta["state"]["generator"])
    of_cpu = generator.numel() == torch.Generator().get_state().numel()
    return "cpu" if name == AUTO and of_cpu else name


def _numbers(values: Iterable[float]) -> str:
    return " ".join(f"{value:g}" for value in values)


def _continued_config(saved: dict, run: Path, request: RunRequest) -> Config:
    """The configuration of a run with the changes that a continuation may make."""
    before = bind(Config, saved, str(run))
    config = bind(Config, *override_tree([(str(run), saved)], overrides_of(request)))
    if not _same_but_end(config, before):
        names = ", ".join(f"train.{name}" for name in MAY_CHANGE)
        raise UsageError(
            f"{' '.join(request.overrides)}: the run in {run} continues with the configuration it began with; only {names} "
            "may change. Leave the rest out, or start a new run (--init_weights takes over its weights)"
        )
    return config


def _same_but_end(config: Config, other: Config) -> bool:
    """Whether two configurations are the same but for what a continuation may change."""
    allowed = {name: getattr(config.train, name) for name in MAY_CHANGE}
    return config == replace(other, train=replace(other.train, **allowed))


def _refuse_new_beginning(request: RunRequest, run: Path, seed: int, config: Config, overrides: tuple[str, ...]) -> None:
    """UsageError for a request that names another seed, configuration or initial weights than a run began with.

    config: the run's; overrides: what was put on top of its configuration file when it began.
    """
    advice = f"the run in {run} keeps what it began with; leave the option out, or start a new run without --is_continue"
    if request.seed is not None and request.seed != seed:
        raise UsageError(f"--seed {request.seed}: the run began with seed {seed}; {advice}")
    if request.init_weights is not None:
        raise UsageError(f"--init_weights {request.init_weights}: a run that is continued has its weights; {advice}")
    if request.prior is not None:
        raise UsageError(f"--prior {request.prior}: a run that is continued has its surface; {advice}")
    if request.conf is not None:
        asked = read_config(replace(request, overrides=(*overrides, *request.overrides)))
        if not _same_but_end(config, asked):
            raise UsageError(f"--conf {request.conf}: not the configuration that the run began with; {advice}")


def _refuse_other_views(request: RunRequest, run: Path, scene: Scene, train_views: list[int], holdout_views: list[int]) -> None:
    """UsageError for a request that names other views of a scene than those of a run."""
    advice = f"the run in {run} keeps its views; leave the option out, or start a new run without --is_continue"
    used = sorted([*train_views, *holdout_views])
    if request.views is not None and sorted(views_of(request.views, scene, lambda _: None)) != used:
        raise UsageError(f"--views {request.views}: the run began with views {','.join(map(str, used))}; {advice}")
    if request.holdout is not None and request.holdout != len(holdout_views):
        raise UsageError(f"--holdout {request.holdout}: the run holds out {len(holdout_views)} views; {advice}")
