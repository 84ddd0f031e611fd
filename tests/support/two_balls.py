"""A scene with exact silhouettes: two balls of different size side by side, so that no two directions look alike."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from nsr.geometry.cameras import image_pixels, pixel_rays, ray_sphere
from nsr.geometry.poses import look_at
from nsr.types import Cameras, Rays, Scene

BALLS = (((-0.25, 0.0, 0.1), 0.4), ((0.45, 0.2, -0.3), 0.2))  # centre, radius; all within 0.8 of the origin
WORLD_FROM_SCENE = np.array([[40.0, 0, 0, 5], [0, 40, 0, -8], [0, 0, 40, 300], [0, 0, 0, 1]])


def inside(points: Tensor, slack: float = 0.0) -> Tensor:
    """Whether points [..., 3] lie in the balls grown by `slack`."""
    return torch.stack([(points - points.new_tensor(c)).norm(dim=-1) <= r + slack for c, r in BALLS]).any(0)


def cameras_around(views: int = 12, width: int = 120, height: int = 90) -> Cameras:
    """Cameras all round, at several elevations, with skew and a principal point off the centre."""
    index = torch.arange(views)
    angle, z = index * 2.39996, -0.7 + 1.4 * (index + 0.5) / views
    level = (1 - z.square()).sqrt()
    eye = 3.2 * torch.stack([level * angle.cos(), level * angle.sin(), z], dim=-1)
    pose = look_at(eye, torch.zeros(3), torch.tensor([0.0, 0.0, 1.0]))
    k = torch.tensor([[150.0, 1.5, 63.0], [0.0, 145.0, 41.0], [0.0, 0.0, 1.0]])
    k[:2] *= width / 120
    return Cameras(k.repeat(views, 1, 1), pose, width, height)


def silhouettes(cameras: Cameras) -> Tensor:
    """[V, H, W] uint8 masks, exact at the pixel centres."""
    pixels = image_pixels(cameras.width, cameras.height)
    masks = []
    for view in range(len(cameras)):
        rays = pixel_rays(cameras, torch.full((len(pixels),), view), pixels)
        hits = [ray_sphere(Rays(rays.origins - torch.tensor(c), rays.directions), r)[2] for c, r in BALLS]
        masks.append(torch.stack(hits).any(0).reshape(cameras.height, cameras.width))
    return torch.stack(masks).to(torch.uint8) * 255


def two_balls(views: int = 12, width: int = 120, height: int = 90) -> Scene:
    """The scene, with images of noise that differ from view to view."""
    cameras = cameras_around(views, width, height)
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(256, (views, height, width, 3), generator=generator, dtype=torch.uint8)
    names = tuple(f"{i:03d}" for i in range(views))
    return Scene(images, silhouettes(cameras), cameras, WORLD_FROM_SCENE, names, "two_balls")
