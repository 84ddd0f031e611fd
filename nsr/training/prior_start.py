"""What a prior does to a run: it gives the surface that training begins with, and holds it where no photograph says more."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from nsr.geometry.mesh_extraction import extract_mesh
from nsr.geometry.visibility import Viewpoints, vertex_views
from nsr.geometry.visual_hull import grid_axis
from nsr.geometry.voxels import Voxels
from nsr.models.idr import IDRModel
from nsr.priors.fitting import FittedShape, fit_shape
from nsr.priors.placement import candidate_placements
from nsr.priors.silhouette_rays import draw_rays
from nsr.training.prior_files import Prior
from nsr.training.schedule import show_detail
from nsr.training.settings import Config
from nsr.training.start import exact_hull, interpolate, stereo_of, teach, visual_hull_of
from nsr.types import Scene
from nsr.utils.errors import UsageError

if TYPE_CHECKING:
    from nsr.training.trainer import Trainer

COARSE = 48  # vertices per axis on which the whole of a prior's surface is sampled; more only around it
SHELL = 3.0  # voxels on both sides of the surface in which the anchor holds
ANCHORS = 40_000
WITNESSES = 2  # views that must see a place for it to count as seen


class Anchor(NamedTuple):
    """Where the surface is held: points [K, 3], scene frame, with the prior's signed distance and its weight there."""

    points: Tensor
    sdf: Tensor
    weight: Tensor

    def loss(self, model: IDRModel, count: int, generator: torch.Generator) -> Tensor:
        """Mean weighted distance, at some of the points, between the model's SDF and the prior's."""
        chosen = torch.randint(len(self.points), (count,), generator=generator, device=self.points.device)
        sdf = model.implicit_network(self.points.index_select(0, chosen)).sdf
        off = F.smooth_l1_loss(sdf, self.sdf.index_select(0, chosen), reduction="none", beta=0.01)
        return (self.weight.index_select(0, chosen) * off).mean()


@dataclass(frozen=True)
class PriorStart:
    """free_space: where nothing is, as far as the silhouettes tell; fitted: the prior's surface in the scene."""

    free_space: Voxels
    anchor: Anchor
    fitted: FittedShape

    def figures(self) -> dict:
        """For metrics.json."""
        return {"prior_placed_by": self.fitted.began, "prior_agreement": self.fitted.agreement}


def start_from_prior(trainer: Trainer, prior: Prior) -> None:
    """Bring a new trainer to where its prior has it begin. Raises what start_from_surface raises."""
    config, model = trainer.config, trainer.model
    if starts_from_weights(prior, config):
        continue_from(model, trainer.optimisers, prior, config)
        return
    show_detail(model, config.train, 0.0)
    with trainer.graph.stream():
        begun = start_from_surface(model, trainer.scene, config, prior, trainer.generator)
    trainer.anchor = begun.anchor
    if trainer.poses is None and config.loss.free_weight > 0:
        trainer.free_space = begun.free_space
    trainer.meta |= begun.figures()


def with_anchor(trainer: Trainer, losses: dict[str, Tensor]) -> dict[str, Tensor]:
    """With what the surface's distance from the prior's costs, where there is one that holds it."""
    config = trainer.config.prior
    if trainer.anchor is None or config.anchor_weight == 0:
        return losses
    off = trainer.anchor.loss(trainer.model, config.anchor_points, trainer.generator)
    return {**losses, "loss": losses["loss"] + config.anchor_weight * off, "prior": off}


def start_from_surface(model: IDRModel, scene: Scene, config: Config, prior: Prior, generator: torch.Generator) -> PriorStart:
    """Teach the model's SDF the prior's surface, placed in the scene and cut by the visual hull.

    Raises DataError when the masks and cameras have no common volume.
    """
    hull = visual_hull_of(model, scene, config)
    fit = config.prior.fit
    stereo = stereo_of(hull, scene, config, generator)
    seen = stereo.points[torch.randperm(len(stereo.points), generator=generator, device=stereo.points.device)]
    drawn = draw_rays(scene.masks, scene.cameras, fit.rays, model.bounding_radius, generator)
    begin = candidate_placements(prior.shape.world_from_prior.cpu().numpy(), scene.world_from_scene)
    fitted = fit_shape(prior.shape, drawn, begin, fit, seen=seen)
    target = sampled(fitted.sdf, config.start.resolution, hull.extent, hull.occupied.device)
    target = torch.maximum(target, exact_hull(hull, scene))
    teach(model, target, None, config.start, config.train, generator)
    anchor = anchor_around(target, hull.extent, scene, config.prior.anchor_seen, generator)
    return PriorStart(Voxels(~hull.occupied, hull.extent), anchor, fitted)


