"""Do masks and cameras tell of one object? A coarse visual hull, thrown back into every view, answers view by view."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from nsr.geometry.cameras import project_all
from nsr.geometry.masks import dilate
from nsr.geometry.visual_hull import grid_axis
from nsr.types import OBJECT_MASK, Cameras

_FITS = 0.9  # share of a mask that the hull must fill
_PROGRESS = 0.03  # of what the masks still lack, to be gained by giving up a view
_SUSPECTS = 6  # views tried per round of the search for wrong ones


class HullConsistency:
    """The vertices of a grid in the unit ball, what each view says about them, and the shadows of hulls made of them.

    All views are looked at with masks shrunk until a voxel spans about two pixels.
    """

    def __init__(self, masks: Tensor, cameras: Cameras, resolution: int = 56):
        axis = grid_axis(resolution, 1.0, masks.device)
        points = torch.stack(torch.meshgrid(axis, axis, axis, indexing="ij"), dim=-1).reshape(-1, 3)
        self.points = points[points.norm(dim=-1) <= 1]
        self.views = len(cameras)
        factor = self._factor(cameras, float(axis[1] - axis[0]))
        share = torch.nn.functional.avg_pool2d((masks >= OBJECT_MASK).float(), factor, ceil_mode=True)
        self.masks = share >= 0.5  # [V, h, w]
        tolerant = dilate(share > 0, 1)
        height, width = self.masks.shape[1:]

        self.pixel = torch.empty(self.views, len(self.points), dtype=torch.long, device=masks.device)
        self.seen = torch.empty_like(self.pixel, dtype=torch.bool)
        self.missed = torch.empty_like(self.seen)
        for view in range(self.views):
            pixels, depth = project_all(cameras[view], self.points)
            column, row = ((pixels[0] + 0.5) / factor).floor().unbind(-1)
            self.seen[view] = (depth[0] > 0) & (column >= 0) & (column < width) & (row >= 0) & (row < height)
            self.pixel[view] = row.clamp(0, height - 1).long() * width + column.clamp(0, width - 1).long()
            self.missed[view] = self.seen[view] & ~tolerant[view].reshape(-1)[self.pixel[view]]
        # What of each mask can be filled at all: the rays that meet the ball.
        everything = torch.ones(len(self.points), dtype=torch.bool, device=masks.device)
        self.reachable = torch.stack([self.silhouette(everything, view) for view in range(self.views)])

    @staticmethod
    def _factor(cameras: Cameras, spacing: float) -> int:
        voxel = (cameras.focals * spacing / cameras.centers.norm(dim=-1).clamp_min(0.5)).median()
        return max(1, int(voxel / 2))

    def hull(self, views: Bool[Tensor, " V"]) -> Bool[Tensor, " P"]:
        """The points that none of the given views misses and at least two (all, when there are fewer) see."""
        enough = min(2, int(views.sum()))
        return ~self.missed[views].any(0) & (self.seen[views].sum(0) >= enough)

    def silhouette(self, hull: Bool[Tensor, " P"], view: int) -> Bool[Tensor, "h w"]:
        """The hull's shadow in a shrunk image."""
        image = torch.zeros_like(self.masks[view])
        image.view(-1)[self.pixel[view, hull & self.seen[view]]] = True
        return ~dilate(~dilate(image, 1), 1)  # closing fills the gaps between projected vertices

    def coverage(self, hull: Bool[Tensor, " P"]) -> Float[Tensor, " V"]:
        """[V] share of each view's mask, as far as it can be reached, that the hull fills."""
        shares = []
        for view in range(self.views):
            wanted = self.masks[view] & self.reachable[view]
            filled = (wanted & self.silhouette(hull, view)).sum()
            shares.append(filled / wanted.sum().clamp_min(1))
        return torch.stack(shares)

    def overlap(self, hull: Bool[Tensor, " P"]) -> Float[Tensor, " V"]:
        """[V] intersection over union of each view's mask and the hull's silhouette."""
        values = []
        for view in range(self.views):
            mask, silhouette = self.masks[view] & self.reachable[view], self.silhouette(hull, view)
            values.append((mask & silhouette).sum() / (mask | silhouette).sum().clamp_min(1))
        return torch.stack(values)

    def wrong_views(self) -> tuple[list[int], bool]:
        """The views without which the others agree, found greedily, and whether the others do agree.

        One wrong view cuts the hull and so leaves holes in the masks of all others: it is the one whose removal fills
        them again. At most a sixth of the views (one of a few) is given up, and each has to bring the others closer.
        """
        trusted = torch.ones(self.views, dtype=torch.bool, device=self.seen.device)
        wrong: list[int] = []
        while True:
            coverage = self.coverage(self.hull(trusted))
            if coverage[trusted].min() >= _FITS:
                return wrong, True
            if self.views < 4 or len(wrong) >= max(1, self.views // 6):
                return wrong, False
            view, mean = self._best_without(trusted, coverage)
            before = float(coverage[trusted].mean())
            if mean - before < _PROGRESS * (1 - before):
                return wrong, False
            trusted[view] = False
            wrong.append(view)

    def _best_without(self, trusted: Tensor, coverage: Tensor) -> tuple[int, float]:
        """The view whose removal leaves the highest mean coverage among the other trusted views, and that mean."""
        alone = trusted[:, None] & self.missed & (self.missed & trusted[:, None]).sum(0).eq(1)
        blame = alone.sum(1)  # points that this view alone carves
        suspects = blame.topk(min(_SUSPECTS, self.views)).indices.tolist()
        suspects += coverage.where(trusted, torch.ones_like(coverage)).topk(1, largest=False).indices.tolist()
        means = {}
        for view in {v for v in suspects if trusted[v]}:
            others = trusted.clone()
            others[view] = False
            means[view] = float(self.coverage(self.hull(others))[others].mean())
        best = max(means, key=means.get)
        return best, means[best]
