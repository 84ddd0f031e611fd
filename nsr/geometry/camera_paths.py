"""Paths for cameras around an object, made from the training cameras: turntable, flight along them, orbit among them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor, nn

from nsr.geometry.poses import look_at, mean_up
from nsr.types import Cameras

_ALL_ROUND = np.radians(121)  # cameras with no wider gap in azimuth stand all round; three evenly spaced ones do
_OVERHEAD = np.radians(75)  # elevation from which on an azimuth says little
_CALM = np.radians(20)  # how far an ellipse goes up and down at most, as cameras all over a ball would have it turn somersaults
_LEAST_CIRCLE = np.radians(8)  # radius of the path about cameras that all stand in one place


def orbit_cameras(cameras: Cameras, n: int) -> Cameras:
    """n cameras on a smooth closed path that stays where the training cameras have been, all looking at the origin.

    In azimuth and elevation about the mean up direction: a full circle at the median elevation where the cameras stand all
    round (no gap in azimuth of more than a third of the circle); else an ellipse in the convex hull of the cameras, about its
    centre, as wide as fits and at most 40 degrees high; a way there and back where they stand in a line; and a circle of 8
    degrees, the one path that goes beyond, about a single place. The logarithm of the distance is a linear function of the
    direction, fitted by least squares and kept between those of the nearest and of the farthest camera.

    Cameras are in the scene frame; the intrinsics are those of the first.
    """
    up = mean_up(cameras)
    directions, distance = _directions(cameras)
    frame = _level_frame(directions, up.detach().cpu().double().numpy())
    around, above, widest_gap = _azimuth_elevation(directions @ frame.T)
    phase = np.arange(n) / n * 2 * np.pi
    if widest_gap <= _ALL_ROUND:
        path = np.stack([phase, np.full(n, np.median(above))], axis=1)
    else:
        middle, first, second = _ellipse_within(np.stack([around, above], axis=1))
        path = middle + np.cos(phase)[:, None] * first + np.sin(phase)[:, None] * second
    level = np.cos(path[:, 1])
    towards = np.stack([level * np.cos(path[:, 0]), level * np.sin(path[:, 0]), np.sin(path[:, 1])], axis=1) @ frame
    basis, wanted = (np.concatenate([np.ones((len(d), 1)), d], axis=1) for d in (directions, towards))
    fitted = wanted @ np.linalg.lstsq(basis, np.log(distance), rcond=1e-6)[0]
    eye = towards * np.exp(fitted).clip(distance.min(), distance.max())[:, None]
    eye = torch.as_tensor(eye).to(cameras.camera_to_world)
    return _path(cameras, eye, up)


def _directions(cameras: Cameras) -> tuple[np.ndarray, np.ndarray]:
    """Of the centres from the origin: unit vectors [N, 3], and distances [N]."""
    centers = cameras.centers.detach().cpu().double().numpy()
    distance = np.linalg.norm(centers, axis=1)
    return centers / distance[:, None], distance


def _path(cameras: Cameras, eye: Tensor, up: Tensor) -> Cameras:
    """Cameras at eye [N, 3] that look at the origin, with the intrinsics of the first of `cameras`."""
    pose = look_at(eye, torch.zeros_like(up), up)
    return replace(cameras, intrinsics=cameras.intrinsics[:1].expand(len(eye), 3, 3).clone(), camera_to_world=pose)


def _level_frame(directions: np.ndarray, up: np.ndarray) -> np.ndarray:
    """[3, 3] rows: the middle of the directions made level, to its left, up. Azimuth 0 is that middle."""
    front = directions.mean(0) - (directions.mean(0) @ up) * up
    if np.linalg.norm(front) < 1e-3:  # all round: begin at the most level view
        front = directions[np.abs(directions @ up).argmin()]
        front = front - (front @ up) * up
    if np.linalg.norm(front) < 1e-3:  # all of them overhead
        front = np.linalg.svd(up[None])[2][1]
    front = front / np.linalg.norm(front)
    return np.stack([front, np.cross(up, front), up])


def _azimuth_elevation(directions: np.ndarray) -> tuple[np.ndarray, np.ndarray, float]:
    """Of the directions that are not overhead (of all, where all are), in radians: azimuths, continuous around their middle,
    and elevations; and the widest gap between neighbouring azimuths."""
    above = np.arcsin(directions[:, 2].clip(-1, 1))
    aside = np.abs(above) < _OVERHEAD
    aside = aside if aside.any() else ~aside
    around = np.arctan2(directions[aside, 1], directions[aside, 0])
    # Cut the circle in the widest gap between neighbours, not behind the middle.
    ordered = np.sort(around)
    gaps = np.diff(ordered, append=ordered[0] + 2 * np.pi)
    cut = ordered[gaps.argmax()]
    return np.where(around > cut, around - 2 * np.pi, around), above[aside], float(gaps.max())


def _ellipse_within(points: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Centre and two conjugate radii, [2] each, of an ellipse in the convex hull of points [N, 2] (azimuth, elevation)."""
    from scipy.spatial import ConvexHull

    middle = points.mean(0)
    extents, axes = np.linalg.svd(points - middle, full_matrices=False)[1:]
    if extents[0] < 1e-6:  # one place
        return middle, np.array([_LEAST_CIRCLE / np.cos(middle[1]), 0]), np.array([0, _LEAST_CIRCLE])
    if len(extents) < 2 or extents[1] < 1e-3 * extents[0]:  # a line
        along = (points - middle) @ axes[0]
        return middle + (along.max() + along.min()) / 2 * axes[0], (along.max() - along.min()) / 2 * axes[0], np.zeros(2)
    hull = ConvexHull(points)
    centre, covariance = _polygon_moments(points[hull.vertices])
    # The ellipse of that covariance reaches sqrt(a C a) in the direction a; each side a x + b <= 0 of the hull bounds it.
    normals, offsets = hull.equations[:, :2], hull.equations[:, 2]
    reach = np.sqrt(np.einsum("si,ij,sj->s", normals, covariance, normals))
    scale = (-(normals @ centre + offsets) / reach).min()
    sideways, upright = scale * np.linalg.cholesky(covariance).T
    calm = min(1.0, _CALM / np.hypot(sideways[1], upright[1]))  # elevations go that far up and down; smaller stays in the hull
    return centre, calm * sideways, calm * upright


