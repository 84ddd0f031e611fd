"""Grey image pyramids of the object alone, for comparing patches of photographs."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from nsr.types import OBJECT_MASK, Scene

LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601


def grey_pyramid(scene: Scene, levels: int) -> list[Float[Tensor, "V H W"]]:
    """Grey values in [0, 1] of the photographs, NaN off the object, at full size and halved levels - 1 times.

    A coarse pixel is the mean of the object's pixels under it; it is off the object where these are fewer than half.
    Odd last rows and columns are dropped when halving, as their pixels would be cut.
    """
    weights = torch.tensor(LUMA, device=scene.images.device) / 255.0
    inside = (scene.masks >= OBJECT_MASK).float()
    # View by view: as floats, all colour images at once would take four times the data set.
    value = torch.stack([image.float() @ weights for image in scene.images]) * inside
    share, pyramid = inside, []
    for level in range(levels):
        if level:
            value, share = (F.avg_pool2d(x[:, None], 2)[:, 0] for x in (value, share))
        pyramid.append(torch.where(share >= 0.5, value / share.clamp_min(0.5), torch.nan))
    return pyramid
