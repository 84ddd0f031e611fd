"""The training loop: draw rays, trace, shade, compare, step. Everything that a resumed run needs is in one checkpoint."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from nsr.datasets.sampling import PixelBatch, PixelSampler
from nsr.geometry.cameras import pixel_rays, ray_matrices
from nsr.geometry.poses import TrainableCameras
from nsr.geometry.voxels import Voxels
from nsr.models.exposure import AffineExposure
from nsr.models.idr import IDRModel, TrainingOutput
from nsr.models.losses import FADING, color_loss, fading_weights, idr_losses
from nsr.training.checkpoint import Checkpoint, load_checkpoint
from nsr.training.guards import BadStepGuard, HalfStep, TerminationSignal, is_out_of_memory
from nsr.training.optimisers import Optimisers
from nsr.training.photometric import PhotometricTerm
from nsr.training.prior_files import Prior
from nsr.training.prior_start import Anchor, start_from_prior, with_anchor
from nsr.training.schedule import Clock, learning_rate_factor, mask_alpha, shape_rate_factor, show_detail, stage
from nsr.training.settings import Config
from nsr.training.start import start_from_hull, trusted
from nsr.training.step_graph import Readback, StepGraph, StepNumbers
from nsr.training.step_times import StepTimes
from nsr.training.trainer_state import restore_state, write_state
from nsr.types import Cameras, Rays, Scene
from nsr.utils.errors import RetriableError

MIN_RAYS = 64  # below this, running out of memory is not a matter of the batch size
OF_LOSSES = 1 + len(FADING)  # numbers that change from step to step in the losses; behind them come the learning rates
TIMED_EVERY = 50  # steps: how often the host waits for a GPU to be done, to read how long the parts of the step took


class StepPlan(NamedTuple):
    """What the host says about a step.

    colors_only: whether only the colours learn; level: of the pyramid of photographs, beside full size; numbers: the mask's
    sharpness, the fading weights and the learning rates, as float64 [OF_LOSSES + R] on the device or as numbers.
    """

    colors_only: bool
    level: int
    numbers: Sequence[float] | Tensor


class StepResult(NamedTuple):
    """What a step leaves on the device: values [L] under their names, and by how many rays it learned."""

    names: tuple[str, ...]
    values: Tensor
    rays: int


class Trainer:
    """One run over one scene. `scene` holds the training views only, on the device to train on."""

    def __init__(
        self,
        config: Config,
        scene: Scene,
        *,
        seed: int = 0,
        train_cameras: bool = False,
        meta: dict | None = None,
        prior: Prior | None = None,
    ):
        scene, left_out = trusted(scene, config)
        self.config, self.scene, self.seed = config, scene, seed
        self.meta = meta or {}  # what the run folder's readers need beside the state: data folder, views, world frame
        self.device = scene.images.device
        self.ray_matrices = ray_matrices(scene.cameras)  # of fixed cameras
        self.padded = self.device.type != "cpu"  # shapes that depend on values would make the host wait for the GPU
        self.model = IDRModel.build(config.model, seed).to(self.device)
        self.poses = TrainableCameras(scene.cameras).to(self.device) if train_cameras else None
        self.generator = torch.Generator(self.device).manual_seed(seed)
        self.sampler = PixelSampler(
            scene,
            seed=seed,
            inside_share=config.sampling.inside_fraction,
            outline_share=config.sampling.outline_fraction,
            uniform_share=config.sampling.uniform_fraction,
            band_px=math.ceil(config.sampling.band_fraction * scene.cameras.width),
            device=self.device,
            left_out=left_out,
        )
        self.photometric = PhotometricTerm(scene, config.photometric) if config.loss.photometric_weight > 0 else None
        self.rays = config.sampling.rays  # per step; halved when memory runs out
        self.exposure = AffineExposure(len(scene)).to(self.device) if config.exposure.type == "affine" else None
        exposure = (self.exposure, config.exposure.learning_rate) if self.exposure is not None else None
        self.optimisers = Optimisers(self.model, self.poses, config.train, exposure)
        self.clock = Clock(config.train, steps_per_epoch=len(scene))
        self.guard = BadStepGuard(config.train.max_bad_steps)
        recordable = self.poses is None and config.sampling.mode == "scene" and self.model.implicit_network.fused() is not None
        recorded = config.train.cuda_graph and recordable and self.device.type == "cuda"
        self.graph = StepGraph(self.device, [self.generator, self.sampler.generator], recorded)
        self.numbers = StepNumbers(self.device)
        self.readback = Readback()
        self.times = StepTimes(self.device)
        self.losses: dict[str, float] = {}  # the last that have come from the device
        self.rays_seen = 0
        self.started = False
        self.free_space: Voxels | None = None  # where the start saw that nothing is
        self.prior = prior  # of a run that has not begun
        self.anchor: Anchor | None = None  # where the prior holds the surface

    # ------------------------------------------------------------------------------------------------ one step

    def step(self, folder: Path | None = None) -> dict[str, float]:
        """One optimisation step; returns the losses by name: from a GPU, on which it may still be under way, mostly those of
        the step before. A step whose loss or gradient is not finite changes nothing.

        Raises RetriableError when memory runs out: at the smallest batch after saving in `folder`, and without saving
        between the steps of two optimisers, which nobody can take back.
        """
        timed = (self.clock.step + 1) % TIMED_EVERY == 0
        with self.graph.stream():
            result = self._within_memory(folder)
            come = self.readback(result.names, result.values, wait=timed)
        if timed:
            self.times.read()
        self.clock.step += 1
        self.rays_seen += result.rays
        self._take_note(come)
        return self.losses

    def _take_note(self, come: list[dict[str, float]]) -> None:
        """Of the losses of steps that have come from the device. Raises TrainingError after too many bad steps in a row."""
        for losses in come:
            self.guard.note(losses)
            self.losses = {name: value for name, value in losses.items() if name != "gradient"}

    def _within_memory(self, folder: Path | None) -> StepResult:
        """A step; when memory runs out, the same again with half the rays."""
        while True:
            plan = self._plan()
            # All that decides about shapes, or is a number in what the device is told to do.
            key = plan.colors_only, plan.level, self.rays, self.model.shown_detail()
            try:
                return self.graph.run(key, lambda plan=plan: self._work(plan))
            except HalfStep as error:
                kept = f"the last checkpoint in {folder} is whole" if folder else "nothing was saved"
                where = f"in the optimisers at step {self.clock.step}"
                raise RetriableError(f"training out of memory {where}; {kept}; free some memory") from error
            except (MemoryError, RuntimeError) as error:
                if not is_out_of_memory(error):
                    raise
                self.optimisers.zero_grad()
                if self.graph.release():
                    continue
                if self.rays // 2 < MIN_RAYS:
                    self._save_and_stop(folder, f"out of memory with {self.rays} rays per step")
                self.rays //= 2

    def _plan(self) -> StepPlan:
        """What the schedule says of the next step. Shows the levels of the encoders that it is to see."""
        config, of_run = self.config.train, self.clock.progress
        show_detail(self.model, config, of_run)
        colors_only, progress = stage(config, of_run)
        alpha = mask_alpha(self.config.loss, config, self.clock.epoch, progress)
        rates = self.optimisers.rates(
            learning_rate_factor(config, self.clock.epoch, progress),
            of_shape=shape_rate_factor(config, self.clock.step),
            of_cameras=config.lr_final_cam**progress,
        )
        numbers = [alpha, *fading_weights(self.config.loss, progress).values(), *rates]
        level = self.photometric.level(self.clock.step) if self.photometric is not None and not colors_only else 0
        return StepPlan(colors_only, level, self.numbers.put(numbers) if self.padded else numbers)

    def _work(self, plan: StepPlan) -> StepResult:
        """All that the device does in a step. It can be recorded: from one step to the next of the same kind (the key above),
        nothing in here depends on the host but by the tensor plan.numbers and the states of the generators."""
        self.times.begin()
        result = self._gradients(plan)
        try:
            self.optimisers.set_rates(plan.numbers[OF_LOSSES:])
            self.optimisers.step(skip=result.values.isfinite().all().logical_not().float())
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            raise HalfStep from error
        self.times.end("optimisers")
        return result

    def _gradients(self, plan: StepPlan) -> StepResult:
        """Gradients of all parameters by fresh rays."""
        losses, rays = self._color_losses() if plan.colors_only else self._losses(plan)
        self.times.end("losses")
        self.optimisers.zero_grad()
        losses["loss"].backward()
        self.times.end("backward")
        # A gradient that is not finite anywhere is not finite in the layers behind the tables, which are quick to look at.
        values = torch.stack([*(loss.detach() for loss in losses.values()), self.optimisers.gradient_norm()])
        return StepResult((*losses, "gradient"), values, rays)

    def _losses(self, plan: StepPlan) -> tuple[dict[str, Tensor], int]:
        """The losses of shape and colours on fresh rays, and how many these are."""
        config = self.config
        draw = self.sampler.draw_from_image if config.sampling.mode == "image" else self.sampler.draw
        batch = draw(self.rays)
        self.times.end("draw")
        output = self._forward(batch)
        self.times.end("forward")
        photometric = None
        if self.photometric is not None:
            if self.poses is not None:
                with torch.no_grad():
                    self.photometric.follow(self.cameras())
            photometric = self.photometric(self.model, batch, output, plan.level)
        if self.exposure is not None:
            view = batch.view.index_select(0, output.ray)
            output = output._replace(rgb=self.exposure(output.rgb, view))
        numbers = plan.numbers[:OF_LOSSES]
        alpha, *weights = numbers.float() if isinstance(numbers, Tensor) else numbers
        fading = dict(zip(FADING, weights, strict=True))
        losses = idr_losses(output, batch.rgb, batch.mask, config.loss, alpha=alpha, fading=fading, photometric=photometric)
        return with_anchor(self, self._with_exposure(losses)), len(batch)

    def _color_losses(self) -> tuple[dict[str, Tensor], int]:
        """The losses of the colours alone on many more rays, in proportion to those of other steps, and how many."""
        config = self.config
        batch = self.sampler.draw_inside(max(config.sampling.color_rays * self.rays // config.sampling.rays, 1))
        with torch.no_grad():
            rays = self._rays(batch.view, batch.pixels)
        self.times.end("draw")
        rgb, hit, counts = self.model.surface_colors(rays, self.padded)
        self.times.end("forward")
        if self.exposure is not None:
            rgb = self.exposure(rgb, batch.view.index_select(0, hit))
        error = color_loss(rgb, hit, batch.rgb, batch.mask, config.loss, counts)
        return self._with_exposure({"loss": config.loss.rgb_weight * error, "rgb": error}), len(batch)

    def _with_exposure(self, losses: dict[str, Tensor]) -> dict[str, Tensor]:
        """With what the exposures' distance from the identity costs, where there are any."""
        if self.exposure is None:
            return losses
        penalty = self.exposure.penalty()
        return {**losses, "loss": losses["loss"] + self.config.exposure.weight * penalty, "exposure": penalty}

    def _forward(self, batch: PixelBatch) -> TrainingOutput:
        sampling = self.config.sampling
        volume = torch.rand(sampling.volume_points, 3, generator=self.generator, device=self.device)
        offsets = torch.randn(min(sampling.neighbours, len(batch)), 3, generator=self.generator, device=self.device)
        return self.model(
            self._rays(batch.view, batch.pixels),
            batch.mask > 0.5,
            (2.0 * volume - 1.0) * self.model.bounding_radius,
            offsets * sampling.neighbour_sigma,
            self.free_space,
            self.padded,
        )

    def _rays(self, view: Tensor, pixels: Tensor) -> Rays:
        if self.poses is None:
            return pixel_rays(self.scene.cameras, view, pixels, self.ray_matrices)
        # Only the rows of the views drawn enter the graph, so the embedding's gradient stays sparse.
        drawn, position = view.unique(return_inverse=True)
        cameras = replace(self.scene.cameras[drawn], camera_to_world=self.poses(drawn))
        return pixel_rays(cameras, position, pixels)

    # ------------------------------------------------------------------------------------------------ the run

    def fit(
        self,
        folder: Path | None = None,
        *,
        on_step: Callable[[Trainer, dict[str, float]], None] | None = None,
        signal: TerminationSignal | None = None,
    ) -> None:
        """Start, unless that has been done, and train to the end of the schedule, with checkpoints in `folder`.

        on_step is called after every step with the losses. A GPU is at the next step meanwhile, so its time counts as training
        time but for what it does in untimed().
        Raises RetriableError, after saving where step says so, when a signal asks to stop or memory runs out;
        TrainingError when the losses stay non-finite.
        """
        self.start()
        if self.clock.finished and signal is not None and signal.requested:  # during a start that has used up the budget
            self._save_and_stop(folder, f"stopped by {signal.name}")
        self.clock.start()
        saved = time.monotonic()
        while not self.clock.finished:
            losses = self.step(folder)
            if on_step is not None:
                on_step(self, losses)
            if signal is not None and signal.requested:
                self._save_and_stop(folder, f"stopped by {signal.name}")
            if folder is not None and time.monotonic() - saved > self.config.train.checkpoint_seconds:
                self.save(folder)
                saved = time.monotonic()
        self._wait()
        self._take_note(self.readback.come())
        self.clock.pause()
        show_detail(self.model, self.config.train, self.clock.progress)
        if folder is not None:
            self.save(folder)

    def start(self) -> None:
        """Bring a new model to the surface that training begins with; counted as training time. Once only.

        Raises DataError when the masks have no visual hull.
        """
        if self.started:
            return
        self.clock.start()
        if self.prior is not None:
            start_from_prior(self, self.prior)
        elif self.config.start.type != "sphere":
            show_detail(self.model, self.config.train, 0.0)
            with self.graph.stream():
                free_space = start_from_hull(self.model, self.scene, self.config, self.generator)
            # What wrong cameras saw must not bind the corrected ones.
            if self.poses is None and self.config.loss.free_weight > 0:
                self.free_space = free_space
        self._wait()
        self.clock.begin()
        self.clock.pause()
        self.started = True

    @contextmanager
    def untimed(self) -> Iterator[None]:
        """What runs in here, as a picture of the model, is not training time."""
        self._wait()
        self.clock.pause()
        yield
        self._wait()
        self.clock.start()

    def _wait(self) -> None:
        """For a GPU to be done with what it was given: its time is counted where it was asked for."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def _save_and_stop(self, folder: Path | None, why: str) -> None:
        self._wait()
        self.clock.pause()
        if folder is not None:
            self.save(folder)
        where = f"the state is saved in {folder}" if folder else "nothing was saved"
        raise RetriableError(f"training {why} at step {self.clock.step}; {where}")

    def cameras(self) -> Cameras:
        """The training cameras as they are now, in the scene frame."""
        return self.poses.cameras() if self.poses is not None else self.scene.cameras

    # ------------------------------------------------------------------------------------------------ state

    def save(self, folder: Path, keep: bool = True) -> Path:
        """Write checkpoints/latest.safetensors, atomically; keep: what it replaces stays, as previous.safetensors."""
        self._take_note(self.readback.come())
        return write_state(self, folder, keep)

    def resume(self, source: Path | Checkpoint) -> None:
        """Continue from a checkpoint of the same configuration; the next step is the one that would have followed."""
        restore_state(self, load_checkpoint(source) if isinstance(source, Path) else source)
