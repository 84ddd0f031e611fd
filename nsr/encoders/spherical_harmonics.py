"""Real spherical harmonics of a unit direction, for view dependence."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from nsr.encoders.base import Encoder, EncoderConfig, VectorJacobian
from nsr.ops.reference.spherical_harmonics import band_2, band_3


@dataclass(frozen=True)
class SphericalHarmonicsConfig(EncoderConfig):
    """degree: highest band; degree 3 gives 15 functions beside the constant, which is left to the network's bias."""

    degree: int = 3

    def __post_init__(self) -> None:
        if not 1 <= self.degree <= 3:
            raise ValueError(f"degree must be 1, 2 or 3, got {self.degree}")

    def build(self) -> SphericalHarmonicsEncoder:
        return SphericalHarmonicsEncoder(self.degree)


class SphericalHarmonicsEncoder(Encoder):
    """d [N, 3], unit -> [N, (degree + 1)^2 - 1]: d itself, then the bands 2 .. degree.

    Band 1 is proportional to d, so d stands for it. The polynomials are homogeneous and normalised on the unit sphere up to the
    common factor that orthonormality would give (Ramamoorthi & Hanrahan 2001, eq. 3, extended to band 3).
    """

    def __init__(self, degree: int) -> None:
        super().__init__()
        self.degree = degree
        self.output_dim = (degree + 1) ** 2 - 1

    def forward(self, x: Tensor) -> Tensor:
        return self.forward_with_vjp(x)[0]

    def forward_with_vjp(self, x: Tensor) -> tuple[Tensor, VectorJacobian]:
        blocks, derivatives = [x], []
        if self.degree >= 2:
            value, rows = band_2(x)
            blocks.append(value)
            derivatives.append(rows)
        if self.degree >= 3:
            value, rows = band_3(x)
            blocks.append(value)
            derivatives.append(rows)

        def vjp(grad_value: Tensor) -> Tensor:
            if not derivatives:
                return grad_value
            jacobian = torch.cat(derivatives, dim=1)  # [N, C - 3, 3]
            return grad_value[:, :3] + torch.einsum("nc,ncd->nd", grad_value[:, 3:], jacobian)

        return torch.cat(blocks, dim=1), vjp
