"""Choosing rows by flags with or without waiting for their number.

The number of rows that a flag chooses is known on the device alone. Where that is a GPU, whoever asks for it waits until all
work before it is done, and the shapes behind it differ from step to step. Padded, all rows are kept, those chosen first: a sum
over them leaves out the rest by `first_rows`.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Int
from torch import Tensor


def rows_where(flags: Bool[Tensor, " N"], padded: bool) -> Int[Tensor, " S"]:
    """The places of True, in their order; padded: behind them those of False, so that S = N whatever the flags are."""
    if padded:
        return flags.logical_not().to(torch.uint8).sort(stable=True).indices
    return flags.nonzero()[:, 0]


def first_rows(flags: Bool[Tensor, " N"]) -> Bool[Tensor, " N"]:
    """Which of the rows of rows_where(flags, padded=True) are places of True."""
    return torch.arange(len(flags), device=flags.device) < flags.sum()
