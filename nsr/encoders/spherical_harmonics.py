"""Real spherical harmonics of a unit direction, for view dependence."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from nsr.encoders.base import Encoder, VectorJacobian


@dataclass(frozen=True)
class SphericalHarmonicsConfig:
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
            value, rows = _band_2(x)
            blocks.append(value)
            derivatives.append(rows)
        if self.degree >= 3:
            value, rows = _band_3(x)
            blocks.append(value)
            derivatives.append(rows)

        def vjp(grad_value: Tensor) -> Tensor:
            if not derivatives:
                return grad_value
            jacobian = torch.cat(derivatives, dim=1)  # [N, C - 3, 3]
            return grad_value[:, :3] + torch.einsum("nc,ncd->nd", grad_value[:, 3:], jacobian)

        return torch.cat(blocks, dim=1), vjp


def _rows(*rows: tuple[Tensor, Tensor, Tensor]) -> Tensor:
    """The gradients of several functions, as a Jacobian [N, rows, 3]."""
    return torch.stack([torch.stack(row, dim=-1) for row in rows], dim=1)


def _band_2(d: Tensor) -> tuple[Tensor, Tensor]:
    x, y, z = d.unbind(-1)
    zero = torch.zeros_like(x)
    a, b, c = 1.0925484305920792, 0.31539156525252005, 0.5462742152960396
    value = torch.stack([a * x * y, a * y * z, b * (2 * z * z - x * x - y * y), a * x * z, c * (x * x - y * y)], dim=-1)
    jacobian = _rows(
        (a * y, a * x, zero),
        (zero, a * z, a * y),
        (-2 * b * x, -2 * b * y, 4 * b * z),
        (a * z, zero, a * x),
        (2 * c * x, -2 * c * y, zero),
    )
    return value, jacobian


def _band_3(d: Tensor) -> tuple[Tensor, Tensor]:
    x, y, z = d.unbind(-1)
    xx, yy, zz = x * x, y * y, z * z
    zero = torch.zeros_like(x)
    a, b, c, e, f = 0.5900435899266435, 2.890611442640554, 0.4570457994644658, 0.3731763325901154, 1.445305721320277
    value = torch.stack(
        [
            a * y * (3 * xx - yy),
            b * x * y * z,
            c * y * (4 * zz - xx - yy),
            e * z * (2 * zz - 3 * xx - 3 * yy),
            c * x * (4 * zz - xx - yy),
            f * z * (xx - yy),
            a * x * (xx - 3 * yy),
        ],
        dim=-1,
    )
    jacobian = _rows(
        (6 * a * x * y, 3 * a * (xx - yy), zero),
        (b * y * z, b * x * z, b * x * y),
        (-2 * c * x * y, c * (4 * zz - xx - 3 * yy), 8 * c * y * z),
        (-6 * e * x * z, -6 * e * y * z, e * (6 * zz - 3 * xx - 3 * yy)),
        (c * (4 * zz - 3 * xx - yy), -2 * c * x * y, 8 * c * x * z),
        (2 * f * x * z, -2 * f * y * z, f * (xx - yy)),
        (3 * a * (xx - yy), -6 * a * x * y, zero),
    )
    return value, jacobian
