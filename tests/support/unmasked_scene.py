"""A painted ball in front of something: photographs whose silhouettes are known exactly, for work that may not look at them."""

from __future__ import annotations

import dataclasses

import numpy as np
import torch

from nsr.datasets.synthetic_room import Room
from nsr.geometry.cameras import image_pixels, pixel_rays
from nsr.types import Scene
from tests.support.painted_ball import PaintedBall, photographs
from tests.support.two_balls import cameras_around


class WavyBall(PaintedBall):
    """Waves of so many lengths and directions that no two places look alike."""

    def color(self, points, view_dirs):
        generator = torch.Generator().manual_seed(0)
        waves = 25.0 * torch.randn(3, 24, generator=generator)
        phases = 6.3 * torch.rand(24, generator=generator)
        grey = (0.5 + 0.06 * torch.sin(points @ waves + phases).sum(-1))[..., None]
        return (grey * torch.tensor([1.0, 0.9, 0.8])).clamp(0, 1)


def ball_before(background: str, views: int = 20, width: int = 160, height: int = 120) -> Scene:
    """background: "room", textured and far behind, or "black"."""
    scene = photographs(cameras_around(views, width, height), WavyBall())
    room, images = Room(np.random.default_rng(0)), scene.images.clone()
    for view, image in enumerate(images):
        off = (scene.masks[view] == 0).flatten()
        rays = pixel_rays(scene.cameras, torch.full((int(off.sum()),), view), image_pixels(width, height)[off])
        behind = (
            room.colors(rays.origins[0].double().numpy(), rays.directions.double().numpy()) if background == "room" else 0.0
        )
        image.view(-1, 3)[off] = torch.as_tensor(behind * 255 + np.zeros((len(rays.origins), 3))).round().to(torch.uint8)
    return dataclasses.replace(scene, images=images)
