"""Silhouettes of an object that was photographed without masks: what lies in the unit ball is object, the rest background.

Three witnesses take turns. Depth by plane sweep tells apart what is textured, inside the ball and behind it; colours, learnt
from that and from the images' borders, tell apart what is not; and as all silhouettes are shadows of one solid, each view is
held against the visual hull of the others (as Campbell et al., "Automatic 3D object segmentation in multiple views using
volumetric graph-cuts", IVC 2010, do on a volume). A random walker spreads what is known over each image up to its edges.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, UInt8
from torch import Tensor

from nsr.geometry.cameras import image_pixels, level_cameras, pixel_rays, project_all, ray_sphere
from nsr.geometry.masks import dilate
from nsr.geometry.visual_hull import grid_axis
from nsr.training.segmentation import color_codes, color_log_odds, random_walker
from nsr.training.settings import PhotometricConfig
from nsr.training.surroundings import WIDTH, SurroundingsSweep
from nsr.types import Cameras, Scene
from nsr.utils.errors import DataError

ROUNDS = 2
FINE_WIDTH = 400  # pixels, roughly, of the images in which the edges are found last
LEAST_SEEDS = 1e-3  # share of the swept rays that must see something in the ball
BORDER = 2  # pixels of the image border that are background where no depth in the ball is near
CERTAIN = 4.0  # log odds beyond which colours say no more
CONTRADICTED = 2.0  # log odds of the colours from which a depth is taken for its neighbour's
# How strongly a pixel is held to what is beyond doubt, to a depth, to colours that are certain, to others; its neighbours
# pull with up to 1 each.
SETTLED, SEED, COLOR, FAITH = 10.0, 1.0, 0.1, 0.02
IN_HULL, OFF_HULL = 1.5, -3.0  # log odds
HULL_RESOLUTION = 64
MISSES = 0.1  # share of the views that may miss a voxel of the hull
WITNESSES = 0.25  # share of the views that must see it
IN_SHADOW = 0.9  # share of a piece of background that lies in the hull's silhouette, from which it is none
BAND = 4  # fine pixels around an edge that is looked for again


@torch.no_grad()
def estimate_silhouettes(scene: Scene, config: PhotometricConfig) -> UInt8[Tensor, "V H W"]:
    """Masks, 0 or 255, of what lies inside the unit ball of a scene; those it has are not looked at.

    config: how patches are compared, see PlaneSweep. Raises DataError when the photographs show next to nothing in the ball.
    """
    sweep = SurroundingsSweep(scene, config)
    inside, behind = sweep.seeds()
    if inside.sum() <= LEAST_SEEDS * sweep.swept.sum():
        raise DataError(
            f"silhouettes of {scene.name}: without masks, surface is looked for by stereo in the scene's sphere; found on "
            f"{inside.sum():d} of {sweep.swept.sum():d} rays; expected an object with some texture there: give its sphere with "
            "--sphere X Y Z R, check the cameras, or add masks (docs/own_photos.md)"
        )
    views = _Views(scene, WIDTH)
    inside, behind = (views.spread(seeds, sweep.stride) for seeds in _undisputed(inside, behind))
    probability, hull = _agreed(views, inside, behind, sweep.stride)
    masks = _refined(scene, probability, hull, views.level)
    if empty := [name for name, mask in zip(scene.view_names, masks, strict=True) if not mask.any()]:
        raise DataError(
            f"silhouettes of {scene.name}: nothing of the object was found in {', '.join(empty[:6])}; remove these views, "
            "or add masks (docs/own_photos.md)"
        )
    return masks


def _undisputed(inside: Tensor, behind: Tensor) -> tuple[Tensor, Tensor]:
    """Rays of either kind [V, h, w] without one of the other kind beside them: depths are least sure at the object's edges."""
    return inside & ~dilate(behind, 1), behind & ~dilate(inside, 1)


