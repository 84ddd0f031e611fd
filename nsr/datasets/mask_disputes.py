"""Where the mask of one photograph contradicts those of the others: parts that it left out, or things it took for the object.

A visual hull never fills its masks where one of them lacks a part; a hull from which a few views alone may not carve fills them
again, but is fatter than the object. So the two together find the places, and masks mended there give an exact hull again.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Bool
from torch import Tensor

from nsr.geometry.cameras import level_cameras, project_all
from nsr.geometry.masks import dilate, halved
from nsr.geometry.visual_hull import carve, grid_axis
from nsr.types import Cameras, Scene

DEPTH = 2.0  # voxels by which a mask must be wrong before it counts: silhouettes of a hull are no sharper than its voxels
WITNESSES = 2  # views whose masks must stay unfilled for want of a voxel before it is missed
MISSED = 0.1  # share of a background region in which something is missed, from which all of it is in dispute
VOXEL_PX = 4  # masks are halved until a voxel is no wider


def mended(scene: Scene, max_misses: int, resolution: int, extent: float) -> tuple[Scene, Bool[Tensor, "V H W"]]:
    """The scene with masks that do not contradict each other, and the pixels [V, H, W] of which nobody knows what they show.

    There a mask that left out a part now says object, so that it carves nothing, and one that claimed too much background.
    For the arguments see disputed_pixels.
    """
    missing, extra = disputed_pixels(scene.masks, scene.cameras, max_misses, resolution, extent)
    masks = scene.masks.masked_fill(missing, 255).masked_fill(extra, 0)
    return replace(scene, masks=masks), missing | extra


def disputed_pixels(
    masks: Tensor, cameras: Cameras, max_misses: int, resolution: int = 96, extent: float = 1.0
) -> tuple[Bool[Tensor, "V H W"], Bool[Tensor, "V H W"]]:
    """Pixels where a mask and the others disagree over more than DEPTH voxels, with their surroundings.

    Args:
        masks: [V, H, W] uint8, 128 and above is object. cameras: V cameras in the scene frame.
        max_misses: how many masks may be wrong about one place; more than that are believed.
        resolution, extent: of the hull, see nsr.geometry.visual_hull.carve.

    Returns:
        missing: background where the masks of WITNESSES others stay unfilled unless the object is there.
        extra: object that no hull fills, even when any max_misses others may be wrong.
    """
    small, shrunk, level = _shrunk(masks, cameras, 2 * extent / (resolution - 1))
    strict = carve(small, shrunk, resolution, extent)
    unfilled = [_deeper(mask, fp.shadow(), fp) for mask, fp in zip(small, _footprints(strict, shrunk, extent), strict=True)]
    if not any(image.any() for image in unfilled):  # the masks agree
        return torch.zeros_like(masks, dtype=torch.bool), torch.zeros_like(masks, dtype=torch.bool)

    tolerant = carve(small, shrunk, resolution, extent, max_misses=max_misses)
    footprints = _footprints(tolerant, shrunk, extent)
    votes = sum(footprint.hits(image).to(torch.int16) for footprint, image in zip(footprints, unfilled, strict=True))
    missed = (votes >= WITNESSES) & ~strict[tolerant]
    missing, extra = [], []
    for mask, footprint in zip(small, footprints, strict=True):
        everything = footprint.shadow()
        core = _regions_with(_deeper(everything, mask, footprint), footprint.shadow(missed & ~footprint.hits(mask)))
        missing.append(dilate(core, footprint.depth + 1) & ~mask)
        extra.append(dilate(_deeper(mask, everything, footprint), footprint.depth + 1) & mask & ~everything)
    return tuple(_enlarged(torch.stack(images), level, masks) for images in (missing, extra))


@dataclass(frozen=True)
class _Footprint:
    """Where P voxels are seen in a view of h x w pixels: pixel [P], -1 where they are not; voxel: their width in pixels."""

    pixel: Tensor
    size: tuple[int, int]
    voxel: float

    @classmethod
    def of(cls, points: Tensor, camera: Cameras, side: float) -> _Footprint:
        pixels, depth = (value[0] for value in project_all(camera, points))
        u, v = pixels.round().unbind(-1)
        inside = (depth > 0) & (u >= 0) & (u < camera.width) & (v >= 0) & (v < camera.height)
        pixel = torch.where(inside, v * camera.width + u, -1.0).long()
        ahead = depth[depth > 0]
        voxel = float(side * camera.focals[0] / ahead.median()) if len(ahead) else 1.0
        return cls(pixel, (camera.height, camera.width), voxel)

    @property
    def depth(self) -> int:
        return max(round(DEPTH * self.voxel), 1)

    def shadow(self, chosen: Bool[Tensor, " P"] | bool = True) -> Bool[Tensor, "h w"]:
        """The silhouette of the voxels, or of some of them."""
        image = torch.zeros(self.size, dtype=torch.bool, device=self.pixel.device)
        image.view(-1)[self.pixel[chosen & (self.pixel >= 0)]] = True
        return dilate(image, max(round(self.voxel / 2), 1))

    def hits(self, image: Bool[Tensor, "h w"]) -> Bool[Tensor, " P"]:
        """Which voxels are seen in True pixels."""
        return image.reshape(-1)[self.pixel.clamp_min(0)] & (self.pixel >= 0)


def _footprints(hull: Bool[Tensor, "R R R"], cameras: Cameras, extent: float) -> list[_Footprint]:
    """Of the occupied voxels, in every view."""
    axis = grid_axis(len(hull), extent, hull.device).to(cameras.intrinsics)
    points = axis[hull.nonzero()]
    return [_Footprint.of(points, cameras[view], float(axis[1] - axis[0])) for view in range(len(cameras))]


def _deeper(image: Tensor, other: Tensor, footprint: _Footprint) -> Bool[Tensor, "h w"]:
    """Where an image reaches more than DEPTH voxels beyond another."""
    return image & ~dilate(other, footprint.depth)


def _regions_with(image: Bool[Tensor, "h w"], marks: Bool[Tensor, "h w"]) -> Bool[Tensor, "h w"]:
    """The connected regions of an image of which the marks cover a share of MISSED or more."""
    from scipy import ndimage

    labels, count = ndimage.label(image.cpu().numpy())
    marked = np.bincount(labels[marks.cpu().numpy()], minlength=count + 1)
    keep = marked >= MISSED * np.bincount(labels.ravel(), minlength=count + 1)
    keep[0] = False
    return torch.from_numpy(keep[labels]).to(image.device)


def _shrunk(masks: Tensor, cameras: Cameras, side: float) -> tuple[Bool[Tensor, "V h w"], Cameras, int]:
    """Masks and cameras, halved `level` times until voxels of that side are about VOXEL_PX pixels wide."""
    voxel = float((side * cameras.focals / cameras.centers.norm(dim=-1).clamp_min(0.5)).median())
    level = 0
    while voxel > VOXEL_PX * 2**level:
        level += 1
    return halved(masks, level), level_cameras(cameras, level), level


def _enlarged(images: Bool[Tensor, "V h w"], level: int, like: Tensor) -> Bool[Tensor, "V H W"]:
    """At the size of `like`; the rows and columns that halving dropped are False."""
    full = torch.zeros_like(like, dtype=torch.bool)
    large = images.repeat_interleave(2**level, dim=1).repeat_interleave(2**level, dim=2)
    full[:, : large.shape[1], : large.shape[2]] = large
    return full
