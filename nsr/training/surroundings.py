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
from nsr.types import Rays, Scene

WIDTH = 200  # pixels, roughly, of the images that are compared
RAYS = 48_000  # swept, roughly, in all views
RESOLUTION = 32  # of the ball; the depths tried lie STEP of its voxels apart, which is about a pixel of parallax
BEYOND = 80  # depths tried behind the ball
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
        self.exit = torch.full(self.swept.shape, torch.inf, device=self.axis.device)  # where the rays leave the ball
        for view in range(len(self.swept)):
            _, far, hits = ray_sphere(self._rays(view)[1], 1.0)
            grid = self.swept[view].nonzero().T
            self.exit[view][tuple(grid)] = far
            self.swept[view][tuple(grid)] = hits

    def seeds(self) -> tuple[Bool[Tensor, "V h w"], Bool[Tensor, "V h w"]]:
        """The rays that see something inside the ball, and those that see something behind it; most others are not known."""
        depths = self.depths()
        inside = self.consistent(depths) < self.exit
        # Few of the sources of a view, which look at the object from around it, share its background.
        behind = self.consistent(depths, least=1) >= self.exit
        return inside, behind

    def _candidates(self, rays: Rays) -> tuple[Float[Tensor, "N T"], Bool[Tensor, "N T"]]:
        near, far, _ = (bound[:, None] for bound in ray_sphere(rays, 1.0))
        step = STEP * self.hull.size
        tries = torch.arange(int(2.0 / step), device=near.device)
        inside = near + (tries + 0.5) * step
        # A step at the ball's middle, as a difference of inverse distances.
        inverse_step = step / (0.5 * (near + far)).square()
        inverse = 1.0 / far - (torch.arange(BEYOND, device=near.device) + 0.5) * inverse_step
        usable = torch.cat([inside < far, inverse > 1.0 / FARTHEST], dim=1)
        return torch.cat([inside, 1.0 / inverse.clamp_min(1.0 / FARTHEST)], dim=1), usable

    def _tolerance(self, view: int, distance: Tensor) -> Tensor:
        return super()._tolerance(view, distance) * (distance / self.cameras.centers[view].norm()).square().clamp_min(1.0)
