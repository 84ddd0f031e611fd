"""Stereo: what the photographs say about the visual hull before training, so that training starts without its filled cavities.

Gradients see a few pixels far, and a hull may stand off the surface by many times that; a plane sweep (Collins 1996) tries all
depths in the hull. Kept are depths on which several views agree, and carved is what lies in front of those of two views.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from nsr.datasets.pyramid import grey_pyramid, patch_side
from nsr.geometry.cameras import level_cameras, pixel_rays, project_all, ray_sphere
from nsr.geometry.source_views import source_views
from nsr.geometry.visual_hull import grid_axis
from nsr.geometry.voxels import Voxels
from nsr.ops.patch_ncc import patch_images, patch_ncc
from nsr.training.patch_match import PatchMatch
from nsr.training.settings import PhotometricConfig
from nsr.types import Scene

WIDTH = 400  # pixels, roughly, of the images that are compared
RAYS = 60_000  # swept, roughly, in all views, with the smallest patches; larger ones overlap, and cost more
LEAST_SIDE = 5  # pixels: smaller patches are found at many depths
STEP = 1.25  # voxels between the depths tried
MATCHED = 0.7  # score, see PlaneSweep.score, from which a depth counts
UNIQUE = 0.05  # by how much it must exceed the scores at all depths more than NEAR steps away
DISTINCT = 0.08  # the same, where these scores are averaged with those of the rays beside
NEAR = 3
FEWER = 0.15  # what each source costs that a score does without
AGREEING = 1  # sources that must have found the same depth, to TOLERANCE voxels
TOLERANCE = 1.0
MARGIN = 1.5  # voxels in front of a depth that stay
WITNESSES = 2  # views that must see a voxel as free, where none is certain of it
SHARED = 0.2  # share of the rays beside that must have found their depths on the same plane for a depth to count
CERTAIN = 0.1, 0.1  # DISTINCT and SHARED, after the check for consistency, for a depth that is certain
SUPPORT = 0.1  # depths found per surface voxel of a piece of the hull, under which it may be a remnant
ALONE = 0.5  # share of the rays through such a piece that see nothing else of the object, from which it stays


@dataclass(frozen=True)
class StereoStart:
    """What stereo makes of a visual hull: what is left of it, what of it the views see through, and places on the surface.
    The remnants that seeing through cut off are in neither.

    points, normals: [P, 3], scene frame; the normals are of unit length and point outwards.
    """

    surface: Voxels
    seen_through: Voxels
    points: Float[Tensor, "P 3"]
    normals: Float[Tensor, "P 3"]

    @classmethod
    def blind(cls, hull: Voxels) -> StereoStart:
        """Where nothing was seen: the hull as it is."""
        nowhere = torch.zeros(0, 3, device=hull.occupied.device)
        return cls(hull, replace(hull, occupied=torch.zeros_like(hull.occupied)), nowhere, nowhere)


@torch.no_grad()
def carve_by_stereo(
    hull: Voxels, scene: Scene, config: PhotometricConfig, generator: torch.Generator, *, share: float = 1.0
) -> StereoStart:
    """The visual hull (see nsr.geometry.visual_hull.carve) without what the photographs see through and what that cut off.

    share: of RAYS, in 0..1; the time it takes goes with that.

    Patches are compared as the photometric term compares them: config gives sources, min_angle, best, patches, contrast and
    min_std.
    """
    sweep = PlaneSweep(scene, config, hull, rays=round(RAYS * share))
    tried, scores = sweep.scores()
    planes = PatchMatch(sweep, tried.gather(1, scores.argmax(dim=1, keepdim=True))[:, 0], generator)
    planes.refine()
    planes.settle()
    rival = sweep.rival(planes.distance, tried, planes.with_those_beside(scores))
    matched = sweep.matched(planes.distance, planes.score, rival, unique=DISTINCT)
    shared = planes.share(planes.plausible()) >= SHARED
    depths = sweep.consistent(sweep.maps(torch.where(shared, matched, torch.nan)))
    distinct, share = CERTAIN
    certain = (planes.score > rival + distinct) & (planes.share(depths[sweep.swept]) >= share)
    carved = sweep.carve(depths, certain)
    if not carved.occupied.any():
        return StereoStart.blind(hull)
    seen_through = replace(hull, occupied=hull.occupied & ~carved.occupied)
    surface = sweep.without_remnants(carved, depths)
    # Planes that matched as the sweep has tried them are known to a step only, and nothing is known of their tilt.
    found = depths[sweep.swept].isfinite() & (planes.normal != -sweep.rays.directions).any(dim=-1)
    points = sweep.rays.at(planes.distance)
    found &= surface.grown(1).contain(points)  # other views may have seen through what one has found
    return StereoStart(surface, seen_through, points[found], planes.normal[found])


class PlaneSweep:
    """Views reduced to a sparse grid of rays, each with the distance from the camera to the surface it sees: [V, h, w].

    width, rays: pixels across of the images compared, and how many rays there are in all views with patches of LEAST_SIDE
    pixels, fewer in proportion with larger ones; both roughly.
    """

    def __init__(self, scene: Scene, config: PhotometricConfig, hull: Voxels, *, width: int = WIDTH, rays: int = RAYS) -> None:
        self.config, self.hull = config, hull
        self.axis = grid_axis(hull.occupied.shape[0], hull.extent, hull.occupied.device)
        level = max(round(math.log2(scene.cameras.width / width)), 0)
        grey = grey_pyramid(scene, level + 1)[level]
        self.cameras = level_cameras(scene.cameras, level)
        self.images = patch_images(grey, self.cameras)
        self.side = max(patch_side(grey, config.patches, config.contrast), LEAST_SIDE)
        self.sources = source_views(scene.cameras, config.sources, config.min_angle)
        rays = rays * LEAST_SIDE / self.side
        self.stride = max(round(math.sqrt(grey.isfinite().sum().item() / rays)), 1)  # pixels between rays
        self.swept = grey[:, :: self.stride, :: self.stride].isfinite()  # [V, h, w] the rays that see the object
        self._number_rays()

    def _number_rays(self) -> None:
        """Lists the rays of `swept`, which may have been restricted since."""
        self.view, row, column = self.swept.nonzero().T  # of the N of them, [N]
        self.pixels = torch.stack([column, row], dim=-1) * float(self.stride)
        self.rays = pixel_rays(self.cameras, self.view, self.pixels)

    def score(
        self, distance: Float[Tensor, " M"], normals: Float[Tensor, "M 3"], which: Int[Tensor, " M"]
    ) -> Float[Tensor, " M"]:
        """How well planes at a distance along the rays `which` match: the mean NCC, in [-1, 1], of the best sources.

        What few views see has few sources: where fewer match much better, their mean counts, at a discount of FEWER for each.
        """
        points = self.rays.origins[which] + distance[:, None] * self.rays.directions[which]
        view, config = self.view[which], self.config
        ncc, valid = patch_ncc(
            points, normals, self.pixels[which], view, self.sources[view], self.images, self.side, config.min_std
        )
        best = torch.where(valid, ncc, -1.0).topk(min(config.best, ncc.shape[1]), dim=1).values
        count = torch.arange(1, best.shape[1] + 1, device=best.device)
        return (best.cumsum(dim=1) / count - FEWER * (best.shape[1] - count)).amax(dim=1).clamp_min(-1.0)

    def scores(self) -> tuple[Float[Tensor, "N T"], Float[Tensor, "N T"]]:
        """Distances tried along each ray, and the scores of planes there that face it; -1 where they are not worth it."""
        tried = self._tried()
        scores = torch.full_like(tried, -1.0)
        for view in range(len(self.swept)):  # at once, the points would take hundreds of megabytes
            own = self._of_view(view)
            ray, sample = self._usable(own, tried[own]).nonzero().T
            which = own.start + ray
            scores[which, sample] = self.score(tried[which, sample], -self.rays.directions[which], which)
        return tried, scores

    def rival(
        self, distance: Float[Tensor, " N"], tried: Float[Tensor, "N T"], scores: Float[Tensor, "N T"]
    ) -> Float[Tensor, " N"]:
        """The best score along each ray at other depths than the one at a distance."""
        nearest = (tried - distance[:, None]).abs().argmin(dim=1, keepdim=True)  # distances not tried are infinite
        beside = (torch.arange(tried.shape[1], device=tried.device) - nearest).abs() <= NEAR
        return scores.masked_fill(beside, -1.0).amax(dim=1)

    def matched(
        self,
        distance: Float[Tensor, " N"],
        score: Float[Tensor, " N"],
        rival: Float[Tensor, " N"],
        least: float = MATCHED,
        unique: float = UNIQUE,
    ) -> Float[Tensor, " N"]:
        """The distances whose planes match, better than least, and have no rival along their rays; the others are NaN.

        unique: by how much their scores must exceed the rivals'.
        """
        # Smooth shading and repeated patterns match at many depths, and in all views alike.
        return torch.where((score > least) & (score > rival + unique), distance, torch.nan)

    def depths(self, least: float = MATCHED) -> Float[Tensor, "V h w"]:
        """The distance at which a plane that faces each ray matches best, NaN where none does."""
        tried, scores = self.scores()
        score, chosen = scores.max(dim=1, keepdim=True)
        distance = tried.gather(1, chosen)[:, 0]
        return self.maps(self.matched(distance, score[:, 0], self.rival(distance, tried, scores), least))

    def maps(self, distance: Float[Tensor, " N"]) -> Float[Tensor, "V h w"]:
        """Values of the swept rays in the grids of their views, NaN elsewhere."""
        maps = torch.full(self.swept.shape, torch.nan, device=distance.device)
        maps[self.swept] = distance
        return maps

    def _tried(self) -> Float[Tensor, "N T"]:
        """The distances to try along the rays, nearest first."""
        near, _, _ = ray_sphere(self.rays, self.hull.extent)
        step = STEP * self.hull.size
        return near[:, None] + (torch.arange(int(2.0 * self.hull.extent / step), device=near.device) + 0.5) * step

    def _usable(self, which: slice, tried: Float[Tensor, "M T"]) -> Bool[Tensor, "M T"]:
        """Which distances are worth trying along some of the rays."""
        rays = self.rays[which]
        return self.hull.contain(rays.origins[:, None] + tried[..., None] * rays.directions[:, None])

    def _tolerance(self, view: int, distance: Tensor) -> Tensor | float:
        """By how much depths may differ, at a distance from the camera of a view, that are taken for the same."""
        return TOLERANCE * self.hull.size

    def consistent(self, depths: Float[Tensor, "V h w"], least: int = AGREEING) -> Float[Tensor, "V h w"]:
        """The depths at whose points at least so many of the sources have found the same; the others are NaN."""
        kept = torch.full_like(depths, torch.nan)
        for view in range(len(depths)):
            points = self._points(view, depths)
            agreeing = torch.zeros(len(points), dtype=torch.int16, device=points.device)
            for source in self.sources[view][self.sources[view] >= 0].tolist():
                there, distance, _ = self._look_up(source, points, depths)
                agreeing += (there - distance).abs() < self._tolerance(source, distance)  # false for NaN
            swept = self.swept[view]
            kept[view, swept] = torch.where(agreeing >= least, depths[view, swept], torch.nan)
        return kept

    def carve(self, depths: Float[Tensor, "V h w"], certain: Bool[Tensor, " N"]) -> Voxels:
        """The hull without the voxels that lie well in front of the depths of enough views, or of one that is certain.

        certain: which of the depths of the N swept rays are.
        """
        witnesses = self.maps(torch.where(certain, float(WITNESSES), 1.0))  # for how many views a depth stands
        cells = self.hull.occupied.nonzero()
        points = self.axis[cells]
        free = torch.zeros(len(points), device=points.device)
        for view in range(len(depths)):
            there, distance, ray = self._look_up(view, points, depths)
            free += torch.where(distance < there - MARGIN * self.hull.size, witnesses[view].view(-1)[ray], 0.0)
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
        points = self.rays.at(depths[self.swept])
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

    def _of_view(self, view: int) -> slice:
        """Which of the N rays are a view's."""
        first, last = torch.searchsorted(self.view, torch.tensor([view, view + 1], device=self.view.device)).tolist()
        return slice(first, last)

    def _points(self, view: int, depths: Tensor) -> Tensor:
        """[N, 3] what the swept rays of a view see; NaN where that is not known."""
        return self.rays[self._of_view(view)].at(depths[view, self.swept[view]])

    def _look_up(self, view: int, points: Tensor, depths: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """What a view has found in the direction of points [N, 3], NaN where nothing, how far away the points are, and the
        position of the ray in the view's flattened grid."""
        inside, ray = self._nearest(view, points)
        there = torch.where(inside, depths[view].view(-1)[ray], torch.nan)
        distance = (points - self.cameras[view].centers).square().sum(dim=-1).sqrt()  # norm() is many times slower
        return there, distance, ray

    def _nearest(self, view: int, points: Tensor) -> tuple[Tensor, Tensor]:
        """Whether points [N, 3] lie in a view, and the position of the ray nearest to each in the view's flattened grid."""
        pixels, ahead = (value[0] for value in project_all(self.cameras[view], points))
        column, row = (pixels / self.stride).round().unbind(-1)
        height, width = self.swept.shape[1:]
        inside = (ahead > 0) & (column >= 0) & (column < width) & (row >= 0) & (row < height)
        return inside, torch.where(inside, row * width + column, 0.0).long()