def _agreed(
    views: _Views, inside: Tensor, behind: Tensor, stride: int
) -> tuple[Float[Tensor, "V h w"], Float[Tensor, "V h w"]]:
    """Probability that a pixel shows the object, and what the hull of all views says of it (log odds).

    inside, behind: [V, h, w] pixels whose depth tells; a ray stands for stride^2 pixels.
    """
    reach = views.reach()
    border = views.border() & ~dilate(inside, 2 * stride)
    of_object, of_background = stride**2 * inside.float(), stride**2 * behind.float() + (border | ~reach).float()
    probability, hull = torch.full_like(of_object, 0.5), torch.zeros_like(of_object)
    for _ in range(ROUNDS):
        colors = views.color_log_odds(of_object, of_background)
        inside, behind = inside & (colors > -CONTRADICTED), behind & (colors < CONTRADICTED)
        prior, confidence = _beliefs(colors + hull)
        depth_known = SEED * (inside | behind)
        prior = (confidence * prior + SEED * inside) / (confidence + depth_known)
        prior, confidence = prior * reach, torch.where(reach, confidence + depth_known, SETTLED)
        probability = views.walk(prior, confidence, probability, iterations=25)
        shadow = views.shadows(probability)
        outside = ~dilate(shadow, 2)
        hull = IN_HULL * shadow + OFF_HULL * outside
        trust = torch.where(outside, -1.0, 2.0 * probability - 1.0)
        of_object, of_background = trust.clamp_min(0.0), -trust.clamp_max(0.0)
    return probability, hull


class _Views:
    """All photographs at one level of the pyramid, about `width` pixels across."""

    def __init__(self, scene: Scene, width: int) -> None:
        self.level = max(round(math.log2(scene.cameras.width / width)), 0)
        self.cameras = level_cameras(scene.cameras, self.level)
        # Image by image: as floats, all photographs at once would take four times the data set.
        shrunk = [F.avg_pool2d(image.permute(2, 0, 1).float(), 2**self.level) for image in scene.images]
        self.images = torch.stack(shrunk).permute(0, 2, 3, 1).contiguous() / 255.0
        self.codes = color_codes(self.images)

    def reach(self) -> Bool[Tensor, "V h w"]:
        """The pixels whose rays meet the unit ball."""
        return torch.stack([_meets_ball(self.cameras, view) for view in range(len(self.cameras))])

    def spread(self, seeds: Bool[Tensor, "V r c"], stride: int) -> Bool[Tensor, "V h w"]:
        """Marks of a sparse grid of rays at their pixels."""
        marks = torch.zeros_like(self.codes, dtype=torch.bool)
        marks[:, ::stride, ::stride] = seeds
        return marks

    def border(self) -> Bool[Tensor, "V h w"]:
        inner = torch.zeros_like(self.codes, dtype=torch.bool)
        inner[:, BORDER:-BORDER, BORDER:-BORDER] = True
        return ~inner

    def color_log_odds(self, of_object: Tensor, of_background: Tensor) -> Float[Tensor, "V h w"]:
        return color_log_odds(self.codes, of_object, of_background).clamp(-CERTAIN, CERTAIN)

    def walk(self, prior: Tensor, confidence: Tensor, start: Tensor, iterations: int) -> Float[Tensor, "V h w"]:
        """See random_walker."""
        images = zip(self.images, prior, confidence, start, strict=True)
        return torch.stack([random_walker(*image, iterations) for image in images])

    def shadows(self, probability: Float[Tensor, "V h w"]) -> Bool[Tensor, "V h w"]:
        """The silhouettes of the visual hull in the ball that all but MISSES of the views agree on."""
        axis = grid_axis(HULL_RESOLUTION, 1.0, probability.device)
        points = torch.stack(torch.meshgrid(axis, axis, axis, indexing="ij"), dim=-1).view(-1, 3)
        points = points[points.square().sum(dim=-1) <= 1.0]
        height, width = probability.shape[1:]
        seen, missed = torch.zeros(2, len(points), device=points.device)
        position = []
        for view in range(len(probability)):
            pixels, depth = (value[0] for value in project_all(self.cameras[view], points))
            column, row = pixels.round().unbind(-1)
            ahead = (depth > 0) & (column >= 0) & (column < width) & (row >= 0) & (row < height)
            position.append(torch.where(ahead, row * width + column, height * width).long())  # the last one is no pixel
            object_there = F.pad(probability[view].flatten() > 0.5, (0, 1), value=True)
            seen += ahead
            missed += ~object_there[position[-1]]
        hull = (missed <= MISSES * seen) & (seen >= max(2, WITNESSES * len(probability)))
        shadows = torch.zeros(len(probability), height * width + 1, dtype=torch.bool, device=points.device)
        for view, pixel in enumerate(position):
            shadows[view, pixel[hull]] = True
        return ~dilate(~dilate(shadows[:, :-1].view(probability.shape), 2), 1)  # a voxel is two or three pixels wide


