"""Making priors: averages of trained models, and DeepSDF over a folder of meshes."""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import torch

from nsr.geometry.mesh_extraction import extract_mesh
from nsr.geometry.meshes import largest_component, load_mesh, to_world
from nsr.models.idr import IDRModel
from nsr.priors.averaging import average_weights, mean_distance
from nsr.priors.deepsdf import AutoDecoder, DeepSdf, DeepSdfConfig
from nsr.priors.sdf_samples import align_rigidly, common_frame, sample_sdf
from nsr.training.guards import TerminationSignal
from nsr.training.prior_files import Prior, open_prior, resume_deepsdf, save_deepsdf, save_model_prior
from nsr.training.prior_start import sampled
from nsr.training.schedule import show_detail
from nsr.training.settings import Config
from nsr.training.start import teach
from nsr.utils.errors import DataError, RetriableError, TrainingError, UsageError
from nsr.utils.files import file_lock

Align = Literal["rigid", "none"]
Space = Literal["function", "weights"]
MESH_KINDS = (".ply", ".obj", ".stl", ".glb", ".off")
ALIGNED_AT = 96  # cells of the meshes that models are aligned by
TAUGHT_AT = 128  # vertices per axis of the mean SDF
SAVED_EVERY = 30.0  # seconds


def average_models(
    paths: Sequence[Path],
    out: Path,
    *,
    space: Space,
    align: Align,
    config: Config | None,
    seed: int,
    say: Callable[[str], None],
) -> None:
    """Write the average of several trained models (runs, checkpoints, prior files) as one prior.

    space: function = one network is taught the mean of the signed distances, which any models have; weights = the mean of the
    weights, of models that are built alike and hold no tables. align: move each rigidly onto the first, before (function only).
    config: of the model to teach (default: the first one's). Raises UsageError for what cannot be averaged.
    """
    priors = [open_prior(path) for path in paths]
    for prior in priors:
        if prior.trained is None:
            raise UsageError(f"{prior.source}: a family of surfaces; expected trained models to average")
    first = priors[0].trained
    made_from = {"average_of": [str(path) for path in paths], "space": space}
    if space == "weights":
        model = _mean_weights(priors)
        save_model_prior(out, model, first.config, priors[0].shape.world_from_prior.numpy(), made_from)
        return
    config = config or first.config
    radius = config.model.ray_tracer.radius
    mean = mean_distance([prior.shape for prior in priors], _places(priors, align, say))
    generator = torch.Generator().manual_seed(seed)
    model = IDRModel.build(config.model, seed)
    show_detail(model, config.train, 1.0)
    say(f"teaching the mean of {len(priors)} surfaces to one model")
    volume = sampled(mean, TAUGHT_AT, radius, torch.device("cpu"))
    if not (volume < 0).any():
        raise DataError("the mean of these surfaces has no inside; are they of one kind of object, in one frame? --align rigid")
    teach(model, volume, None, config.start, config.train, generator)
    save_model_prior(out, model, config, priors[0].shape.world_from_prior.numpy(), made_from)


def _mean_weights(priors: Sequence[Prior]) -> IDRModel:
    first = priors[0].trained
    for prior in priors:
        if prior.trained.config.model != first.config.model:
            raise UsageError(
                f"--space weights: {prior.source} and {priors[0].source} have different models; expected runs of one "
                "configuration; --space function averages any"
            )
    tables = [name for name, _ in first.model.named_parameters() if name.endswith("encoder.table")]
    if tables:
        raise UsageError(
            f"--space weights: the model holds a table ({tables[0]}), whose entries mean something else in every run; expected "
            "networks alone (encoder vanilla or fourier); --space function averages the surfaces"
        )
    model = IDRModel.build(first.config.model, 0)
    average_weights([prior.trained.model for prior in priors], model)
    return model


def _places(priors: Sequence[Prior], align: Align, say: Callable[[str], None]) -> list[np.ndarray]:
    """For each model the similarity from the first one's scene frame into its own; by their worlds, or by their surfaces."""
    worlds = [prior.shape.world_from_prior.numpy() for prior in priors]
    motions = [np.eye(4)] * len(priors)
    if align == "rigid":
        meshes = [_world_mesh(prior) for prior in priors]
        motions = [np.eye(4), *(align_rigidly(mesh, meshes[0]) for mesh in meshes[1:])]
        for prior, motion in zip(priors[1:], motions[1:], strict=True):
            angle = math.degrees(math.acos(np.clip((np.trace(motion[:3, :3]) - 1) / 2, -1, 1)))
            say(f"{prior.source}: turned by {angle:.1f} degrees to lie on {priors[0].source}")
    return [np.linalg.inv(world) @ np.linalg.inv(motion) @ worlds[0] for world, motion in zip(worlds, motions, strict=True)]


