"""Cameras on circles about the z axis."""

from __future__ import annotations

import numpy as np
import torch

from nsr.geometry.poses import look_at
from nsr.types import Cameras


def ring(count: int, elevation: float = 0.3, distance: float = 4.0, roll: float = 0.0) -> Cameras:
    """Cameras on a circle about the z axis that look at the origin, turned about their optical axes by `roll`."""
    angle = torch.arange(count) * 2 * torch.pi / count
    level = torch.full_like(angle, elevation)
    eye = distance * torch.stack([angle.cos() * level.cos(), angle.sin() * level.cos(), level.sin()], dim=-1)
    pose = look_at(eye, torch.zeros(3), torch.tensor([0.0, 0.0, 1.0]))
    turn = torch.eye(4)
    turn[:2, :2] = torch.tensor([[np.cos(roll), -np.sin(roll)], [np.sin(roll), np.cos(roll)]])
    k = torch.tensor([[200.0, 0.0, 78.0], [0.0, 210.0, 47.0], [0.0, 0.0, 1.0]]).repeat(count, 1, 1)
    return Cameras(k, pose @ turn, 160, 100)