def _refined(
    scene: Scene, probability: Float[Tensor, "V h w"], hull: Float[Tensor, "V h w"], level: int
) -> UInt8[Tensor, "V H W"]:
    """Masks at full size; edges are looked for once more in larger images, near where they have been found.

    level: of the pyramid, at which probability and hull are given.
    """
    views = _Views(scene, FINE_WIDTH)
    probability, hull = (_enlarged(values, level - views.level, views.images.shape[1:3]) for values in (probability, hull))
    known = 2.0 * probability - 1.0
    colors = views.color_log_odds(known.clamp_min(0.0), -known.clamp_max(0.0))
    settled = probability > 0.5
    band = dilate(settled, BAND) & dilate(~settled, BAND)
    prior, confidence = _beliefs(colors * _agreement(colors, known) + hull)
    prior, confidence = torch.where(band, prior, settled.float()), torch.where(band, confidence, SETTLED)
    probability = views.walk(prior, confidence, probability, iterations=15)
    probability[_holes(probability > 0.5, hull > 0.5 * IN_HULL)] = 1.0
    size = scene.images.shape[1:3]
    return torch.cat([255 * (_enlarged(view[None], views.level, size) > 0.5).to(torch.uint8) for view in probability])


def _holes(masks: Bool[Tensor, "V h w"], shadow: Bool[Tensor, "V h w"]) -> Bool[Tensor, "V h w"]:
    """Pieces of background that the hull, on which nearly all views agree, does not have: a dark door, a white roof.

    A hole in one mask would carve a tunnel through all that is behind and before it.
    """
    from scipy import ndimage

    holes = np.zeros(masks.shape, dtype=bool)
    for view, (mask, inside) in enumerate(zip(masks.cpu().numpy(), shadow.cpu().numpy(), strict=True)):
        pieces, count = ndimage.label(~mask)
        share = ndimage.mean(inside, pieces, index=np.arange(count + 1))
        holes[view] = ~mask & (share > IN_SHADOW)[pieces]
    return torch.from_numpy(holes).to(masks.device)


def _agreement(colors: Float[Tensor, "V h w"], known: Float[Tensor, "V h w"]) -> Float[Tensor, "V 1 1"]:
    """How far colours alone tell object and background apart, 0 to 1, where these are known (positive: object)."""
    shares = []
    for sign in (1.0, -1.0):
        weight = (sign * known).clamp_min(0.0)
        shares.append((weight * (sign * colors > 0)).sum(dim=(1, 2)) / weight.sum(dim=(1, 2)).clamp_min(1e-6))
    return (shares[0] + shares[1] - 1.0).clamp(0.0, 1.0)[:, None, None]


def _beliefs(log_odds: Tensor) -> tuple[Tensor, Tensor]:
    """Probability of object, and how strongly it pulls."""
    prior = torch.sigmoid(log_odds)
    return prior, FAITH + COLOR * (2.0 * prior - 1.0).square()


def _meets_ball(cameras: Cameras, view: int) -> Bool[Tensor, "h w"]:
    pixels = image_pixels(cameras.width, cameras.height, cameras.centers.device)
    rays = pixel_rays(cameras, torch.full((len(pixels),), view, device=pixels.device), pixels)
    return ray_sphere(rays, 1.0)[2].view(cameras.height, cameras.width)


def _enlarged(images: Float[Tensor, "V h w"], levels: int, size: Sequence[int]) -> Float[Tensor, "V H W"]:
    """Images that were halved `levels` times, at the size [H, W] they had; halving dropped odd last rows and columns."""
    height, width = size
    large = F.interpolate(images[:, None], scale_factor=2**levels, mode="bilinear", align_corners=False)
    missing = (0, width - large.shape[3], 0, height - large.shape[2])
    return F.pad(large, missing, mode="replicate")[:, 0]