def _world_mesh(prior: Prior):
    shape = prior.shape
    code = shape.no_code()
    mesh = extract_mesh(lambda x: shape.sdf(x, code), resolution=ALIGNED_AT, extent=shape.radius, clip_radius=shape.radius)
    return to_world(largest_component(mesh), shape.world_from_prior.numpy())


def mesh_files(places: Sequence[Path]) -> list[Path]:
    """The meshes that are named, and those in the folders that are named, in order. Raises DataError where there are none."""
    found: list[Path] = []
    for place in places:
        if place.is_dir():
            found += sorted(file for file in place.iterdir() if file.suffix.lower() in MESH_KINDS)
        elif place.is_file():
            found.append(place)
        else:
            raise DataError(f"{place}: no such file or folder; expected meshes ({', '.join(MESH_KINDS)}) or folders of them")
    if not found:
        raise DataError(
            f"{', '.join(map(str, places)) or 'nothing named'}: no meshes in there; expected {', '.join(MESH_KINDS)}"
        )
    return found


def make_deepsdf(
    files: Sequence[Path],
    out: Path,
    config: DeepSdfConfig,
    *,
    samples: int,
    align: Align,
    seed: int,
    say: Callable[[str], None],
    on_step: Callable[[int, dict[str, float]], None] = lambda step, losses: None,
) -> dict[str, float]:
    """Train a DeepSDF over meshes and write it to `out`, every SAVED_EVERY seconds and at the end; returns the last losses.

    An interrupted training is continued by the same call. samples: points of each mesh; align: move each rigidly onto the
    first. Raises RetriableError when a signal asks to stop, after saving; DataError for a mesh that cannot be used.
    """
    about = {"meshes": _digest(files), "samples": samples, "align": align, "seed": seed}
    with file_lock(out.parent):
        meshes = [load_mesh(file) for file in files]
        if align == "rigid":
            for file, mesh in zip(files[1:], meshes[1:], strict=True):
                mesh.apply_transform(align_rigidly(mesh, meshes[0]))
                say(f"{file.name}: aligned")
        frame = common_frame(meshes)
        drawn = []
        for number, (file, mesh) in enumerate(zip(files, meshes, strict=True)):
            try:
                drawn.append(sample_sdf(mesh, frame, samples, np.random.default_rng([seed, number])))
            except DataError as error:
                raise DataError(f"{file}: {error}") from error
        generator = torch.Generator().manual_seed(seed)
        training = AutoDecoder(DeepSdf.build(config, seed), drawn, generator)
        if resume_deepsdf(out, training, about):
            say(f"{out}: going on at step {training.steps}")
        return _train(training, frame, out, about, on_step)


def _train(
    training: AutoDecoder, frame: np.ndarray, out: Path, about: dict, on_step: Callable[[int, dict[str, float]], None]
) -> dict[str, float]:
    losses: dict[str, float] = {}
    saved = time.monotonic()
    with TerminationSignal() as signal:
        while not training.finished:
            losses = training.step()
            if not all(map(math.isfinite, losses.values())):
                raise TrainingError(
                    f"DeepSDF: expected finite losses, got {losses} at step {training.steps}; lower learning_rate and code_rate"
                )
            on_step(training.steps, losses)
            if signal.requested or time.monotonic() - saved > SAVED_EVERY:
                save_deepsdf(out, training, frame, about)
                saved = time.monotonic()
            if signal.requested:
                raise RetriableError(
                    f"stopped by {signal.name} at step {training.steps}, which is saved in {out}: run it again"
                )
        save_deepsdf(out, training, frame, about)
    return losses


def _digest(files: Sequence[Path]) -> str:
    """Of the meshes' contents, in their order."""
    digest = hashlib.sha256()
    for file in files:
        digest.update(hashlib.sha256(file.read_bytes()).digest())
    return digest.hexdigest()[:16]
