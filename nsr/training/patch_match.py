"""PatchMatch stereo: a plane for every swept ray, found by passing on what neighbours have found and by random trials.

A plane sweep tries planes that face the camera, a voxel apart. Slanted surface matches none of them well: the walls of
cavities, above all. Bleyer, Rhemann and Rother, "PatchMatch Stereo" (BMVC 2011) search the planes' tilt too; Galliani, Lasinger
and Schindler (ICCV 2015) do it for many views, all rays at once.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

if TYPE_CHECKING:
    from nsr.training.stereo import PlaneSweep

ROUNDS, SETTLING = 8, 8  # rounds of `refine`, and of `settle`
TRIALS = 3  # planes of neighbours per round, and as many random ones
CONTEST = 3  # neighbours of which the best matched passes on its plane
DEPTH, TILT = 1.0, 0.7  # standard deviations of the first random changes: sweep voxels, and tangent of the angle
NARROWER = 0.8  # what remains of these from round to round
SETTLING_DEPTH, SETTLING_TILT = 0.5, 0.2  # the same while settling, in all rounds
SETTLING_PASSES = 2  # planes of neighbours per round then, and one random one
MATCHES = 0.97  # score from which a plane is left alone
GRAZING = 0.1  # cosine between a plane's normal and its ray under which it is not tried
FARTHEST = 10.0  # voxels by which a neighbour's plane may lie before or behind the neighbour
SHARE_WEIGHT = 0.6  # what a plane counts, beside its score, that all rays beside share
ON_PLANE = 1.0  # voxels off a plane at which a ray beside shares it
PLAUSIBLE = 0.5  # score from which a ray beside has a say
SETTLED = 0.9  # share of the rays beside from which a plane that matches is left alone

# Of the rays around one, in the grid of its view: those beside it, and some further away.
_BESIDE = [(y, x) for y in (-1, 0, 1) for x in (-1, 0, 1) if (y, x) != (0, 0)]
_NEIGHBOURS = [*_BESIDE, (-3, 0), (3, 0), (0, -3), (0, 3), (-2, -2), (-2, 2), (2, -2), (2, 2)]
_REACH = 3


class PatchMatch:
    """Planes through the N swept rays: their distance [N] from the cameras along the rays, unit normal [N, 3] and score [N]."""

    def __init__(self, sweep: PlaneSweep, distance: Float[Tensor, " N"], generator: torch.Generator) -> None:
        """distance: where to begin, with planes that face the rays."""
        self.sweep, self.generator = sweep, generator
        self.distance, self.normal = distance.clone(), -sweep.rays.directions
        self.score = sweep.score(self.distance, self.normal, torch.arange(len(distance), device=distance.device))
        views, height, width = sweep.swept.shape
        # Which ray is where in the grids, framed so that neighbours need no test for the border.
        self.grid = torch.full((views, height + 2 * _REACH, width + 2 * _REACH), -1, device=distance.device)
        inner = self.grid[:, _REACH : _REACH + height, _REACH : _REACH + width]
        inner[sweep.swept] = torch.arange(len(distance), device=distance.device)
        places = torch.tensor(_NEIGHBOURS, device=distance.device)
        self.step = places[:, 0] * self.grid.shape[2] + places[:, 1]
        self.place = (self.grid.view(-1) >= 0).nonzero()[:, 0]  # rays are numbered in the order of the grid
        self.beside = self.grid.view(-1)[self.place[:, None] + self.step[: len(_BESIDE)]]  # [N, 8], -1 where there is none

    def refine(self) -> None:
        """Search for better planes."""
        depth, tilt = DEPTH * self.sweep.hull.size, TILT
        for _ in range(ROUNDS):
            which = (self.score < MATCHES).nonzero()[:, 0]
            for _ in range(TRIALS):
                self._try(*self._of_neighbours(which), which)
                self._try(*self._changed(which, depth, tilt), which)
            depth, tilt = depth * NARROWER, tilt * NARROWER

    def settle(self) -> None:
        """Search on for planes that match and that the rays beside share.

        What few views see matches best on a wrong plane more often than not, but on another one along every ray; planes on
        which neighbours agree are true. (Xu and Tao, "Planar Prior Assisted PatchMatch", AAAI 2020, get their prior from
        triangles between the surest points.)
        """
        depth, tilt = SETTLING_DEPTH * self.sweep.hull.size, SETTLING_TILT
        for _ in range(SETTLING):
            beside = self._beside(self.plausible())
            which = ((self.score < MATCHES) | (self._share_of(beside) < SETTLED)).nonzero()[:, 0]
            beside = beside[which]
            for _ in range(SETTLING_PASSES):
                self._try(*self._of_neighbours(which), which, beside)
            self._try(*self._changed(which, depth, tilt), which, beside)

    def plausible(self) -> Float[Tensor, " N"]:
        """The planes' distances, NaN where they match badly."""
        return torch.where(self.score > PLAUSIBLE, self.distance, torch.nan)

    def share(self, depths: Float[Tensor, " N"]) -> Float[Tensor, " N"]:
        """Which share of the eight rays beside each ray have found what lies on the ray's plane.

        depths: what the rays have found along themselves, NaN for nothing.
        """
        return self._share_of(self._beside(depths))

    def with_those_beside(self, scores: Float[Tensor, "N T"]) -> Float[Tensor, "N T"]:
        """The scores at T places along each ray, averaged with the best within a step of them along the rays beside.

        scores: -1 for what is not known; along the rays beside, that does not count.
        """
        nearby = F.max_pool1d(scores[None], kernel_size=3, stride=1, padding=1)[0]
        known = nearby > -1.0
        total, count = scores.clone(), torch.ones_like(scores)
        for beside in self.beside.T:
            there = known[beside] & (beside >= 0)[:, None]
            total += torch.where(there, nearby[beside], 0.0)
            count += there
        return total / count

    def _beside(self, depths: Float[Tensor, " N"]) -> Float[Tensor, "N 8 3"]:
        """What the rays beside each have found, relative to the ray's camera; NaN where there is none."""
        found = self.sweep.rays.at(depths)[self.beside] - self.sweep.rays.origins[:, None]
        return torch.where(self.beside[..., None] >= 0, found, torch.nan)

    def _share_of(self, beside: Float[Tensor, "N 8 3"]) -> Float[Tensor, " N"]:
        """Which share of what the rays beside have found, see _beside, lies on the planes of all rays."""
        return self._shared(self.distance, self.normal, self.sweep.rays.directions, beside)

    def _shared(self, distance: Tensor, normal: Tensor, directions: Tensor, beside: Tensor) -> Float[Tensor, " M"]:
        """The same for any planes: at a distance [M] along directions [M, 3] of rays, with normals [M, 3]."""
        height = distance * (normal * directions).sum(dim=-1)
        off = ((beside * normal[:, None]).sum(dim=-1) - height[:, None]).abs()
        return (off < ON_PLANE * self.sweep.hull.size).float().mean(dim=1)  # false for NaN

    def _try(self, distance: Tensor, normal: Tensor, which: Tensor, beside: Tensor | None = None) -> None:
        """Keep planes for the rays `which` where they match better.

        beside: [M, 8, 3] what the rays beside have found, see _beside; that they share a plane then counts too.
        """
        score = self.sweep.score(distance, normal, which)
        gain = score - self.score[which]
        if beside is not None:
            directions = self.sweep.rays.directions[which]
            own = self._shared(self.distance[which], self.normal[which], directions, beside)
            gain += SHARE_WEIGHT * (self._shared(distance, normal, directions, beside) - own)
        better = gain > 0
        rays = which[better]
        self.distance[rays], self.normal[rays], self.score[rays] = distance[better], normal[better], score[better]

    def _of_neighbours(self, which: Int[Tensor, " M"]) -> tuple[Float[Tensor, " M"], Float[Tensor, "M 3"]]:
        """The plane of the best of a few random neighbours of each ray, where the ray meets it."""
        chosen = torch.randint(len(self.step), (CONTEST, len(which)), generator=self.generator, device=which.device)
        rays = self.grid.view(-1)[self.place[which] + self.step[chosen]]
        scores = torch.where(rays >= 0, self.score[rays], -2.0)  # -1, of no ray, looks up the last one
        best = rays.gather(0, scores.argmax(dim=0, keepdim=True))[0]
        all_rays, normal = self.sweep.rays, self.normal[best]
        directions = all_rays.directions[which]
        point = all_rays.origins[best] + self.distance[best, None] * all_rays.directions[best]
        slope = (normal * directions).sum(dim=-1)
        distance = (normal * (point - all_rays.origins[which])).sum(dim=-1) / slope
        near = (distance - self.distance[best]).abs() < FARTHEST * self.sweep.hull.size  # false for NaN
        usable = (best >= 0) & (slope < -GRAZING) & near
        return torch.where(usable, distance, self.distance[which]), torch.where(usable[:, None], normal, self.normal[which])

    def _changed(self, which: Int[Tensor, " M"], depth: float, tilt: float) -> tuple[Float[Tensor, " M"], Float[Tensor, "M 3"]]:
        """The rays' own planes, changed at random."""
        noise = torch.randn(4, len(which), generator=self.generator, device=which.device)
        normal = F.normalize(self.normal[which] + tilt * noise[1:].T, dim=-1)
        faces = (normal * self.sweep.rays.directions[which]).sum(dim=-1) < -GRAZING
        return self.distance[which] + depth * noise[0], torch.where(faces[:, None], normal, self.normal[which])
