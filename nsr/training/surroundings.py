"""Where photographs without masks show the object and where what is behind it: a plane sweep in the unit ball and beyond."""

from __future__ import annotations

from dataclasses import replace

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from nsr.geometry.cameras import ray_sphere
from nsr.geometry.voxels import Voxels
from nsr.training.settings import PhotometricConfig
from nsr.training.stereo import STEP, PlaneSweep
from nsr.types import Scene

WIDTH = 200  # pixels, roughly, of the images that are compared
RAYS = 48_000  # swept, roughly, in all views
RESOLUTION = 32  # of the ball; the depths tried lie STEP of its voxels apart, which is about a pixel of parallax
BEYOND = 80  # depths tried behind the ball
MATCHED = 0.6  # score from which a depth counts
TOLERANCE = 2.0  # steps by which depths may differ that are taken for the same
FARTHEST = 100.0  # scene units


class SurroundingsSweep(PlaneSweep):
    """Rays through all pixels that look into the unit ball, swept from where they enter it to far behind it.

    Distances inside are equally spaced, those behind in their inverse, so that one step is one step in the images. Nothing
    but the object may stand before the ball.
    """

    def __init__(self, scene: Scene, config: PhotometricConfig) -> None:
        ball = torch.ones((RESOLUTION,) * 3, dtype=torch.bool, device=scene.images.device)
        everywhere = replace(scene, masks=torch.full_like(scene.masks, 255))
        super().__init__(everywhere, config, Voxels(ball, extent=1.0), width=WIDTH, rays=RAYS)
        _, far, hits = ray_sphere(self.rays, 1.0)
        self.exit = self.maps(far).nan_to_num(torch.inf)  # where the rays leave the ball
        self.swept[self.swept.clone()] = hits
        self._number_rays()

    def seeds(self) -> tuple[Bool[Tensor, "V h w"], Bool[Tensor, "V h w"]]:
        """The rays that see something inside the ball, and those that see something behind it; most others are not known."""
        depths = self.depths(least=MATCHED)
        inside = self.consistent(depths, least=2) < self.exit
        # Few of the sources of a view, which look at the object from around it, share its background.
        behind = self.consistent(depths, least=1) >= self.exit
        return inside, behind

    def _tried(self) -> Float[Tensor, "N T"]:
        near, far, _ = (bound[:, None] for bound in ray_sphere(self.rays, 1.0))
        step = STEP * self.hull.size
        inside = near + (torch.arange(int(2.0 / step), device=near.device) + 0.5) * step
        # A step at the ball's middle, as a difference of inverse distances.
        inverse_step = step / (0.5 * (near + far)).square()
        inverse = 1.0 / far - (torch.arange(BEYOND, device=near.device) + 0.5) * inverse_step
        behind = torch.where(inverse > 1.0 / FARTHEST, 1.0 / inverse.clamp_min(1.0 / FARTHEST), torch.inf)
        return torch.cat([torch.where(inside < far, inside, torch.inf), behind], dim=1)

    def _usable(self, which: slice, tried: Float[Tensor, "M T"]) -> Bool[Tensor, "M T"]:
        return tried.isfinite()

    def _tolerance(self, view: int, distance: Tensor) -> Tensor:
        return TOLERANCE * STEP * self.hull.size * (distance / self.cameras.centers[view].norm()).square().clamp_min(1.0)
