"""What silhouettes say about a signed distance: along a ray its smallest value is negative inside a mask, else positive."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from nsr.geometry.cameras import pixel_rays, ray_sphere
from nsr.geometry.masks import is_object
from nsr.types import Cameras, Rays

OUTLINE_SHARE = 0.6  # of the rays, those along outlines; the others evenly in and out of the masks
SCANNED, REFINED = 32, 8  # samples along a whole ray, and on both sides of the smallest one
CHUNK = 2**16


class SilhouetteRays(NamedTuple):
    """N rays through the ball of a scene: where they enter and leave it, and what they see: 1 the object, -1 what is behind,
    0 the outline, where they pass between a pixel of the one and a pixel of the other."""

    rays: Rays
    near: Float[Tensor, " N"]
    far: Float[Tensor, " N"]
    side: Int[Tensor, " N"]


def draw_rays(masks: Tensor, cameras: Cameras, count: int, radius: float, generator: torch.Generator) -> SilhouetteRays:
    """About `count` rays of all views together, those that miss the ball of a radius left out."""
    inside = is_object(masks)
    of_outline = round(OUTLINE_SHARE * count)
    outline_view, outline_pixels = _outlines(inside)
    chosen = _some(len(outline_view), of_outline, generator, masks.device)
    views, pixels, sides = [outline_view[chosen]], [outline_pixels[chosen]], [0]
    for side, pool in ((1, inside), (-1, ~inside)):
        places = pool.nonzero()  # view, row, column
        places = places[_some(len(places), (count - of_outline) // 2, generator, masks.device)]
        views.append(places[:, 0])
        pixels.append(places[:, [2, 1]].float())
        sides.append(side)
    side = torch.cat([torch.full_like(view, value) for view, value in zip(views, sides, strict=True)])
    rays = pixel_rays(cameras, torch.cat(views), torch.cat(pixels))
    near, far, crosses = ray_sphere(rays, radius)
    return SilhouetteRays(rays[crosses], near[crosses], far[crosses], side[crosses])


def _outlines(inside: Bool[Tensor, "V H W"]) -> tuple[Int[Tensor, " K"], Float[Tensor, "K 2"]]:
    """View and place (u, v) of the middle between each two pixels beside or above each other of which one is object."""
    views, pixels = [], []
    for axis, half in ((2, (0.5, 0.0)), (1, (0.0, 0.5))):
        length = inside.shape[axis]
        differ = inside.narrow(axis, 0, length - 1) != inside.narrow(axis, 1, length - 1)
        view, row, column = differ.nonzero().unbind(-1)
        views.append(view)
        pixels.append(torch.stack([column, row], dim=-1) + torch.tensor(half, device=inside.device))
    return torch.cat(views), torch.cat(pixels)


def _some(count: int, wanted: int, generator: torch.Generator, device: torch.device) -> Int[Tensor, " n"]:
    """`wanted` of `count` things, with replacement; none, where there are none."""
    return torch.randint(max(count, 1), (wanted if count else 0,), generator=generator, device=device)


@torch.no_grad()
def smallest_along(sdf: Callable[[Tensor], Tensor], drawn: SilhouetteRays) -> Float[Tensor, " N"]:
    """The distances along the rays at which the SDF is smallest: on an even grid, then on a finer one around that place."""
    fractions = (torch.arange(SCANNED, device=drawn.near.device) + 0.5) / SCANNED
    length = drawn.far - drawn.near
    found = _smallest_of(sdf, drawn.rays, drawn.near[:, None] + length[:, None] * fractions)
    return near_smallest(sdf, drawn, found, 1.0 / SCANNED)


@torch.no_grad()
def near_smallest(
    sdf: Callable[[Tensor], Tensor], drawn: SilhouetteRays, distance: Float[Tensor, " N"], reach: float
) -> Float[Tensor, " N"]:
    """The distances, at most `reach` of a ray's chord away from the given ones, at which the SDF is smallest."""
    offsets = torch.linspace(-reach, reach, 2 * REFINED + 1, device=distance.device)
    tried = distance[:, None] + (drawn.far - drawn.near)[:, None] * offsets
    return _smallest_of(sdf, drawn.rays, torch.minimum(torch.maximum(tried, drawn.near[:, None]), drawn.far[:, None]))


def _smallest_of(sdf: Callable[[Tensor], Tensor], rays: Rays, tried: Float[Tensor, "N S"]) -> Float[Tensor, " N"]:
    points = (rays.origins[:, None] + tried[..., None] * rays.directions[:, None]).reshape(-1, 3)
    values = torch.cat([sdf(part) for part in points.split(CHUNK)]).reshape(tried.shape)
    return tried.gather(1, values.argmin(dim=1, keepdim=True))[:, 0]


def wrong_by(smallest: Float[Tensor, " N"], side: Int[Tensor, " N"]) -> tuple[Float[Tensor, " N"], Float[Tensor, " N"]]:
    """By how much the smallest SDF along each ray is not what the mask wants, and how that changes with it: 0 or 1.

    Along an outline it is to be 0; else only its sign is known.
    """
    counts = (side == 0) | ((side > 0) & (smallest > 0)) | ((side < 0) & (smallest < 0))
    return torch.where(counts, smallest, 0.0), counts.to(smallest)


def agreement(smallest: Float[Tensor, " N"], side: Int[Tensor, " N"]) -> float:
    """Share of the rays in and out of the masks whose smallest SDF has the sign that the mask wants."""
    known = side != 0
    return float(((smallest < 0) == (side > 0))[known].float().mean())
