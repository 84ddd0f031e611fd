"""Prior surfaces that are known in closed form."""

import numpy as np
import torch
import trimesh

from nsr.priors.shape import PriorShape


class Ball(PriorShape):
    """A ball about a centre whose radius is exp(code), or 0.5 without one; known in a ball of radius 1."""

    def __init__(self, centre=(0.0, 0.0, 0.0), world_from_prior=None, code_size=0):
        super().__init__(1.0, np.eye(4) if world_from_prior is None else world_from_prior)
        self.centre, self.code_size = torch.tensor(centre), code_size

    def distance(self, points, code):
        assert (points.detach().norm(dim=-1) <= self.radius + 1e-6).all()
        radius = code[..., 0].exp() if self.code_size else 0.5
        return (points - self.centre).norm(dim=-1) - radius


def similarity(scale=1.0, axis=(0.0, 0.0, 1.0), angle=0.0, offset=(0.0, 0.0, 0.0)) -> np.ndarray:
    matrix = trimesh.transformations.rotation_matrix(angle, axis)
    matrix[:3, :3] *= scale
    matrix[:3, 3] = offset
    return matrix
