"""What a trainer's checkpoint holds: everything that the next step depends on, and how it is put back."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from nsr.config import to_tree
from nsr.geometry.voxels import Voxels
from nsr.training.checkpoint import Checkpoint, flatten, save_checkpoint, unflatten
from nsr.training.folders import PREVIOUS, checkpoint_path
from nsr.training.prior_start import Anchor
from nsr.utils.errors import CheckpointError

if TYPE_CHECKING:
    from nsr.training.trainer import Trainer


def write_state(trainer: Trainer, folder: Path, keep: bool) -> Path:
    """Write checkpoints/latest.safetensors, see Trainer.save; the losses of all steps must have come from the device."""
    cameras = trainer.cameras()
    state = {
        "model": trainer.model.state_dict(),
        "optimisers": trainer.optimisers.state_dict(),
        "sampler": trainer.sampler.state_dict(),
        "generator": trainer.generator.get_state(),
        "clock": trainer.clock.state_dict(),
        "poses": trainer.poses.state_dict() if trainer.poses is not None else None,
        "exposure": trainer.exposure.state_dict() if trainer.exposure is not None else None,
        "cameras": {
            "intrinsics": cameras.intrinsics,
            "camera_to_world": cameras.camera_to_world.detach(),
            "size": [cameras.width, cameras.height],
        },
        "rays": trainer.rays,
        "rays_seen": trainer.rays_seen,
        "progress": trainer.clock.progress,
        "free_space": trainer.free_space.occupied if trainer.free_space is not None else None,
        "bad_steps": trainer.guard.state_dict(),
        "anchor": trainer.anchor._asdict() if trainer.anchor is not None else None,
    }
    tensors, rest = flatten("run", state)
    meta = {
        **trainer.meta,
        "config": to_tree(trainer.config),
        "seed": trainer.seed,
        "train_cameras": trainer.poses is not None,
        "step": trainer.clock.step,
        "state": rest,
    }
    save_checkpoint(checkpoint_path(folder), tensors, meta, keep=checkpoint_path(folder, PREVIOUS) if keep else None)
    return checkpoint_path(folder)


def restore_state(trainer: Trainer, checkpoint: Checkpoint) -> None:
    """Put a trainer of the same configuration where the one was that wrote a checkpoint.

    Raises CheckpointError where that was on another kind of device.
    """
    state = unflatten("run", checkpoint.tensors, checkpoint.meta["state"])
    if state["generator"].numel() != trainer.generator.get_state().numel():
        raise CheckpointError(
            f"the run was trained on another kind of device than {trainer.device}, whose random numbers this one cannot "
            "continue; continue it there, or start a new run with --init_weights"
        )
    trainer.model.load_state_dict(state["model"])
    if trainer.poses is not None and state["poses"] is not None:
        trainer.poses.load_state_dict(state["poses"])
    if trainer.exposure is not None:
        trainer.exposure.load_state_dict(state["exposure"])
    trainer.optimisers.load_state_dict(state["optimisers"])
    trainer.sampler.load_state_dict(state["sampler"])
    trainer.generator.set_state(state["generator"].cpu())
    trainer.clock.load_state_dict(state["clock"])
    trainer.guard.load_state_dict(state["bad_steps"])
    if state["free_space"] is not None:
        trainer.free_space = Voxels(state["free_space"].to(trainer.device), trainer.model.bounding_radius)
    if state.get("anchor") is not None:
        trainer.anchor = Anchor(**{name: value.to(trainer.device) for name, value in state["anchor"].items()})
    trainer.rays, trainer.rays_seen = state["rays"], state["rays_seen"]
    trainer.graph.release()
    trainer.started = True
