"""The shapes of the built-in scenes as functions: points [N, 3] in the scene frame -> distance-like values [N].

y is up and the front looks along +z; everything lies within 0.81 of the origin. Values are negative inside, their
gradient is about one near the surface. Parts are joined by a polynomial smooth minimum (Quilez, "Smooth minimum").
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import normalize

Point = tuple[float, float, float]


def _vector(values: Point, like: Tensor) -> Tensor:
    return torch.tensor(values, dtype=like.dtype, device=like.device)


def _sphere(x: Tensor, center: Point, radius: float) -> Tensor:
    return (x - _vector(center, x)).norm(dim=-1) - radius


def _ellipsoid(x: Tensor, center: Point, radii: Point) -> Tensor:
    """First-order distance (k - 1) k / |grad k^2 / 2| with k the scaled radius: exact at the surface to first order."""
    r = _vector(radii, x)
    local = x - _vector(center, x)
    k = (local / r).norm(dim=-1)
    return k * (k - 1) / (local / r**2).norm(dim=-1).clamp_min(1e-9)


def _cone(x: Tensor, start: Point, end: Point, radius_start: float, radius_end: float) -> Tensor:
    """A capsule from start to end whose radius changes linearly."""
    a, b = _vector(start, x), _vector(end, x)
    axis = b - a
    t = ((x - a) @ axis / axis.dot(axis)).clamp(0, 1)
    return (x - a - t[:, None] * axis).norm(dim=-1) - radius_start - t * (radius_end - radius_start)


def _torus(x: Tensor, center: Point, tilt: float, major: float, minor: float, squash: float = 1.0) -> Tensor:
    """A ring about an axis that leans from y towards z by tilt; squash narrows it along z."""
    local = x - _vector(center, x)
    height = local[:, 1] + tilt * local[:, 2]
    ring = torch.hypot(local[:, 0], local[:, 2] / squash) - major
    return torch.hypot(ring, height) - minor


def _union(a: Tensor, b: Tensor, smooth: float) -> Tensor:
    blend = (smooth - (a - b).abs()).clamp_min(0) / smooth
    return torch.minimum(a, b) - blend**2 * smooth / 4


def _minus(a: Tensor, b: Tensor, smooth: float) -> Tensor:
    """The part of a that is outside b."""
    return -_union(-a, b, smooth)


def _both(a: Tensor, b: Tensor, smooth: float) -> Tensor:
    return -_union(-a, -b, smooth)


def _step(value: Tensor, low: float, high: float) -> Tensor:
    """0 below low, 1 above high, smooth between (Hermite); low > high turns it round."""
    t = ((value - low) / (high - low)).clamp(0, 1)
    return t * t * (3 - 2 * t)


def bust(x: Tensor) -> Tensor:
    """A head with hair, on shoulders with a rope for a collar, on a round socle: silhouettes show nearly all of it."""
    mirrored = torch.stack([x[:, 0].abs(), x[:, 1], x[:, 2]], dim=-1)
    head = _ears(_face(_skull(mirrored), mirrored), mirrored)
    body = _union(_torso(mirrored), _cone(mirrored, (0, -0.36, -0.09), (0, 0.06, -0.05), 0.135, 0.125), 0.08)
    shape = _union(body, head, 0.05)
    shape = _union(shape, _hair(x), 0.02)
    shape = _union(shape, _collar(x), 0.015)
    return _union(shape, _socle(x), 0.02)


def _skull(x: Tensor) -> Tensor:
    skull = _ellipsoid(x, (0, 0.37, -0.05), (0.25, 0.27, 0.30))
    face = _ellipsoid(x, (0, 0.22, 0.04), (0.205, 0.30, 0.245))
    skull = _union(skull, face, 0.10)
    jaw = _cone(x, (0.13, 0.09, 0.02), (0.03, -0.035, 0.175), 0.06, 0.05)
    skull = _union(skull, jaw, 0.09)
    return _union(skull, _ellipsoid(x, (0.115, 0.19, 0.165), (0.07, 0.055, 0.07)), 0.07)  # cheek bone


def _face(head: Tensor, x: Tensor) -> Tensor:
    """Brows, eyes, nose and mouth, each of them in the half x >= 0."""
    head = _minus(head, _ellipsoid(x, (0.092, 0.262, 0.315), (0.066, 0.042, 0.055)), 0.05)
    head = _union(head, _cone(x, (0.03, 0.318, 0.268), (0.165, 0.315, 0.205), 0.022, 0.014), 0.035)
    eye = _sphere(x, (0.09, 0.257, 0.222), 0.046)
    lids = torch.minimum(
        _cone(x, (0.048, 0.253, 0.262), (0.092, 0.281, 0.267), 0.009, 0.011),
        _cone(x, (0.092, 0.281, 0.267), (0.138, 0.254, 0.235), 0.011, 0.008),
    )
    lids = torch.minimum(lids, _cone(x, (0.055, 0.243, 0.262), (0.128, 0.240, 0.245), 0.008, 0.008))
    head = _union(_union(head, eye, 0.012), lids, 0.010)

    nose = _cone(x, (0, 0.30, 0.262), (0, 0.165, 0.335), 0.020, 0.034)
    nose = _union(nose, _sphere(x, (0.034, 0.150, 0.298), 0.026), 0.025)
    nose = _minus(nose, _ellipsoid(x, (0.021, 0.128, 0.312), (0.011, 0.014, 0.015)), 0.008)
    head = _union(head, nose, 0.03)

    head = _minus(head, _cone(x, (0, 0.125, 0.318), (0, 0.083, 0.322), 0.008, 0.012), 0.016)  # groove above the lip
    upper = _cone(x, (0.010, 0.072, 0.283), (0.070, 0.055, 0.243), 0.019, 0.009)
    lower = _cone(x, (0, 0.040, 0.279), (0.056, 0.047, 0.246), 0.023, 0.010)
    head = _union(_union(head, upper, 0.018), lower, 0.018)
    head = _minus(head, _cone(x, (0, 0.057, 0.305), (0.074, 0.053, 0.258), 0.006, 0.004), 0.008)
    return _union(head, _sphere(x, (0, -0.040, 0.218), 0.052), 0.06)  # chin


def _ears(head: Tensor, x: Tensor) -> Tensor:
    ear = _ellipsoid(x, (0.247, 0.235, -0.035), (0.036, 0.088, 0.056))
    ear = _minus(ear, _ellipsoid(x, (0.286, 0.250, -0.022), (0.028, 0.055, 0.030)), 0.012)
    ear = _union(ear, _ellipsoid(x, (0.258, 0.225, -0.005), (0.016, 0.024, 0.012)), 0.012)
    return _union(head, ear, 0.02)


def _hair(x: Tensor) -> Tensor:
    """A cap of waves that leaves the face and the ears free; the relief runs back from the parting."""
    cap = _ellipsoid(x, (0, 0.375, -0.075), (0.283, 0.292, 0.315))
    cap = _union(cap, _ellipsoid(x, (0, 0.17, -0.20), (0.20, 0.20, 0.15)), 0.08)
    opening = _ellipsoid(x, (0, 0.17, 0.30), (0.245, 0.285, 0.235))
    cap = _minus(cap, opening, 0.03)
    mirrored = torch.stack([x[:, 0].abs(), x[:, 1], x[:, 2]], dim=-1)
    cap = _minus(cap, _ellipsoid(mirrored, (0.29, 0.20, -0.02), (0.11, 0.14, 0.10)), 0.025)

    side = x[:, 0] - 0.06  # the parting is off centre
    angle = torch.atan2(side, x[:, 1] + 0.12)  # locks fan out from a point in the neck
    flow = 58 * angle + 5 * torch.sin(9 * x[:, 2] + 3 * x[:, 1]) + 2 * torch.sin(14 * x[:, 1] - 4 * x[:, 0])
    locks = 0.0085 * torch.sin(flow) + 0.0035 * torch.sin(2.3 * flow + 20 * x[:, 2])
    parting = 0.012 * torch.exp(-((side / 0.014) ** 2)) * _step(x[:, 1], 0.5, 0.58)
    return cap - locks * _step(x[:, 1], 0.05, 0.20) + parting


def _torso(x: Tensor) -> Tensor:
    shoulders = _cone(x, (0, -0.40, -0.08), (0.40, -0.50, -0.09), 0.15, 0.125)
    chest = _ellipsoid(x, (0, -0.50, -0.03), (0.40, 0.24, 0.20))
    torso = _union(shoulders, chest, 0.12)
    # The bust ends in an arc below, as sculptors cut it.
    keep = _ellipsoid(x, (0, -0.36, -0.05), (0.58, 0.30, 0.60))
    torso = _both(torso, keep, 0.03)
    folds = torch.sin(38 * (x[:, 0] - 0.8 * x[:, 1]) + 2.5 * torch.sin(11 * x[:, 1] + 8 * x[:, 2]))
    cloth = _step(x[:, 1], -0.34, -0.44) * _step(x[:, 0], 0.04, 0.12)
    return torso - 0.008 * folds * cloth


def _collar(x: Tensor) -> Tensor:
    collar = _torus(x, (0, -0.285, -0.065), 0.26, 0.186, 0.034, squash=0.95)
    rope = torch.sin(16 * torch.atan2(x[:, 0], x[:, 2] + 0.065) + 60 * (x[:, 1] + 0.285))
    collar = collar - 0.006 * rope
    clasp = _ellipsoid(x, (0, -0.335, 0.140), (0.045, 0.045, 0.030))
    clasp = _minus(clasp, _sphere(x, (0, -0.335, 0.178), 0.024), 0.006)
    return _union(collar, clasp, 0.012)


def _socle(x: Tensor) -> Tensor:
    """A turned foot: a profile of radius over height."""
    y = x[:, 1]
    profile = 0.150 + 0.075 * _step(y, -0.66, -0.72) - 0.018 * torch.exp(-(((y + 0.685) / 0.014) ** 2))
    side = (torch.hypot(x[:, 0], x[:, 2] + 0.05) - profile) * 0.8
    return _both(side, torch.maximum(-0.765 - y, y + 0.58), 0.02)


# Cavities of `dents`: direction of the mouth, its radius, depth of the chamber below the surface, the chamber's radius.
_CAVITIES: tuple[tuple[Point, float, float, float], ...] = (
    ((0.10, 0.15, 1.00), 0.16, 0.27, 0.20),
    ((-0.85, 0.30, 0.55), 0.14, 0.25, 0.18),
    ((0.90, 0.05, 0.45), 0.16, 0.25, 0.15),
    ((0.35, 0.85, 0.45), 0.14, 0.20, 0.17),
    ((-0.45, -0.55, 0.75), 0.16, 0.24, 0.18),
    ((0.55, -0.65, 0.50), 0.14, 0.20, 0.13),
)


def dents(x: Tensor) -> Tensor:
    """A rounded body with six deep cavities, most of them wider inside than at the mouth: no silhouette shows them."""
    radius = 0.74
    # Between a ball and a cube (exponent 2.6), gently lumpy.
    body = (x / radius).abs().pow(2.6).sum(dim=-1).clamp_min(1e-9).pow(1 / 2.6) * radius
    unit = normalize(x, dim=-1)
    lumps = torch.sin(5 * unit[:, 0] + 1) * torch.sin(6 * unit[:, 1]) + torch.sin(7 * unit[:, 2] + 4 * unit[:, 0])
    body = body - radius + 0.045 + 0.012 * lumps
    for direction, mouth, depth, chamber in _CAVITIES:
        axis = normalize(_vector(direction, x), dim=0)
        bottom, outside = (tuple((axis * r).tolist()) for r in (0.70 - depth, 0.95))
        cavity = _union(_cone(x, bottom, outside, mouth, mouth + 0.04), _sphere(x, bottom, chamber), 0.06)
        body = _minus(body, cavity, 0.04)
    return body


SHAPES = {"bust": bust, "dents": dents}
