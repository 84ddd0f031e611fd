"""The differentiable ray/surface intersection of IDR (Yariv et al. 2020, eq. 3)."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor


def differentiable_intersection(
    points: Float[Tensor, "N 3"],
    directions: Float[Tensor, "N 3"],
    sdf: Float[Tensor, " N"],
    gradient: Float[Tensor, "N 3"],
    min_cosine: float,
) -> Float[Tensor, "N 3"]:
    """x(theta, tau) = c + t0 v - v / (grad f(x0) . v0) * (f(c + t0 v; theta) - f(x0; theta0)).

    Equal to x0 in value, and in first derivative to the point where the ray meets the moving surface.

    points: c + t0 v, carrying the cameras' gradient where cameras are trained.
    directions: v, unit; sdf: f at `points`, with gradient; gradient: d f / d x there, used as the constant of the formula.
    min_cosine: grazing rays, whose intersection moves without bound, are treated as if they met the surface at this cosine, and
    from outside. A ray that leaves the object, as one that starts inside does, has a slope that is clearly positive.
    """
    slope = (gradient.detach() * directions.detach()).sum(dim=-1)
    slope = torch.where(slope > min_cosine, slope, slope.clamp(max=-min_cosine))
    return points - directions * ((sdf - sdf.detach()) / slope)[:, None]
