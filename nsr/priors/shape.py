"""Surfaces that are known beforehand: one, or a family of them that a code chooses from."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from nsr.models.implicit_network import ImplicitNetwork


class Linearised(NamedTuple):
    """A signed distance at N points, and how it changes with each of them and with the code: sdf [N], by_point [N, 3],
    by_code [N, C]."""

    sdf: Tensor
    by_point: Tensor
    by_code: Tensor


class PriorShape(nn.Module):
    """A signed distance in a frame of its own, the prior frame.

    code_size: how many numbers a code has; 0 for a single surface, whose code is of length 0. Among the surfaces of a family
        codes are standard normal, and its mean has the code 0.
    radius: of the ball about the origin in which the distance is known, prior units.
    world_from_prior: [4, 4] float64 similarity to the world of what it was learned from, which fixes its size: millimetres, for
        heads.
    """

    code_size = 0
    world_from_prior: Tensor

    def __init__(self, radius: float, world_from_prior: np.ndarray) -> None:
        super().__init__()
        self.radius = radius
        self.register_buffer("world_from_prior", torch.as_tensor(np.array(world_from_prior, dtype=np.float64)))

    def distance(self, points: Float[Tensor, "N 3"], code: Float[Tensor, "*N C"]) -> Float[Tensor, " N"]:
        """Signed distance at points inside the ball, differentiable with respect to points and code: one code, or one for each
        point."""
        raise NotImplementedError

    def sdf(self, points: Float[Tensor, "N 3"], code: Float[Tensor, "*N C"]) -> Float[Tensor, " N"]:
        """Signed distance anywhere, prior units, negative inside. What lies outside the ball is as far from the surface as the
        point of the ball next to it, and by its distance from there further."""
        length = (points.square().sum(dim=-1) + 1e-12).sqrt()
        beyond = (length - self.radius).clamp_min(0.0)
        inside = points * (self.radius / length.clamp_min(self.radius))[:, None]
        return self.distance(inside, code) + beyond

    def linearised(self, points: Float[Tensor, "N 3"], code: Float[Tensor, " C"]) -> Linearised:
        """The signed distance with its derivatives, by one pass back."""
        points = points.detach().requires_grad_()
        codes = code.detach().expand(len(points), -1).clone().requires_grad_()
        with torch.enable_grad():
            sdf = self.sdf(points, codes)
            by_point, by_code = torch.autograd.grad(sdf.sum(), [points, codes], allow_unused=True)
        return Linearised(sdf.detach(), by_point, torch.zeros_like(codes) if by_code is None else by_code)

    def no_code(self) -> Float[Tensor, " C"]:
        """The code of the mean: zeros."""
        return torch.zeros(self.code_size, device=self.world_from_prior.device)


class ModelShape(PriorShape):
    """The surface of a trained model, in the scene frame that it was trained in."""

    def __init__(self, network: ImplicitNetwork, radius: float, world_from_scene: np.ndarray) -> None:
        super().__init__(radius, world_from_scene)
        self.network = network.requires_grad_(False)

    def distance(self, points: Tensor, code: Tensor) -> Tensor:
        if not points.requires_grad:
            with torch.no_grad():
                return self.network.sdf(points)
        with torch.no_grad():  # the gradient is a forward output: no need to go through the network again
            output = self.network(points)
        return output.sdf + (output.gradient * (points - points.detach())).sum(dim=-1)
