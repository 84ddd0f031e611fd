"""Fits a prior's surface to a scene: where it stands, and which of its family it is (H3D-Net's first stage).

A least-squares problem of seven numbers and a code, solved by Levenberg and Marquardt's method: a dozen steps take the place of
hundreds of gradient descent. Its residuals are the smallest distances along rays (nsr.priors.silhouette_rays) and the distances
of places where stereo has seen the surface. Both count less the more they are off (Geman and McClure's weights), since a prior
cannot follow everything: hair, or another end of the neck.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from nsr.config import check
from nsr.priors.placement import moved, similarity_scale, small_similarity
from nsr.priors.shape import PriorShape
from nsr.priors.silhouette_rays import (
    SCANNED,
    SilhouetteRays,
    agreement,
    near_smallest,
    smallest_along,
    wrong_by,
)

TRIAL_STEPS = 4  # that each place to begin at is given, to see which leads furthest
PLACE_FIRST = 0.35  # of the steps, in which the code stays: a wrong place would be made up for by a strange head
DAMPING, EASED, DAMPED, MOST_DAMPED = 1e-3, 0.3, 8.0, 1e4  # at first; factors after a step that helps, and one that does not
UNTOLD = 0.01  # least stiffness of a number of the place, of that of the stiffest
SIZE = 6  # which of the seven numbers is the logarithm of the scale


@dataclass(frozen=True)
class FitConfig:
    """steps: at most; rays, points: how many of silhouettes, and of places where stereo has seen the surface, at most.

    scale_spread: standard deviation of the logarithm of the size beside the one that it begins with; 0: the size is known.
    noise: standard deviation of the distances, scene units, of which `independent` are taken to be independent: together they
    say how much the code may depart from the mean to explain them.
    reach, reach_final: distance beyond which a residual hardly counts, at first and at the end, scene units.
    points_weight: of a point beside a ray.
    """

    steps: int = 24
    rays: int = 3000
    points: int = 2000
    scale_spread: float = 0.1
    noise: float = 0.005
    independent: float = 300.0
    reach: float = 0.2
    reach_final: float = 0.02
    points_weight: float = 1.0

    def __post_init__(self) -> None:
        for name in ("steps", "rays"):
            check(self, name, getattr(self, name) >= 1, "1 or more")
        check(self, "points", self.points >= 0, "0 or more")
        for name in ("noise", "independent", "reach", "reach_final"):
            check(self, name, 0 < getattr(self, name) < math.inf, "more than 0")
        for name in ("points_weight", "scale_spread"):
            check(self, name, 0 <= getattr(self, name) < math.inf, "0 or more")


@dataclass(frozen=True)
class FittedShape:
    """A prior's surface in a scene. began: which place it began at; agreement: share of the rays that silhouettes confirm."""

    shape: PriorShape
    code: Float[Tensor, " C"]
    prior_from_scene: Float[Tensor, "4 4"]
    began: str
    agreement: float

    @torch.no_grad()
    def sdf(self, points: Float[Tensor, "N 3"]) -> Float[Tensor, " N"]:
        """Signed distance at scene-frame points, scene units."""
        return _sdf(self.shape, self.code, self.prior_from_scene, points)


def _sdf(shape: PriorShape, code: Tensor, prior_from_scene: Tensor, points: Tensor) -> Tensor:
    return shape.sdf(moved(points, prior_from_scene), code) / similarity_scale(prior_from_scene)


class _State(NamedTuple):
    """prior_from_scene [4, 4]; code [C]; at [N]: where along the rays the SDF is smallest; size: logarithm of the scale beside
    that of the beginning."""

    matrix: Tensor
    code: Tensor
    at: Tensor
    size: Tensor


