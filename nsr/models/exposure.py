"""Exposure, white balance and the like of each photograph: an affine map of colours per view, learned with the surface.

After Rematas et al. 2022 (Urban Radiance Fields, section 4.2). The rendering network then gives the colours of one average
photograph; without the maps it has to explain a darker photograph by the direction from which it was taken.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn


class AffineExposure(nn.Module):
    """One map c -> A c + b of colours for each of V views; the mean of the maps over the views is the identity.

    A is a full 3x3 matrix: gains alone give exposure and white balance, but not the saturation that cameras change as well.
    What an object of few hues leaves open of it, the penalty decides.
    The mean is fixed because the rendering network could undo any map that all views share: only differences are known.
    """

    def __init__(self, views: int) -> None:
        super().__init__()
        self.deviation = nn.Parameter(torch.zeros(views, 3, 4))

    def maps(self) -> Float[Tensor, "V 3 4"]:
        """[A | b] of every view."""
        return self._centred() + torch.eye(3, 4, dtype=self.deviation.dtype, device=self.deviation.device)

    def forward(self, rgb: Float[Tensor, "S 3"], view: Int[Tensor, " S"]) -> Float[Tensor, "S 3"]:
        """The colours as the photographs of the given views have them; not clamped to [0, 1]."""
        # index_select adds up gradients many times faster than indexing with [] does.
        chosen = self.maps().flatten(1).index_select(0, view).unflatten(1, (3, 4))
        return (chosen[:, :, :3] * rgb[:, None]).sum(dim=-1) + chosen[:, :, 3]

    def penalty(self) -> Tensor:
        """Mean square of all entries' differences from the identity."""
        return self._centred().square().mean()

    def _centred(self) -> Tensor:
        return self.deviation - self.deviation.mean(dim=0)
