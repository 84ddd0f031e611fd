"""Where a prior's surface stands in a scene: similarities between the two frames."""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor


def moved(points: Float[Tensor, "N 3"], matrix: Float[Tensor, "4 4"]) -> Float[Tensor, "N 3"]:
    """Points under a similarity."""
    return points @ matrix[:3, :3].T + matrix[:3, 3]


def similarity_scale(matrix: Float[Tensor, "4 4"]) -> Float[Tensor, ""]:
    """By how much a similarity makes things larger."""
    return torch.linalg.vector_norm(matrix[:3, 0])


def small_similarity(step: Float[Tensor, " 7"]) -> Float[Tensor, "4 4"]:
    """The similarity of a rotation vector (radians), a translation and the logarithm of a scale: the exponential of the matrix
    that they make."""
    x, y, z, *_ = step
    zero = torch.zeros_like(x)
    turning = torch.stack([zero, -z, y, z, zero, -x, -y, x, zero]).reshape(3, 3)
    generator = step.new_zeros(4, 4)
    generator[:3, :3] = turning + step[6] * torch.eye(3, dtype=step.dtype, device=step.device)
    generator[:3, 3] = step[3:6]
    return torch.linalg.matrix_exp(generator)


def candidate_placements(world_from_prior: np.ndarray, world_from_scene: np.ndarray) -> dict[str, np.ndarray]:
    """Similarities prior_from_scene to begin with, by what they take to be true.

    "world": both worlds are the same, as among the heads of one rig; "centre": the middle of the scene's sphere is the middle
    of the prior's, and lengths mean the same in both worlds; "sphere": their spheres are the same, whatever the units.
    """
    world = np.linalg.inv(world_from_prior) @ world_from_scene
    centre = np.eye(4)
    centre[:3, :3] = world[:3, :3]
    return {"world": world, "centre": centre, "sphere": np.eye(4)}
