"""Prior files: what `--prior` may name, and how priors are written. A run is one, without more ado."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from nsr.config import bind, to_tree
from nsr.models.idr import IDRModel
from nsr.priors.deepsdf import AutoDecoder, CodedShape, DeepSdf, DeepSdfConfig
from nsr.priors.shape import ModelShape, PriorShape
from nsr.training.checkpoint import Checkpoint, flatten, load_checkpoint, save_checkpoint, unflatten
from nsr.training.folders import checkpoint_path
from nsr.training.run import load_run, reading
from nsr.training.schedule import show_detail
from nsr.training.settings import Config
from nsr.utils.errors import CheckpointError

DEEPSDF, MODEL = "deepsdf", "model"  # kinds of prior files


@dataclass(frozen=True)
class TrainedModel:
    """A model to continue from. optimisers: their state, where the run had one that can go on."""

    config: Config
    model: IDRModel
    optimisers: dict | None = None


@dataclass(frozen=True)
class Prior:
    """What `--prior` has named. source: the path; checksum: of its file; trained: the model, where it is a single one."""

    source: str
    checksum: str
    shape: PriorShape
    trained: TrainedModel | None = None


def open_prior(path: Path, device: torch.device | str = "cpu") -> Prior:
    """A run folder, one of its checkpoints, or a file that `nsr prior` wrote. Raises CheckpointError for anything else."""
    file = checkpoint_path(path) if path.is_dir() else path
    checkpoint = load_checkpoint(file)
    kind = checkpoint.meta.get("prior", {}).get("kind")
    with reading(file):
        if kind == DEEPSDF:
            return _deepsdf(file, checkpoint, device)
        if kind == MODEL:
            return _model(file, checkpoint, device)
        if kind is not None:
            raise CheckpointError(f"{file}: a prior of kind {kind!r}, which this nsr does not know; use the nsr that wrote it")
        run = load_run(path, device)
        optimisers = unflatten("run", checkpoint.tensors, checkpoint.meta["state"])["optimisers"]
        trained = TrainedModel(run.config, run.model, optimisers)
        return Prior(str(path), run.checkpoint, _shape(run.model, run.world_from_scene), trained=trained)


def _shape(model: IDRModel, world_from_scene: np.ndarray) -> ModelShape:
    return ModelShape(model.implicit_network, model.bounding_radius, world_from_scene)


def _model(file: Path, checkpoint: Checkpoint, device: torch.device | str) -> Prior:
    meta = checkpoint.meta
    config = bind(Config, meta["config"], where=str(file))
    model = IDRModel.build(config.model, 0)
    model.load_state_dict(unflatten("prior", checkpoint.tensors, meta["state"])["model"])
    show_detail(model, config.train, 1.0)
    model.to(device).eval()
    shape = _shape(model, np.asarray(meta["prior"]["world_from_scene"]))
    return Prior(str(file), checkpoint.checksum, shape, trained=TrainedModel(config, model))


def _deepsdf(file: Path, checkpoint: Checkpoint, device: torch.device | str) -> Prior:
    about = checkpoint.meta["prior"]
    if not about["finished"]:
        raise CheckpointError(
            f"{file}: the prior is not trained to its end ({about['steps']} steps); `nsr prior deepsdf` with the same "
            "arguments goes on with it"
        )
    decoder = DeepSdf(bind(DeepSdfConfig, about["config"], str(file)))
    state = unflatten("prior", checkpoint.tensors, checkpoint.meta["state"])
    decoder.load_state_dict(state["decoder"])
    shape = CodedShape(decoder.eval(), state["codes"], np.asarray(about["world_from_prior"]))
    return Prior(str(file), checkpoint.checksum, shape.to(device))


def save_model_prior(path: Path, model: IDRModel, config: Config, world_from_scene: np.ndarray, made_from: dict) -> None:
    """One model as a prior file; made_from: what it is made of, for whoever wonders later."""
    tensors, rest = flatten("prior", {"model": model.state_dict()})
    about = {"kind": MODEL, "world_from_scene": np.asarray(world_from_scene).tolist(), **made_from}
    save_checkpoint(path, tensors, {"prior": about, "config": to_tree(config), "state": rest})


def save_deepsdf(path: Path, training: AutoDecoder, world_from_prior: np.ndarray, about: dict) -> None:
    """A DeepSDF prior, finished or on its way; about: what it was given, by which a continuation knows its own."""
    tensors, rest = flatten("prior", training.state_dict())
    known = {
        "kind": DEEPSDF,
        "config": to_tree(training.config),
        "world_from_prior": np.asarray(world_from_prior).tolist(),
        "steps": training.steps,
        "finished": training.finished,
    }
    save_checkpoint(path, tensors, {"prior": {**known, **about}, "state": rest})


def resume_deepsdf(path: Path, training: AutoDecoder, about: dict) -> bool:
    """Continue a training where the file at `path` left it, if there is one of the same surfaces and settings.

    Returns whether there was. Raises CheckpointError where the file is another prior.
    """
    if not path.exists():
        return False
    checkpoint = load_checkpoint(path)
    with reading(path):
        saved = checkpoint.meta.get("prior", {})
        same = saved.get("kind") == DEEPSDF and saved["config"] == to_tree(training.config)
        if not same or any(saved.get(key) != value for key, value in about.items()):
            raise CheckpointError(
                f"{path}: holds another prior than the one asked for (other meshes, seed or settings); name another file, or "
                "remove it"
            )
        training.load_state_dict(unflatten("prior", checkpoint.tensors, checkpoint.meta["state"]))
    return True
