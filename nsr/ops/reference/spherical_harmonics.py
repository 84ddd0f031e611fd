"""Real spherical harmonics as polynomials of a direction (Ramamoorthi & Hanrahan 2001, eq. 3, extended to band 3)."""

from __future__ import annotations

import torch
from torch import Tensor


def spherical_harmonics(d: Tensor, degree: int) -> Tensor:
    """[N, (degree + 1)^2 - 1] of d [N, 3]: d itself for band 1, then the bands 2 .. degree, degree <= 3."""
    bands = (band_2, band_3)[: degree - 1]
    return torch.cat([d, *(band(d)[0] for band in bands)], dim=1)


def _rows(*rows: tuple[Tensor, Tensor, Tensor]) -> Tensor:
    """The gradients of several functions, as a Jacobian [N, rows, 3]."""
    return torch.stack([torch.stack(row, dim=-1) for row in rows], dim=1)


def band_2(d: Tensor) -> tuple[Tensor, Tensor]:
    """Value [N, 5] and Jacobian [N, 5, 3] at d [N, 3]."""
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


def band_3(d: Tensor) -> tuple[Tensor, Tensor]:
    """Value [N, 7] and Jacobian [N, 7, 3] at d [N, 3]."""
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
