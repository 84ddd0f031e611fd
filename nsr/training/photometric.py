"""Photometric consistency: the surface under a pixel must look alike in the other photographs that see it."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from nsr.datasets.pyramid import grey_pyramid, patch_side
from nsr.datasets.sampling import PixelBatch
from nsr.geometry.cameras import level_cameras
from nsr.geometry.source_views import source_views
from nsr.models.idr import IDRModel, TrainingOutput
from nsr.ops.patch_ncc import patch_images, patch_ncc
from nsr.training.settings import PhotometricConfig
from nsr.types import Cameras, Rays, Scene

COARSEST_WIDTH = 50  # pixels, roughly
HIDDEN = 0.3  # NCC by which a source must stay behind the best one to be taken for one that does not see the point
CLEARANCE = 0.02  # scene units before a surface point within which nothing hides it


class PhotometricTerm:
    """1 - NCC of patches warped between views by the traced surface's tangent planes, coarse to fine.

    Patches of a few pixels follow the surface in depth only as far as their content is wide: so the first steps look at small
    images, where cavities that the silhouettes do not show lie within reach, and later ones at larger images.
    """

    def __init__(self, scene: Scene, config: PhotometricConfig) -> None:
        self.config, self.cameras = config, scene.cameras
        size = scene.cameras.width, scene.cameras.height
        levels = config.levels or 1 + round(math.log2(size[0] / COARSEST_WIDTH))
        most = 1 + int(math.log2(max(min(size) / config.patch, 1.0)))  # the coarsest images hold a patch
        pyramid = grey_pyramid(scene, min(max(levels, 1), most))
        self.side = patch_side(pyramid[0], config.patches, config.contrast)
        self.levels = [patch_images(grey, level_cameras(scene.cameras, i)) for i, grey in enumerate(pyramid)]
        self.sources = source_views(scene.cameras, config.sources, config.min_angle)

    def follow(self, cameras: Cameras) -> None:
        """Compare photographs from where training has moved the cameras by now. The choice of source views stays."""
        self.cameras = cameras
        self.levels = [patch_images(level.images, level_cameras(cameras, i)) for i, level in enumerate(self.levels)]

    def level(self, step: int) -> int:
        """The coarse level of the pyramid that a step looks at; 0 is full size."""
        return max(len(self.levels) - 1 - step // self.config.level_steps, 0)

    def __call__(self, model: IDRModel, batch: PixelBatch, output: TrainingOutput, level: int) -> Tensor:
        """The mean over the compared rays' pairs with the sources that count. level: of the pyramid, beside full size."""
        config = self.config
        chosen = output.ray[: config.rays]
        points, normals = output.points[: config.rays], output.normal[: config.rays]
        view, sources = batch.view[chosen], self.sources[batch.view[chosen]]
        if output.padding is not None:  # rows that do not count have no source to be compared with
            sources = torch.where(output.padding.surface[: config.rays, None], sources, -1)
        if config.occlusion:
            sources = torch.where(self._hidden(model, points.detach(), sources), -1, sources)
        best = self._best(points, normals, batch.pixels[chosen], view, sources, 0)
        if level:
            coarse = self._best(points, normals, batch.pixels[chosen], view, sources, level)
            # Also lost is a ray whose fine patch has too little to compare with, if its coarse one has more.
            lost = ~(best.mean(dim=1, keepdim=True) > config.matched) & coarse.isfinite().any(dim=1, keepdim=True)
            best = torch.where(lost, coarse, best)
        counts = best.isfinite() & (best.detach() >= best.detach()[:, :1] - HIDDEN)
        return torch.where(counts, 1.0 - best, 0.0).sum() / counts.sum().clamp_min(1)

    def _best(self, points: Tensor, normals: Tensor, pixels: Tensor, view: Tensor, sources: Tensor, level: int) -> Tensor:
        """NCC [N, best] with the sources that look most alike; -inf where there are fewer."""
        at_level = (pixels + 0.5) * 0.5**level - 0.5
        patch = self.config.patch if level else self.side
        ncc, valid = patch_ncc(points, normals, at_level, view, sources, self.levels[level], patch, self.config.min_std)
        return torch.where(valid, ncc, -torch.inf).topk(min(self.config.best, ncc.shape[1]), dim=1).values

    @torch.no_grad()
    def _hidden(self, model: IDRModel, points: Tensor, sources: Tensor) -> Tensor:
        """Which of the source views [N, K] do not see the point [N, 3] on the surface."""
        origins = self.cameras.centers[sources.clamp_min(0)]
        lines = points[:, None] - origins
        distance = lines.norm(dim=-1)
        hits = model.trace(Rays(origins.flatten(0, 1), F.normalize(lines, dim=-1).flatten(0, 1)))
        return (hits.hit & (hits.distance < distance.flatten() - CLEARANCE)).view_as(sources)
