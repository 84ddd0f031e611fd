"""Grey image pyramids of the object alone, for comparing patches of photographs, and how large the patches must be."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from nsr.types import OBJECT_MASK, Scene

ENOUGH_VIEWS = 8  # to judge the texture of all by
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


def patch_side(grey: Float[Tensor, "V H W"], sides: tuple[int, ...], contrast: float) -> int:
    """The smallest of the sides, which ascend, with which the square patch around half of the pixels says enough;
    else the largest that the images hold.

    How exactly a patch can be placed depends on how much its grey values differ in all: enough is where the root of the sum of
    their squared differences from their mean is `contrast`. The smaller a patch, the less it blurs what is not flat.
    """
    grey = grey[:: max(len(grey) // ENOUGH_VIEWS, 1)]
    fitting = [side for side in sides if side <= min(grey.shape[1:])] or [sides[0]]
    for side in fitting[:-1]:
        energy = torch.cat([_energy(image, side) for image in grey])
        if len(energy) and energy.median() >= contrast**2:
            return side
    return fitting[-1]


def _energy(image: Float[Tensor, "H W"], side: int) -> Float[Tensor, " P"]:
    """Sum of squared differences from the mean over each patch that lies on the object."""
    mean, square = (F.avg_pool2d(x[None, None], side, stride=1)[0, 0] for x in (image, image.square()))
    energy = (square - mean.square()) * side**2
    return energy[energy.isfinite()]
