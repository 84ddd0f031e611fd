"""Where training starts: the SDF network is taught the visual hull of the masks, or what stereo leaves of it."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from nsr.geometry.visual_hull import carve, grid_axis, hull_signed_distance
from nsr.geometry.voxels import Voxels
from nsr.models.idr import IDRModel
from nsr.models.losses import eikonal_loss
from nsr.training.optimisers import Optimisers
from nsr.training.settings import Config, StartConfig, TrainConfig
from nsr.training.stereo import carve_by_stereo
from nsr.types import Scene
from nsr.utils.errors import DataError


def start_from_hull(model: IDRModel, scene: Scene, config: Config, generator: torch.Generator) -> Voxels | None:
    """Fit the model's SDF to the visual hull of the scene's masks, in the cube around its bounding sphere.

    Returns what stereo has found free of the hull: to be kept free.
    Raises DataError when the masks and cameras have no common volume: then one of them is wrong.
    """
    start, radius = config.start, model.bounding_radius
    occupancy = carve(scene.masks, scene.cameras, start.resolution, radius)
    # Few views see the corners of the cube, so they may survive the carving; the object lies in the ball.
    axis = grid_axis(start.resolution, radius, occupancy.device)
    occupancy &= axis[:, None, None].square() + axis[:, None].square() + axis.square() < radius**2
    if not occupancy.any():
        raise DataError(
            f"visual hull of {scene.name}: the masks of {len(scene)} views have no volume in common within {radius:g} of "
            f"the origin; expected an object that every view sees; check masks and cameras with "
            f"`nsr data check {scene.source or 'DIR'}`, "
            "or start from a sphere with start.type=sphere train.shape_rate=1"
        )
    surface, free = Voxels(occupancy, radius), None
    if start.type == "stereo":
        surface, free = carve_by_stereo(surface, scene, config.photometric)
    _teach(model, hull_signed_distance(surface.occupied, radius), start, config.train, generator)
    return free


def _teach(
    model: IDRModel,
    target: Tensor,
    config: StartConfig,
    train: TrainConfig,
    generator: torch.Generator,
) -> None:
    """Regress the SDF network on a volume [R, R, R] over its bounding cube. Half of the points lie close to the surface."""
    device, extent = target.device, model.bounding_radius
    voxel = 2.0 * extent / (config.resolution - 1)
    shell = (target.abs() < 3.0 * voxel).nonzero() * voxel - extent  # [K, 3]
    rate = TrainConfig(nepoch=1, learning_rate=5e-3, table_learning_rate=config.learning_rate, adam_betas=train.adam_betas)
    optimisers = Optimisers(model, None, rate)
    half = config.points // 2
    for step in range(config.steps):
        optimisers.set_rate_factor(0.1 ** (step / config.steps))
        uniform = extent * (2.0 * torch.rand(half, 3, generator=generator, device=device) - 1.0)
        chosen = torch.randint(shell.shape[0], (config.points - half,), generator=generator, device=device)
        jitter = (2.0 * torch.rand(config.points - half, 3, generator=generator, device=device) - 1.0) * voxel
        points = torch.cat([uniform, (shell[chosen] + jitter).clamp(-extent, extent)])
        output = model.implicit_network(points)
        loss = (output.sdf - interpolate(target, points / extent)).abs().mean() + 0.01 * eikonal_loss(output.gradient)
        optimisers.zero_grad()
        loss.backward()
        optimisers.step()


def interpolate(volume: Tensor, points: Tensor) -> Tensor:
    """Trilinear values [N] of a volume [X, Y, Z] over [-1, 1]^3 at points [N, 3]."""
    # grid_sample reads the last axis of the volume with the first coordinate, hence the reversal.
    grid = points.flip(-1)[None, None, None]
    return F.grid_sample(volume[None, None], grid, align_corners=True, padding_mode="border")[0, 0, 0, 0]
