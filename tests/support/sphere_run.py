"""A sphere in a few small photographs, and configurations that train on it in a moment."""

from __future__ import annotations

import dataclasses

import numpy as np
import torch

from nsr.config import Variant
from nsr.encoders.hash_grid import HashGridConfig
from nsr.encoders.positional import PositionalConfig
from nsr.models.idr import ModelConfig
from nsr.models.implicit_network import ImplicitNetworkConfig
from nsr.models.losses import LossConfig
from nsr.models.rendering_network import RenderingNetworkConfig
from nsr.ops.sphere_trace import TraceOptions
from nsr.training.settings import Config, SamplingConfig, StartConfig, TrainConfig
from nsr.training.trainer import Trainer
from nsr.types import Cameras, Scene


def sphere_scene(views: int = 6, size: int = 24, radius: float = 0.6) -> Scene:
    """A sphere painted by its normals, seen from a ring of cameras, in closed form."""
    focal, distance = 1.5 * size, 3.0
    centre = (size - 1) / 2
    intrinsics = torch.tensor([[focal, 0, centre], [0, focal, centre], [0, 0, 1.0]]).expand(views, 3, 3).clone()
    poses, images, masks = [], [], []
    v, u = torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij")
    local = torch.stack([(u - centre) / focal, (v - centre) / focal, torch.ones(size, size)], -1)
    for i in range(views):
        angle = 2 * np.pi * i / views
        forward = -torch.tensor([np.cos(angle), 0.3 * (-1) ** i, np.sin(angle)], dtype=torch.float32)
        forward = forward / forward.norm()
        right = torch.linalg.cross(torch.tensor([0.0, -1.0, 0.0]), forward)
        right = right / right.norm()
        pose = torch.eye(4)
        pose[:3, :3] = torch.stack([right, torch.linalg.cross(forward, right), forward], 1)
        pose[:3, 3] = -distance * forward
        direction = torch.nn.functional.normalize(local @ pose[:3, :3].T, dim=-1)
        b = (direction * pose[:3, 3]).sum(-1)
        discriminant = b**2 - distance**2 + radius**2
        hit = discriminant > 0
        point = pose[:3, 3] + (-b - discriminant.clamp(min=0).sqrt())[..., None] * direction
        images.append(torch.where(hit[..., None], 0.5 + 0.5 * point / radius, torch.ones(3)))
        masks.append(hit)
        poses.append(pose)
    return Scene(
        images=(torch.stack(images).clamp(0, 1) * 255).round().to(torch.uint8),
        masks=torch.stack(masks).to(torch.uint8) * 255,
        cameras=Cameras(intrinsics, torch.stack(poses), size, size),
        world_from_scene=np.eye(4),
        view_names=tuple(f"{i:03d}" for i in range(views)),
        name="sphere",
    )


def small_config(**train) -> Config:
    grid = HashGridConfig(levels=4, base_resolution=4, max_resolution=16, log2_table_size=10, start_levels=2)
    return Config(
        model=ModelConfig(
            implicit_network=ImplicitNetworkConfig(
                dims=(32,), skip_in=(), feature_size=7, activation="squareplus", weight_norm=False,
                encoder=Variant("hashgrid", grid),
            ),
            rendering_network=RenderingNetworkConfig(
                dims=(32,), weight_norm=False, point_encoder=Variant("hashgrid", dataclasses.replace(grid, seed=1))
            ),
            ray_tracer=TraceOptions(
                max_iterations=40, threshold=0.0, relaxation=1.3, min_step=0.004, both_ends=False,
                line_search_steps=0, sampler_steps=0, secant_steps=4, min_sdf_samples=0,
            ),
            reevaluate=False,
            min_cosine=0.1,
        ),
        loss=LossConfig(smoothness_weight=0.01, free_weight=1.0, alpha_milestones=(0.5,)),
        sampling=SamplingConfig(mode="scene", rays=128, volume_points=64, neighbours=32),
        start=StartConfig(type="hull", resolution=32, steps=20, points=512),
        train=TrainConfig(**{
            "nepoch": 5, "learning_rate": 2e-3, "lr_final": 0.1, "lr_milestones": (), "milestone_unit": "progress",
            "geometry_full_at": 0.5, "appearance_full_at": 0.5, **train,
        }),
    )  # fmt: skip


def vanilla_config(**train) -> Config:
    """The published architecture, only narrower: weight norm, skip, positional encodings, IDR's tracer."""
    return Config(
        model=ModelConfig(
            implicit_network=ImplicitNetworkConfig(
                dims=(64, 64, 64, 64), skip_in=(2,), feature_size=16,
                encoder=Variant("vanilla", PositionalConfig(frequencies=3)),
            ),
            rendering_network=RenderingNetworkConfig(dims=(64, 64)),
        ),
        sampling=SamplingConfig(rays=96, volume_points=48),
        train=TrainConfig(**{"nepoch": 2, "learning_rate": 1e-3, **train}),
    )  # fmt: skip


def state_of(trainer: Trainer) -> list[torch.Tensor]:
    return [*trainer.model.state_dict().values(), *(trainer.poses.state_dict().values() if trainer.poses else [])]
