"""Where training starts: the SDF network is taught the visual hull of the masks, or what stereo leaves of it."""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from nsr.datasets.mask_disputes import mended
from nsr.geometry.silhouettes import silhouette_distance
from nsr.geometry.visual_hull import carve, grid_axis, hull_signed_distance
from nsr.geometry.voxels import Voxels
from nsr.models.idr import IDRModel
from nsr.models.losses import eikonal_loss
from nsr.training.optimisers import Optimisers
from nsr.training.settings import Config, StartConfig, TrainConfig
from nsr.training.step_graph import StepNumbers
from nsr.training.stereo import StereoStart, carve_by_stereo
from nsr.types import Scene
from nsr.utils.errors import DataError

CLEARANCE = 2  # voxels around what is left that masks and depths may have taken away wrongly
THIN = 2  # voxels from the surface within which a part that is nowhere deeper counts as thin
FULL = 15.0  # seconds of budget on a CPU from which the start is made as well as it can be
NO_STEREO = 4.0  # seconds of budget on a CPU under which there is no time for stereo
HULL_STEPS = 0.6  # share of the teaching steps that the hull alone has then
SEEN_NORMAL = 0.05  # weight of the normals that stereo has seen, beside distances in scene units


def trusted(scene: Scene, config: Config) -> tuple[Scene, Tensor | None]:
    """The training views with the masks that training believes, and the pixels [V, H, W] that it leaves out, if any.

    scene: in the frame of the model, with its cameras before training.
    """
    if config.start.max_misses == 0:
        return scene, None
    return mended(scene, config.start.max_misses, config.start.resolution, config.model.ray_tracer.radius)


class Effort(NamedTuple):
    """How much of the full start there is: shares of stereo's rays, 0 for none of it, and of the teaching steps."""

    stereo: float
    teaching: float


def effort(budget: float, device: torch.device) -> Effort:
    """What a start may take of a budget in seconds (0: none is set): a short one must leave time for training. On a GPU the
    full start takes a fraction of any."""
    if budget == 0 or budget >= FULL or device.type != "cpu":
        return Effort(1.0, 1.0)
    return Effort(0.0, HULL_STEPS) if budget < NO_STEREO else Effort(budget / FULL, budget / FULL)


def start_from_hull(model: IDRModel, scene: Scene, config: Config, generator: torch.Generator) -> Voxels:
    """Fit the model's SDF to the visual hull of the scene's masks, in the cube around its bounding sphere.

    Returns the space that is certainly empty: to be kept free.
    Raises DataError when the masks and cameras have no common volume: then one of them is wrong.
    """
    hull = visual_hull_of(model, scene, config)
    stereo = stereo_of(hull, scene, config, generator)
    target = torch.maximum(exact_hull(hull, scene), carved_distance(hull, stereo.surface))
    teach(model, target, stereo, config.start, config.train, generator)
    empty = ~hull.occupied | stereo.seen_through.occupied
    return Voxels(empty & ~stereo.surface.grown(CLEARANCE).occupied, hull.extent)


def visual_hull_of(model: IDRModel, scene: Scene, config: Config) -> Voxels:
    """The visual hull of a scene's masks in the model's ball. Raises DataError as start_from_hull does."""
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
            "or start from a sphere with start.type=sphere train.shape_rate=0.3 photometric.levels=0 photometric.matched=0.5"
        )
    return Voxels(occupancy, radius)


def stereo_of(hull: Voxels, scene: Scene, config: Config, generator: torch.Generator) -> StereoStart:
    """What stereo makes of the hull, as far as the configuration wants it and the budget has time for it."""
    share = effort(config.train.budget, scene.masks.device).stereo
    if config.start.type != "stereo" or share == 0:
        return StereoStart.blind(hull)
    return carve_by_stereo(hull, scene, config.photometric, generator, share=share)


