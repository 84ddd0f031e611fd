"""Stereo: what the photographs say about the visual hull before training, so that training starts without its filled cavities.

Gradients see a few pixels far, and a hull may stand off the surface by many times that; a plane sweep (Collins 1996) tries all
depths in the hull. Kept are depths on which several views agree, and carved is what lies in front of those of two views.
"""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from nsr.datasets.pyramid import grey_pyramid, level_cameras
from nsr.geometry.cameras import pixel_rays, project_all, ray_sphere
from nsr.geometry.source_views import source_views
from nsr.geometry.visual_hull import grid_axis
from nsr.geometry.voxels import Voxels
from nsr.ops.patch_ncc import patch_images, patch_ncc
from nsr.training.settings import PhotometricConfig
from nsr.types import Rays, Scene

WIDTH = 400  # pixels, roughly, of the images that are compared
RAYS = 60_000  # swept, roughly, in all views
STEP = 1.25  # voxels between the depths tried
MATCHED = 0.6  # mean NCC of the best sources from which a depth counts
UNIQUE = 0.05  # by how much it must exceed the NCC at all depths more than NEAR steps away
NEAR = 3
AGREEING = 2  # sources that must have found the same depth, to two steps
MARGIN = 1.5  # voxels in front of a depth that stay
WITNESSES = 2  # views that must see a voxel as free
CLEARANCE = 2  # carved voxels next to what was left that may have been carved wrongly
SUPPORT = 0.1  # depths found per surface voxel of a piece of the hull, under which it may be a remnant
ALONE = 0.5  # share of the rays through such a piece that see nothing else of the object, from which it stays


@torch.no_grad()
def carve_by_stereo(hull: Voxels, scene: Scene, config: PhotometricConfig) -> tuple[Voxels, Voxels]:
    """The visual hull (see nsr.geometry.visual_hull.carve) without what the photographs see through and what that cut off;
    and what they see through, but for CLEARANCE voxels around the former.

    Patches are compared as the photometric term compares them: config gives sources, min_angle, best, fine_patch and min_std.
    """
    sweep = PlaneSweep(scene, config, hull)
    depths = sweep.consistent(sweep.depths())
    carved = sweep.carve(depths)
    if not carved.occupied.any():
        return hull, replace(hull, occupied=torch.zeros_like(hull.occupied))
    surface = sweep.without_remnants(carved, depths)
    return surface, replace(hull, occupied=hull.occupied & ~carved.occupied & ~surface.grown(CLEARANCE).occupied)


