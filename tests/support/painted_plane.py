"""A plane painted with waves, photographed exactly by cameras around it: what patch_ncc should see is known."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from nsr.types import Cameras

VIEWS = 4
SIZE = 96, 80  # width, height
NORMAL = torch.tensor([0.2, -0.3, -1.0], dtype=torch.float64)  # of the plane through the origin, not unit
FREQUENCIES = torch.tensor([[9.0, 4.0, 2.0], [-5.0, 11.0, 3.0], [14.0, -3.0, 5.0], [2.0, 6.0, -9.0]], dtype=torch.float64)


def paint(points: Tensor) -> Tensor:
    """Grey values [...] in (0, 1) of points [..., 3] in space."""
    return 0.5 + 0.11 * torch.sin(points @ FREQUENCIES.to(points).T + torch.arange(4).to(points)).sum(-1)


def plane_cameras(views: int = VIEWS) -> Cameras:
    """Cameras about 3 away on the plane's side, all aimed near the origin and rolled, with skew: float64."""
    width, height = SIZE
    intrinsics = torch.tensor([[130.0, 2.5, width / 2 - 1.5], [0.0, 120.0, height / 2 + 1.0], [0, 0, 1]], dtype=torch.float64)
    poses = []
    for i in range(views):
        centre = torch.tensor([0.9 * math.cos(2.1 * i), 0.7 * math.sin(2.1 * i), -2.8 + 0.2 * i], dtype=torch.float64)
        forward = F.normalize(torch.tensor([0.03 * i, -0.02, 0.0], dtype=torch.float64) - centre, dim=0)
        upright = torch.tensor([math.sin(0.3 * i), math.cos(0.3 * i), 0.0], dtype=torch.float64)
        right = F.normalize(torch.linalg.cross(upright, forward), dim=0)
        pose = torch.eye(4, dtype=torch.float64)
        pose[:3, :3] = torch.stack([right, torch.linalg.cross(forward, right), forward], 1)
        pose[:3, 3] = centre
        poses.append(pose)
    return Cameras(intrinsics.repeat(views, 1, 1), torch.stack(poses), width, height)


def plane_points(cameras: Cameras, view: Tensor, pixels: Tensor) -> Tensor:
    """Where the rays of pixels [N, 2] of views [N] meet the plane: [N, 3]."""
    homogeneous = F.pad(pixels, (0, 1), value=1.0)[..., None]
    directions = (cameras.camera_to_world[view, :3, :3] @ torch.linalg.inv(cameras.intrinsics[view]) @ homogeneous)[..., 0]
    centers = cameras.centers[view]
    distance = -(centers @ NORMAL) / (directions @ NORMAL)
    return centers + distance[:, None] * directions


def plane_photographs(cameras: Cameras) -> Tensor:
    """[V, H, W] float64 grey values, exact at the pixel centres."""
    v, u = torch.meshgrid(torch.arange(cameras.height), torch.arange(cameras.width), indexing="ij")
    pixels = torch.stack([u, v], -1).reshape(-1, 2).double()
    images = [paint(plane_points(cameras, torch.full((len(pixels),), i), pixels)) for i in range(len(cameras))]
    return torch.stack(images).view(-1, cameras.height, cameras.width)


def scene_points(n: int, seed: int = 0) -> tuple[Tensor, ...]:
    """Points on the plane near the middle of the images: x, normal, pixels, view, sources [n, VIEWS - 1]; float64."""
    g = torch.Generator().manual_seed(seed)
    cameras = plane_cameras(VIEWS)
    view = torch.randint(VIEWS, (n,), generator=g)
    middle = torch.tensor([cameras.width, cameras.height], dtype=torch.float64) / 2
    pixels = middle + (torch.rand(n, 2, generator=g, dtype=torch.float64) - 0.5) * 24
    sources = (view[:, None] + torch.arange(1, VIEWS)) % VIEWS
    return plane_points(cameras, view, pixels), NORMAL.repeat(n, 1), pixels, view, sources


def off_the_plane(n: int, seed: int = 1) -> tuple[Tensor, ...]:
    """The same, with points and normals that are somewhat wrong; x and normal take gradients."""
    x, normal, *seen = scene_points(n, seed)
    g = torch.Generator().manual_seed(seed)
    x = x + 0.03 * torch.randn(n, 3, generator=g, dtype=torch.float64)
    normal = normal + 0.2 * torch.randn(n, 3, generator=g, dtype=torch.float64)
    return x.requires_grad_(), normal.requires_grad_(), *seen


def gradients(ncc: Tensor, points: tuple[Tensor, ...], seed: int = 2) -> tuple[Tensor, ...]:
    """Of a random weighting of ncc, with respect to the first two of the points."""
    weights = torch.randn(ncc.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return torch.autograd.grad((ncc * weights.to(ncc)).sum(), points[:2])
