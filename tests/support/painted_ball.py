"""A 'trained model' in closed form: a ball, painted by position, that offers what results are made from."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from nsr.training.results import render_view
from nsr.types import Cameras, Rays, RenderOutput, Scene

RADIUS = 0.6
WORLD_FROM_SCENE = np.array([[0, -50.0, 0, 7], [50, 0, 0, -3], [0, 0, 50, 100], [0, 0, 0, 1]])  # 50 mm, turned


def paint(points: Tensor) -> Tensor:
    return 0.5 + 0.4 * points / RADIUS


class PaintedBall(nn.Module):
    """sdf, color and render as nsr.models.idr.IDRModel has them. tint: what the view direction adds to the colour."""

    bounding_radius = 1.0

    def __init__(self, tint: float = 0.0, floater: bool = False) -> None:
        super().__init__()
        self.radius = nn.Parameter(torch.tensor(RADIUS))
        self.tint, self.floater = tint, floater

    def sdf(self, x: Tensor) -> Tensor:
        ball = x.norm(dim=-1) - self.radius
        return torch.minimum(ball, (x - 0.85 * x.new_tensor([0, 0, 1])).norm(dim=-1) - 0.08) if self.floater else ball

    def color(self, points: Tensor, view_dirs: Tensor) -> Tensor:
        return paint(points) + self.tint * view_dirs

    @torch.no_grad()
    def render(self, rays: Rays, chunk: int = 65536) -> RenderOutput:
        b = (rays.origins * rays.directions).sum(-1)
        discriminant = b**2 - rays.origins.square().sum(-1) + RADIUS**2
        hit = discriminant > 0
        distance = (-b - discriminant.clamp(min=0).sqrt()) * hit
        points = rays.at(distance)
        rgb = torch.where(hit[:, None], self.color(points, rays.directions), torch.ones(3))
        return RenderOutput(rgb, points / RADIUS * hit[:, None], distance, hit)


def ring_of_cameras(views: int = 5, width: int = 40, height: int = 30) -> Cameras:
    """Cameras in the plane z = 0, three radii off, that look at the origin; not square, principal point off centre."""
    intrinsics = torch.tensor([[45.0, 0, 18.0], [0, 44.0, 16.0], [0, 0, 1]]).expand(views, 3, 3).clone()
    poses = torch.eye(4).repeat(views, 1, 1)
    for i, angle in enumerate(torch.linspace(0, 2 * torch.pi, views + 1)[:-1]):
        forward = -torch.stack([angle.cos(), angle.sin(), torch.zeros(())])
        down = torch.tensor([0.0, 0.0, -1.0])
        poses[i, :3, :3] = torch.stack([torch.linalg.cross(down, forward), down, forward], dim=1)
        poses[i, :3, 3] = -3 * RADIUS * forward
    return Cameras(intrinsics, poses, width, height)


def photographs(cameras: Cameras, model: PaintedBall) -> Scene:
    """The scene that the model explains, up to rounding to bytes."""
    images, masks = [], []
    for view in range(len(cameras)):
        shown = render_view(model, cameras, view)
        images.append((shown.rgb.clamp(0, 1) * 255).round().to(torch.uint8))
        masks.append(shown.silhouette.to(torch.uint8) * 255)
    names = tuple(f"{i:03d}" for i in range(len(cameras)))
    return Scene(torch.stack(images), torch.stack(masks), cameras, WORLD_FROM_SCENE, names, "ball")