class PlaneSweep:
    """Views reduced to a sparse grid of rays, each with the distance from the camera to the surface it sees: [V, h, w].

    width, rays: pixels across of the images compared, and how many rays there are in all views; both roughly.
    """

    def __init__(
        self, scene: Scene, config: PhotometricConfig, hull: Voxels, *, width: int = WIDTH, rays: int = RAYS
    ) -> None:
        self.config, self.hull = config, hull
        self.axis = grid_axis(hull.occupied.shape[0], hull.extent, hull.occupied.device)
        level = max(round(math.log2(scene.cameras.width / width)), 0)
        grey = grey_pyramid(scene, level + 1)[level]
        self.cameras = level_cameras(scene.cameras, level)
        self.images = patch_images(grey, self.cameras)
        self.sources = source_views(scene.cameras, config.sources, config.min_angle)
        self.stride = max(round(math.sqrt(grey.isfinite().sum().item() / rays)), 1)  # pixels between rays
        self.swept = grey[:, :: self.stride, :: self.stride].isfinite()  # [V, h, w] the rays that see the object

    def depths(self) -> Float[Tensor, "V h w"]:
        """The distance at which each ray's patch matches best, NaN where it matches nowhere in the hull."""
        found = torch.full(self.swept.shape, torch.nan, device=self.axis.device)
        for view in range(len(found)):
            found[view, self.swept[view]] = self._sweep(view)
        return found

    def _sweep(self, view: int) -> Tensor:
        """[N] of the N swept rays of one view."""
        config = self.config
        pixels, rays = self._rays(view)
        distance, usable = self._candidates(rays)  # [N, T]
        tries = torch.arange(distance.shape[1], device=distance.device)
        points = rays.origins[:, None] + distance[..., None] * rays.directions[:, None]
        ray, sample = usable.nonzero().T
        views = torch.full_like(ray, view)
        ncc, valid = patch_ncc(
            points[ray, sample],
            -rays.directions[ray],
            pixels[ray],
            views,
            self.sources[views],
            self.images,
            config.fine_patch,
            config.min_std,
        )
        best = torch.where(valid, ncc, -1.0).topk(min(config.best, ncc.shape[1]), dim=1).values.mean(dim=1)
        scores = torch.full_like(distance, -1.0)
        scores[ray, sample] = best
        score, chosen = scores.max(dim=1, keepdim=True)
        # Smooth shading and repeated patterns match at many depths, and in all views alike.
        rival = scores.masked_fill((tries - chosen).abs() <= NEAR, -1.0).amax(dim=1, keepdim=True)
        found = (score > MATCHED) & (score > rival + UNIQUE)
        return torch.where(found, distance.gather(1, chosen), torch.nan)[:, 0]

    def _candidates(self, rays: Rays) -> tuple[Float[Tensor, "N T"], Bool[Tensor, "N T"]]:
        """The distances to try along rays, nearest first, and which of them are worth it."""
        near, _, _ = ray_sphere(rays, self.hull.extent)
        step = STEP * self.hull.size
        tries = torch.arange(int(2.0 * self.hull.extent / step), device=near.device)
        distance = near[:, None] + (tries + 0.5) * step
        return distance, self.hull.contain(rays.origins[:, None] + distance[..., None] * rays.directions[:, None])

    def _tolerance(self, view: int, distance: Tensor) -> Tensor | float:
        """By how much depths may differ, at a distance from the camera of a view, that are taken for the same."""
        return 2.0 * STEP * self.hull.size

    def consistent(self, depths: Float[Tensor, "V h w"], least: int = AGREEING) -> Float[Tensor, "V h w"]:
        """The depths at whose points at least so many of the sources have found the same; the others are NaN."""
        kept = torch.full_like(depths, torch.nan)
        for view in range(len(depths)):
            points = self._points(view, depths)
            agreeing = torch.zeros(len(points), dtype=torch.int16, device=points.device)
            for source in self.sources[view][self.sources[view] >= 0].tolist():
                there, distance = self._look_up(source, points, depths)
                agreeing += (there - distance).abs() < self._tolerance(source, distance)  # false for NaN
            swept = self.swept[view]
            kept[view, swept] = torch.where(agreeing >= least, depths[view, swept], torch.nan)
        return kept

    def carve(self, depths: Float[Tensor, "V h w"]) -> Voxels:
        """The hull without the voxels that lie well in front of the depths of enough views."""
        cells = self.hull.occupied.nonzero()
        points = self.axis[cells]
        free = torch.zeros(len(points), dtype=torch.int16, device=points.device)
        for view in range(len(depths)):
            there, distance = self._look_up(view, points, depths)
            free += distance < there - MARGIN * self.hull.size
        carved = self.hull.occupied.clone()
        carved[cells[free >= WITNESSES].unbind(1)] = False
        return replace(self.hull, occupied=carved)

    def without_remnants(self, carved: Voxels, depths: Float[Tensor, "V h w"]) -> Voxels:
        """`carved` without the pieces on which hardly any depth was found, where the masks do not need them either.

        Such pieces float about the object, seen by few views, and look like it. The largest piece always stays.
        """
        from scipy import ndimage

        labels, count = ndimage.label(carved.occupied.cpu().numpy())
        shell = np.bincount(np.where(ndimage.binary_erosion(labels > 0), 0, labels).ravel(), minlength=count + 1)
        # A depth lies on a piece, give or take a voxel.
        points = torch.cat([self._points(view, depths) for view in range(len(depths))])
        around = torch.from_numpy(ndimage.grey_dilation(labels, size=3)).to(points.device).view(-1)
        found = around[self.hull.index(points[points.isfinite().all(dim=1)])].bincount(minlength=count + 1)
        keep = found.cpu().numpy() >= SUPPORT * shell
        keep[1 + np.bincount(labels.ravel())[1:].argmax()] = True
        keep[0] = False
        stays, piece = (torch.from_numpy(values).to(points.device) for values in (keep, labels))
        return replace(carved, occupied=stays[piece] | self._needed(piece, stays))

    def _needed(self, piece: Tensor, stays: Bool[Tensor, " P"]) -> Bool[Tensor, "R R R"]:
        """The pieces behind and before which the masks show nothing of those that stay, mostly.

        piece: [R, R, R] number of each voxel's piece, 0 for none.
        """
        cells = piece.nonzero()
        points, piece_of = self.axis[cells], piece[cells.unbind(1)]
        seen, alone = torch.zeros(2, len(stays), dtype=torch.long, device=points.device)
        for view in range(len(self.swept)):
            inside, ray = self._nearest(view, points)
            covered = torch.zeros(self.swept[view].numel(), dtype=torch.bool, device=points.device)
            covered[ray[inside & stays[piece_of]]] = True
            covered = torch.nn.functional.max_pool2d(covered.view(1, *self.swept[view].shape).float(), 3, 1, 1).view(-1) > 0
            seen += piece_of[inside].bincount(minlength=len(stays))
            alone += piece_of[inside & ~covered[ray]].bincount(minlength=len(stays))
        return ((alone >= ALONE * seen) & (seen > 0))[piece] & (piece > 0)

    def _rays(self, view: int) -> tuple[Tensor, Rays]:
        """Pixels [N, 2] and rays of the N swept rays of a view."""
        v, u = self.swept[view].nonzero().T
        pixels = torch.stack([u, v], dim=-1) * float(self.stride)
        return pixels, pixel_rays(self.cameras, torch.full_like(u, view), pixels)

    def _points(self, view: int, depths: Tensor) -> Tensor:
        """[N, 3] what the swept rays of a view see; NaN where that is not known."""
        return self._rays(view)[1].at(depths[view, self.swept[view]])

    def _look_up(self, view: int, points: Tensor, depths: Tensor) -> tuple[Tensor, Tensor]:
        """What a view has found in the direction of points [N, 3], NaN where nothing, and how far away the points are."""
        inside, ray = self._nearest(view, points)
        there = torch.where(inside, depths[view].view(-1)[ray], torch.nan)
        return there, (points - self.cameras[view].centers).square().sum(dim=-1).sqrt()  # norm() is many times slower

    def _nearest(self, view: int, points: Tensor) -> tuple[Tensor, Tensor]:
        """Whether points [N, 3] lie in a view, and the position of the ray nearest to each in the view's flattened grid."""
        pixels, ahead = (value[0] for value in project_all(self.cameras[view], points))
        column, row = (pixels / self.stride).round().unbind(-1)
        height, width = self.swept.shape[1:]
        inside = (ahead > 0) & (column >= 0) & (column < width) & (row >= 0) & (row < height)
        return inside, torch.where(inside, row * width + column, 0.0).long()
