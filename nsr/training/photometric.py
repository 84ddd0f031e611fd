"""Photometric consistency: the surface under a pixel must look alike in the other photographs that see it."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from nsr.datasets.pyramid import grey_pyramid, level_cameras
from nsr.datasets.sampling import PixelBatch
from nsr.geometry.source_views import source_views
from nsr.models.idr import IDRModel, TrainingOutput
from nsr.ops.patch_ncc import patch_images, patch_ncc
from nsr.training.settings import PhotometricConfig
from nsr.types import Rays, Scene

COARSEST_WIDTH = 50  # pixels, roughly
CLEARANCE = 0.02  # scene units from a surface point within which nothing hides it


class PhotometricTerm:
    """1 - NCC of patches warped between views by the traced surface's tangent planes, coarse to fine.

    Patches of 5 to 7 pixels follow the surface in depth only as far as their content is wide: so the first steps look at small
    images, where cavities that the silhouettes do not show lie within reach, and later ones at larger images.
    """

    def __init__(self, scene: Scene, config: PhotometricConfig) -> None:
        self.config, self.cameras = config, scene.cameras
        levels = config.levels or max(1, 1 + round(math.log2(scene.cameras.width / COARSEST_WIDTH)))
        pyramid = grey_pyramid(scene, levels)
        self.levels = [patch_images(grey, level_cameras(scene.cameras, i)) for i, grey in enumerate(pyramid)]
        self.sources = source_views(scene.cameras, config.sources, config.min_angle)

    def level(self, step: int, progress: float) -> int:
        """The coarse level of the pyramid at a point of the run; 0 is full size."""
        coarse = len(self.levels) - 1
        # A short run needs its steps on each level, and a long one, whose surface also gains detail slowly, its share.
        passed = min(step / self.config.level_steps, progress / self.config.coarse_until * coarse)
        return max(coarse - int(passed), 0)

    def __call__(self, model: IDRModel, batch: PixelBatch, output: TrainingOutput, step: int, progress: float) -> Tensor:
        """The mean over the compared rays."""
        config, level = self.config, self.level(step, progress)
        chosen = output.surface.nonzero()[: config.rays, 0]
        points, normals = output.points[: config.rays], output.normal[: config.rays]
        view, sources = batch.view[chosen], self.sources[batch.view[chosen]]
        if config.occlusion:
            sources = torch.where(self._hidden(model, points.detach(), sources), -1, sources)
        best = self._best(points, normals, batch.pixels[chosen], view, sources, 0)
        if level:
            coarse = self._best(points, normals, batch.pixels[chosen], view, sources, level)
            lost = ~(best.mean(dim=1, keepdim=True) > config.matched)  # also where the fine patch has nothing to compare
            best = torch.where(lost, coarse, best)
        counts = best.isfinite()
        return torch.where(counts, 1.0 - best, 0.0).sum() / counts.sum().clamp_min(1)

    def _best(self, points: Tensor, normals: Tensor, pixels: Tensor, view: Tensor, sources: Tensor, level: int) -> Tensor:
        """NCC [N, best] with the sources that look most alike; -inf where there are fewer."""
        at_level = (pixels + 0.5) * 0.5**level - 0.5
        patch = self.config.patch if level else self.config.fine_patch
        ncc, valid = patch_ncc(points, normals, at_level, view, sources, self.levels[level], patch, self.config.min_std)
        return torch.where(valid, ncc, -torch.inf).topk(min(self.config.best, ncc.shape[1]), dim=1).values

    @torch.no_grad()
    def _hidden(self, model: IDRModel, points: Tensor, sources: Tensor) -> Tensor:
        """Which of the source views [N, K] do not see the point [N, 3] on the surface."""
        # From the surface outwards: there a few long steps end a ray, while one that arrives creeps up to the surface.
        lines = self.cameras.centers[sources.clamp_min(0)] - points[:, None]
        distance = lines.norm(dim=-1).flatten()
        directions = F.normalize(lines, dim=-1)
        hits = model.trace(Rays((points[:, None] + CLEARANCE * directions).flatten(0, 1), directions.flatten(0, 1)))
        return (hits.hit & (hits.distance + CLEARANCE < distance)).view_as(sources)