def sampled(sdf, resolution: int, extent: float, device: torch.device) -> Float[Tensor, "R R R"]:
    """A signed distance at the vertices of a grid; away from the surface interpolated from a coarser one."""
    coarse_axis = grid_axis(min(COARSE, resolution), extent, device)
    coarse = _at(sdf, torch.cartesian_prod(coarse_axis, coarse_axis, coarse_axis)).view((len(coarse_axis),) * 3)
    if len(coarse_axis) == resolution:
        return coarse
    volume = F.interpolate(coarse[None, None], size=(resolution,) * 3, mode="trilinear", align_corners=True)[0, 0]
    near = (volume.abs() < 2.0 * 2.0 * extent / (len(coarse_axis) - 1)).nonzero()
    volume[near.unbind(1)] = _at(sdf, grid_axis(resolution, extent, device)[near])
    return volume


def _at(sdf, points: Tensor) -> Tensor:
    with torch.no_grad():
        return torch.cat([sdf(part) for part in points.split(2**16)])


def anchor_around(
    target: Float[Tensor, "R R R"], extent: float, scene: Scene, seen_weight: float, generator: torch.Generator
) -> Anchor:
    """Points around the surface of a volume, with its distances; where two views see the surface they have `seen_weight`."""
    from trimesh.sample import sample_surface

    device = target.device
    mesh = extract_mesh(
        lambda x: interpolate(target, x / extent), resolution=len(target) - 1, extent=extent, clip_radius=extent, device=device
    )
    seed = int(torch.randint(2**31 - 1, (1,), generator=generator, device=device))
    points, faces = sample_surface(mesh, ANCHORS, seed=seed)
    seen = vertex_views(mesh, Viewpoints(scene.cameras), enough=WITNESSES) >= WITNESSES
    weight = np.where(seen[np.asarray(mesh.faces)[faces]].all(axis=1), seen_weight, 1.0)
    offset = (2.0 * torch.rand(ANCHORS, 1, generator=generator, device=device) - 1.0) * SHELL * 2.0 * extent / len(target)
    normals = torch.as_tensor(np.array(mesh.face_normals[faces]), dtype=torch.float32, device=device)
    placed = torch.as_tensor(np.array(points), dtype=torch.float32, device=device) + offset * normals
    return Anchor(placed, interpolate(target, placed / extent), torch.as_tensor(weight, dtype=torch.float32, device=device))


def starts_from_weights(prior: Prior, config: Config) -> bool:
    """Whether a run goes on from the prior's weights, as BaseH3D-Net does, or is taught its surface.

    Left to itself, it goes on from weights where these are a network's: what a grid holds is bound to places, which are not
    those of the new scene. Raises UsageError where the configuration asks for weights that do not fit.
    """
    wanted = config.prior.start
    trained = prior.trained
    fits = trained is not None and trained.config.model == config.model
    if wanted == "weights" and not fits:
        why = "the prior is a family of surfaces" if trained is None else "its model is built otherwise"
        raise UsageError(
            f"prior.start=weights: {why} than the run's; expected a run of the same model ({prior.source}); use its "
            "configuration (--conf), or prior.start=surface"
        )
    if wanted != "auto":
        return wanted == "weights"
    tables = fits and any(name.endswith("encoder.table") for name, _ in trained.model.named_parameters())
    return fits and not tables


def continue_from(model: IDRModel, optimisers, prior: Prior, config: Config) -> None:
    """Take over the prior's weights; those of the rendering network, and the moments of the optimisers, as the configuration
    says."""
    trained = prior.trained
    weights = trained.model.state_dict()
    if config.prior.rendering == "reset":
        weights = {name: value for name, value in weights.items() if not name.startswith("rendering_network.")}
    model.load_state_dict(weights, strict=config.prior.rendering == "keep")
    if config.prior.optimiser == "keep":
        if trained.optimisers is None:
            raise UsageError(f"prior.optimiser=keep: {prior.source} has none that could go on; expected a run")
        optimisers.load_state_dict(trained.optimisers)