def exact_hull(hull: Voxels, scene: Scene) -> Float[Tensor, "R R R"]:
    """Signed distance at the vertices of the hull's grid, negative inside; near its surface as exact as the masks are.

    Parts too thin for the grid stay as thick as the tolerant hull has them.
    """
    distance = hull_signed_distance(hull.occupied, hull.extent)
    thick = hull.shrunk(THIN).grown(THIN + 1).occupied
    cells = (thick & (distance.abs() < 3.0 * hull.size)).nonzero()
    points = grid_axis(hull.occupied.shape[0], hull.extent, distance.device)[cells]
    near = silhouette_distance(scene.masks, scene.cameras, points)
    distance[cells.unbind(1)] = torch.where(near.isfinite(), near, distance[cells.unbind(1)])
    return distance


def carved_distance(hull: Voxels, surface: Voxels) -> Float[Tensor, "R R R"]:
    """Signed distance at the grid's vertices from what of the hull is not surface; negative outside of that."""
    carved = Voxels(hull.occupied & ~surface.occupied, hull.extent)
    if not carved.occupied.any():
        return torch.full(hull.occupied.shape, -torch.inf, device=hull.occupied.device)
    # Open to the outside: else a film of hull would close the mouths of cavities.
    opened = carved.occupied | (carved.grown(2).occupied & ~hull.occupied)
    return -hull_signed_distance(opened, hull.extent)


def teach(
    model: IDRModel,
    target: Float[Tensor, "R R R"],
    stereo: StereoStart | None,
    config: StartConfig,
    train: TrainConfig,
    generator: torch.Generator,
) -> None:
    """Regress the SDF network on a volume over its bounding cube, half of whose points lie close to the surface; and on the
    places where stereo has seen the surface, which are known better than to a voxel. A short budget takes fewer steps."""
    device, extent = target.device, model.bounding_radius
    steps = max(round(config.steps * effort(train.budget, device).teaching), 1)
    voxel = 2.0 * extent / (config.resolution - 1)
    shell = (target.abs() < 3.0 * voxel).nonzero() * voxel - extent  # [K, 3]
    rates = replace(train, learning_rate=config.learning_rate, table_learning_rate=config.table_learning_rate)
    optimisers, numbers = Optimisers(model, None, rates), StepNumbers(device)
    half = config.points // 2
    for step in range(steps):
        faded = optimisers.rates(0.1 ** (step / steps))
        optimisers.set_rates(faded if device.type == "cpu" else numbers.put(faded))
        uniform = extent * (2.0 * torch.rand(half, 3, generator=generator, device=device) - 1.0)
        chosen = torch.randint(shell.shape[0], (config.points - half,), generator=generator, device=device)
        jitter = (2.0 * torch.rand(config.points - half, 3, generator=generator, device=device) - 1.0) * voxel
        points = torch.cat([uniform, (shell[chosen] + jitter).clamp(-extent, extent)])
        output = model.implicit_network(points)
        loss = (output.sdf - interpolate(target, points / extent)).abs().mean() + 0.01 * eikonal_loss(output.gradient)
        if stereo is not None and len(stereo.points):
            seen = torch.randint(len(stereo.points), (config.points // 4,), generator=generator, device=device)
            there = model.implicit_network(stereo.points[seen])
            turned = (there.gradient - stereo.normals[seen]).square().sum(dim=-1)
            loss = loss + there.sdf.abs().mean() + SEEN_NORMAL * (turned + 1e-12).sqrt().mean()
        optimisers.zero_grad()
        loss.backward()
        optimisers.step()


def interpolate(volume: Tensor, points: Tensor) -> Tensor:
    """Trilinear values [N] of a volume [X, Y, Z] over [-1, 1]^3 at points [N, 3]."""
    # grid_sample reads the last axis of the volume with the first coordinate, hence the reversal.
    grid = points.flip(-1)[None, None, None]
    return F.grid_sample(volume[None, None], grid, align_corners=True, padding_mode="border")[0, 0, 0, 0]