def _polygon_moments(corners: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Centroid [2] and covariance [2, 2] of a convex polygon's area, from the triangles about its first corner."""
    triangles = np.stack([np.broadcast_to(corners[0], corners[2:].shape), corners[1:-1], corners[2:]], axis=1)  # [T, 3, 2]
    areas = np.abs(np.linalg.det(triangles[:, 1:] - triangles[:, :1])) / 2
    weights, centres = areas / areas.sum(), triangles.mean(1)
    centre = weights @ centres
    inner = triangles - centres[:, None]
    within = np.einsum("t,tci,tcj->ij", weights, inner, inner) / 12
    between = np.einsum("t,ti,tj->ij", weights, centres - centre, centres - centre)
    return centre, within + between


def turntable_cameras(cameras: Cameras, n: int) -> Cameras:
    """n cameras on a full circle around the origin, about the mean up direction of `cameras`.

    The circle starts at the middle of the given cameras and keeps their median elevation, at most 30 degrees. Its
    distance is the smallest from which the unit sphere, and so the whole object, lies inside the image.
    Cameras are in the scene frame; the intrinsics are those of the first.
    """
    up = mean_up(cameras)
    directions = nn.functional.normalize(cameras.centers, dim=-1)
    elevation = torch.asin((directions @ up).clamp(-1, 1)).median().clamp(-torch.pi / 6, torch.pi / 6)
    front = directions.mean(0)
    front = front - (front @ up) * up
    if front.norm() < 1e-3:  # all round already: begin at the first view
        front = directions[0] - (directions[0] @ up) * up
    front = nn.functional.normalize(front, dim=-1)
    side = torch.linalg.cross(up, front)
    angle = torch.arange(n, device=up.device, dtype=up.dtype) * (2 * torch.pi / n)
    around = angle.cos()[:, None] * front + angle.sin()[:, None] * side
    eye = _distance_to_fit(cameras) * (elevation.cos() * around + elevation.sin() * up)
    return _path(cameras, eye, up)


def spline_cameras(cameras: Cameras, n: int, keys: int = 8) -> Cameras:
    """n cameras on a smooth closed path near the training cameras, all looking at the origin.

    Up to `keys` views, chosen far from each other, are joined in a short round trip; a periodic cubic spline runs
    through their directions and distances, close views in little time. Cameras are in the scene frame; the
    intrinsics are those of the first.
    """
    from scipy.interpolate import CubicSpline

    directions, distance = _directions(cameras)
    order = _round_trip(directions, _spread(directions, keys))
    if len(order) < 3:  # too few for a round trip: a small circle about the middle of them
        directions = _circle_about(directions)
        distance = np.full(len(directions), distance.mean())
        order = list(range(len(directions)))
    knots = np.concatenate([directions[order], np.log(distance[order])[:, None]], axis=1)
    knots = np.concatenate([knots, knots[:1]])
    # Chord lengths as parameter: close knots take little time.
    time = np.concatenate([[0], np.cumsum(np.linalg.norm(np.diff(knots[:, :3], axis=0), axis=1).clip(1e-3))])
    values = CubicSpline(time, knots, bc_type="periodic")(np.arange(n) / n * time[-1])
    eye = values[:, :3] / np.linalg.norm(values[:, :3], axis=1, keepdims=True) * np.exp(values[:, 3:])
    eye = torch.as_tensor(eye).to(cameras.camera_to_world)
    return _path(cameras, eye, mean_up(cameras))


def _distance_to_fit(cameras: Cameras) -> Tensor:
    """Distance from which the unit sphere touches the nearest image border: the border and the centre span a plane."""
    k = cameras.intrinsics[0]
    left, right = (k[0, 2] + 0.5) / k[0, 0], (cameras.width - 0.5 - k[0, 2]) / k[0, 0]
    top, bottom = (k[1, 2] + 0.5) / k[1, 1], (cameras.height - 0.5 - k[1, 2]) / k[1, 1]
    tangent = torch.stack([left, right, top, bottom]).min().clamp_min(0.05)
    return 1 / torch.sin(torch.atan(tangent))


def _spread(directions: np.ndarray, count: int) -> list[int]:
    """Up to `count` views, each the farthest from those chosen before it."""
    chosen = [0]
    nearest = np.linalg.norm(directions - directions[0], axis=1)
    while len(chosen) < min(count, len(directions)) and nearest.max() > 1e-6:
        chosen.append(int(nearest.argmax()))
        nearest = np.minimum(nearest, np.linalg.norm(directions - directions[chosen[-1]], axis=1))
    return chosen


def _round_trip(directions: np.ndarray, chosen: list[int]) -> list[int]:
    """The views in the order of a short closed tour: 2-opt, which leaves no crossing."""
    length = np.linalg.norm(directions[:, None] - directions[None], axis=-1)
    tour, improved = list(chosen), True
    while improved:
        improved = False
        for i in range(1, len(tour) - 1):
            for j in range(i + 1, len(tour)):
                a, b, c, d = tour[i - 1], tour[i], tour[j], tour[(j + 1) % len(tour)]
                if length[a, c] + length[b, d] < length[a, b] + length[c, d] - 1e-9:
                    tour[i : j + 1] = tour[i : j + 1][::-1]
                    improved = True
    return tour


def _circle_about(directions: np.ndarray, least_degrees: float = 8.0) -> np.ndarray:
    """[8, 3] unit directions on a circle about the middle of one or two directions, as wide as they are apart."""
    middle = directions.mean(0)
    middle = middle / np.linalg.norm(middle) if np.linalg.norm(middle) > 1e-3 else directions[0]
    half_angle = np.arccos(np.clip(directions @ middle, -1, 1)).max()
    tangent = np.tan(np.clip(half_angle, np.radians(least_degrees), np.radians(60)))
    across = np.linalg.svd(middle[None])[2][1:]
    angle = np.arange(8) * (np.pi / 4)
    circle = middle + tangent * (np.cos(angle)[:, None] * across[0] + np.sin(angle)[:, None] * across[1])
    return circle / np.linalg.norm(circle, axis=1, keepdims=True)
