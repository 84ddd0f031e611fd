"""Object masks as sets of pixels."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Bool
from torch import Tensor

from nsr.types import OBJECT_MASK


def is_object(masks: Tensor) -> Tensor:
    """Which pixels are object: masks that are bool as they are, of uint8 ones the values from 128 on."""
    return masks if masks.dtype == torch.bool else masks >= OBJECT_MASK


def halved(masks: Tensor, level: int) -> Bool[Tensor, "V h w"]:
    """Which pixels of the masks [V, H, W], halved `level` times, are object in at least half of their area.

    Odd last rows and columns are dropped, as level_cameras wants it.
    """
    if level == 0:
        return is_object(masks)
    # View by view: as floats, all masks at once would take four times as much.
    return torch.stack([F.avg_pool2d(is_object(mask).float()[None], 2**level)[0] >= 0.5 for mask in masks])


def dilate(masks: Bool[Tensor, "*V H W"], radius: int) -> Bool[Tensor, "*V H W"]:
    """True within a square of half side `radius` pixels around any True pixel of the same image; nothing comes in from outside.

    The square is separable, and a window of any length is a few shifted ORs of windows of doubled length.
    """
    for dim in (-2, -1):
        for direction in (1, -1):
            reach = 0
            while reach < radius:
                shift = min(reach + 1, radius - reach, masks.shape[dim])
                masks = masks | _shifted(masks, dim, direction * shift)
                reach += shift
    return masks


def _shifted(mask: Tensor, dim: int, shift: int) -> Tensor:
    """`mask` moved by `shift` along `dim`, False moving in."""
    length = mask.shape[dim]
    out = torch.zeros_like(mask)
    kept = length - abs(shift)
    if kept > 0:
        out.narrow(dim, max(shift, 0), kept).copy_(mask.narrow(dim, max(-shift, 0), kept))
    return out
