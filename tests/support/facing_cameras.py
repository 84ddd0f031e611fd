"""Cameras at given places that look at the origin."""

from __future__ import annotations

import torch

from nsr.types import Cameras


def cameras_at(*centers, size=(200, 200), focal=300.0) -> Cameras:
    """Cameras at the given centres that look at the origin."""
    poses = torch.eye(4).repeat(len(centers), 1, 1)
    for i, center in enumerate(torch.tensor(centers, dtype=torch.float32)):
        z = torch.nn.functional.normalize(-center, dim=0)
        up = torch.tensor([0.1, 1.0, 0.2])
        x = torch.nn.functional.normalize(torch.linalg.cross(z, up), dim=0)
        poses[i, :3] = torch.stack([x, torch.linalg.cross(z, x), z, center], dim=-1)
    width, height = size
    intrinsics = torch.tensor([[focal, 0, (width - 1) / 2], [0, focal, (height - 1) / 2], [0, 0, 1]])
    return Cameras(intrinsics.repeat(len(centers), 1, 1), poses, width, height)