@dataclass
class _Problem:
    """What a fit minimises, and how far it has come."""

    shape: PriorShape
    drawn: SilhouetteRays
    seen: Tensor
    config: FitConfig
    state: _State
    damping: float = DAMPING
    done: int = 0
    weights: Tensor = field(init=False)

    def __post_init__(self) -> None:
        each = torch.ones_like(self.drawn.near)
        of_points = self.config.points_weight * torch.ones_like(self.seen[:, 0])
        weights = torch.cat([each, of_points])
        self.weights = weights * (self.config.independent / weights.sum() / self.config.noise**2)

    @torch.no_grad()
    def field(self, state: _State, points: Tensor) -> Tensor:
        return _sdf(self.shape, state.code, state.matrix, points)

    def scanned(self, state: _State) -> _State:
        return state._replace(at=smallest_along(lambda x: self.field(state, x), self.drawn))

    def followed(self, state: _State) -> _State:
        return state._replace(at=near_smallest(lambda x: self.field(state, x), self.drawn, state.at, 1.0 / SCANNED))

    def smallest(self, state: _State) -> Tensor:
        return self.field(state, self.drawn.rays.at(state.at))

    def residuals(self, state: _State) -> Tensor:
        return torch.cat([wrong_by(self.smallest(state), self.drawn.side)[0], self.field(state, self.seen)])

    def cost(self, state: _State, reach: float) -> float:
        """Geman and McClure's, r^2 / (1 + (r / reach)^2), and what code and size cost: -2 log of their likelihood."""
        squares = self.residuals(state).square()
        spread = self.config.scale_spread
        of_size = (state.size / spread).square() if spread else 0.0
        return float((self.weights * squares / (1.0 + squares / reach**2)).sum() + state.code.square().sum() + of_size)

    def step(self, reach: float, with_code: bool) -> None:
        """One step, if one helps; the damping grows until it does."""
        state = self.state
        points = torch.cat([self.drawn.rays.at(state.at), self.seen])
        scale = similarity_scale(state.matrix)
        line = self.shape.linearised(moved(points, state.matrix), state.code)
        sdf, normal = line.sdf / scale, line.by_point @ state.matrix[:3, :3] / scale
        # x moves to (1 + s) x + w x x + t in front of the similarity, and the distance shrinks as the surface grows.
        by_place = torch.cat(
            [torch.linalg.cross(points, normal), normal, ((normal * points).sum(dim=-1) - sdf)[:, None]], dim=1
        )
        by_place[:, SIZE] *= float(self.config.scale_spread > 0)
        by_all = torch.cat([by_place, line.by_code * (float(with_code) / scale)], dim=1)
        rays = len(self.drawn.near)
        wrong, counts = wrong_by(sdf[:rays], self.drawn.side)
        residual = torch.cat([wrong, sdf[rays:]])
        by_all[:rays] *= counts[:, None]
        weights = self.weights / (1.0 + residual.square() / reach**2) ** 2
        likely = torch.cat([state.code.new_zeros(7), torch.ones_like(state.code)])
        likely[SIZE] = self.config.scale_spread**-2 if self.config.scale_spread else 0.0
        normal_matrix = ((by_all * weights[:, None]).T @ by_all).double() + torch.diag(likely).double()
        slope = (by_all.T @ (weights * residual)).double()
        slope[7:] += state.code
        slope[SIZE] += likely[SIZE] * state.size
        stiffness = normal_matrix.diagonal().clone()
        # What the residuals hardly tell (how a ball is turned, say) is not to be thrown about.
        stiffness[:7] = stiffness[:7].clamp_min(UNTOLD * float(stiffness[:7].max()))
        before = self.cost(state, reach)
        while self.damping < MOST_DAMPED:
            damped = normal_matrix + torch.diag(self.damping * stiffness)
            change = -torch.linalg.solve(damped, slope).to(points.dtype)
            if not with_code:
                change[7:] = 0.0
            matrix = state.matrix @ small_similarity(change[:7])
            tried = self.followed(_State(matrix, state.code + change[7:], state.at, state.size + change[SIZE]))
            if self.cost(tried, reach) < before:
                self.state, self.damping = tried, max(self.damping * EASED, 1e-6)
                return
            self.damping *= DAMPED
        self.damping = DAMPING  # nothing helps at this reach; another may

    def run(self, steps: int) -> None:
        config = self.config
        for _ in range(steps):
            progress = self.done / max(config.steps - 1, 1)
            reach = config.reach * (config.reach_final / config.reach) ** progress
            self.step(reach, with_code=self.shape.code_size > 0 and progress >= PLACE_FIRST)
            self.done += 1
            if self.done % (config.steps // 3 + 1) == 0:  # following may have lost the way
                self.state = self.scanned(self.state)


@torch.no_grad()
def fit_shape(
    shape: PriorShape,
    drawn: SilhouetteRays,
    begin: Mapping[str, np.ndarray],
    config: FitConfig,
    *,
    seen: Float[Tensor, "P 3"] | None = None,
) -> FittedShape:
    """The prior's surface as the silhouettes of a scene want it, and the places where stereo has seen the surface.

    begin: similarities prior_from_scene, of which the one is taken that leads furthest in a few steps; seen: points on the
    surface, scene frame, of which some may be wrong.
    """
    if not begin:
        raise ValueError("fit_shape: expected one place to begin at, or more")
    device = drawn.near.device
    shape = shape.to(device).requires_grad_(False)
    points = drawn.near.new_zeros(0, 3) if seen is None else seen[: config.points]
    problems = {}
    for name, matrix in begin.items():
        begun = torch.as_tensor(matrix, dtype=torch.float32, device=device)
        state = _State(begun, shape.no_code().to(device), drawn.near, begun.new_zeros(()))
        problem = _Problem(shape, drawn, points, config, state)
        problem.state = problem.scanned(state)
        problems[name] = problem
    if len(problems) > 1:
        for problem in problems.values():
            problem.run(min(TRIAL_STEPS, config.steps))
    best = min(problems, key=lambda name: problems[name].cost(problems[name].state, config.reach))
    problem = problems[best]
    problem.run(config.steps - problem.done)
    state = problem.scanned(problem.state)
    right = agreement(problem.smallest(state), drawn.side)
    return FittedShape(shape, state.code, state.matrix, best, right)
