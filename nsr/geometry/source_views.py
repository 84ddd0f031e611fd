"""Which other views to compare a view with: close enough to look alike, far enough apart to tell depth."""

from __future__ import annotations

import math

import torch
from jaxtyping import Int
from torch import Tensor

from nsr.types import Cameras


def source_views(cameras: Cameras, count: int, min_angle: float, max_angle: float = 60.0) -> Int[Tensor, "V count"]:
    """For each of V views, up to `count` others, nearest first; -1 where there are no more.

    Near means a small angle, at the origin, where the object is, between the lines to the two camera centres. A view is taken
    when it is at least min_angle from the view itself and from those taken before it, so that the sources lie all round the
    view, and at most max_angle from it, beyond which patches look too different (degrees).
    """
    lines = torch.nn.functional.normalize(cameras.centers.detach().double().cpu(), dim=-1)
    angles = torch.rad2deg(torch.acos((lines @ lines.T).clamp(-1.0, 1.0)))
    # Regular rings of cameras hit whole numbers of degrees exactly, but for rounding.
    least, most = min_angle * (1.0 - 1e-6), max_angle * (1.0 + 1e-6)
    table = torch.full((len(cameras), count), -1)
    for view in range(len(cameras)):
        taken: list[int] = []
        for other in angles[view].argsort(stable=True).tolist():
            if len(taken) == count or angles[view, other] > most:
                break
            if other != view and min((angles[other, k].item() for k in (view, *taken)), default=math.inf) >= least:
                taken.append(other)
        table[view, : len(taken)] = torch.tensor(taken, dtype=torch.long)
    return table.to(cameras.centers.device)
