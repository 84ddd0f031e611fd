"""What real photographs do to a scene that is too clean: each function returns a copy of a scene, disturbed, from a seed."""

from __future__ import annotations

from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from nsr.geometry.poses import quaternion_to_rotation
from nsr.types import Cameras, Scene


def some_views(count: int, share: float, seed: int) -> list[int]:
    """Round(share * count) of the views, in order."""
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
    return sorted(order[: round(share * count)].tolist())


def with_exposures(scene: Scene, strength: float = 0.2, seed: int = 0) -> Scene:
    """Every photograph in its own exposure and white balance: gains exp(N(-strength, strength)) of all channels, and half as
    strong ones of each; offsets N(0, strength / 10). Hardly a pixel clips."""
    generator = torch.Generator().manual_seed(seed)

    def normal(channels: int) -> Tensor:
        return torch.randn(len(scene), channels, generator=generator)

    gains = (strength * normal(1) + 0.5 * strength * normal(3) - strength).exp()
    values = scene.images / 255.0 * gains[:, None, None] + 0.1 * strength * normal(3)[:, None, None]
    return replace(scene, images=(values.clamp(0, 1) * 255).round().to(torch.uint8))


def out_of_focus(scene: Scene, sigma: float = 1.5, background: tuple[float, float, float] = (0.1, 0.9, 0.1)) -> Scene:
    """Before another background and blurred by `sigma` pixels; the masks are the share of each pixel that the object covers."""
    share = scene.masks[..., None] / 255.0
    image = scene.images / 255.0 + (1 - share) * (torch.tensor(background) - 0.5)  # built-in scenes stand before 0.5
    blurred = _blur(torch.cat([image, share], dim=-1), sigma)
    pixels = (blurred.clamp(0, 1) * 255).round().to(torch.uint8)
    return replace(scene, images=pixels[..., :3].contiguous(), masks=pixels[..., 3].contiguous())


def _blur(values: Tensor, sigma: float) -> Tensor:
    """[V, H, W, C] blurred by a Gaussian."""
    offsets = torch.arange(-int(3 * sigma + 1), int(3 * sigma + 1) + 1)
    kernel = torch.exp(-0.5 * (offsets / sigma) ** 2)
    kernel = kernel / kernel.sum()
    flat = values.permute(0, 3, 1, 2).flatten(0, 1)[:, None]
    reach = len(kernel) // 2
    flat = F.conv2d(F.pad(flat, (reach, reach, 0, 0), mode="replicate"), kernel[None, None, None])
    flat = F.conv2d(F.pad(flat, (0, 0, reach, reach), mode="replicate"), kernel[None, None, :, None])
    return flat[:, 0].unflatten(0, (len(values), -1)).permute(0, 2, 3, 1)


def cropped(scene: Scene, width: int, height: int, share: float = 0.3, seed: int = 0) -> tuple[Scene, list[int]]:
    """Windows of the photographs, around the middle of the object's box, but for `share` of the views 35 % of the window off
    it, as far as the photograph reaches. Returns also these views. As if the principal point had been elsewhere."""
    generator = torch.Generator().manual_seed(seed)
    cut = some_views(len(scene), share, seed)
    images, masks, intrinsics = [], [], scene.cameras.intrinsics.clone()
    for view in range(len(scene)):
        rows, columns = ((scene.masks[view] >= 128).any(1 - axis).nonzero()[:, 0] for axis in (0, 1))
        middle = torch.stack([columns.min() + columns.max(), rows.min() + rows.max()]) / 2
        corner = middle - torch.tensor([width, height]) / 2
        if view in cut:
            angle = 2 * torch.pi * torch.rand((), generator=generator)
            corner += torch.stack([angle.cos() * width, angle.sin() * height]) * 0.35
        room = torch.tensor([scene.cameras.width - width, scene.cameras.height - height])
        left, top = torch.minimum(corner.round().long().clamp_min(0), room).tolist()
        images.append(scene.images[view, top : top + height, left : left + width])
        masks.append(scene.masks[view, top : top + height, left : left + width])
        intrinsics[view, :2, 2] -= torch.tensor([left, top])
    cameras = Cameras(intrinsics, scene.cameras.camera_to_world, width, height)
    return replace(scene, images=torch.stack(images), masks=torch.stack(masks), cameras=cameras), cut


def with_bites(scene: Scene, share: float = 0.1, radius: float = 0.08, seed: int = 0) -> tuple[Scene, list[int]]:
    """In a share of the masks a disc around a random pixel of the object is missing: radius * width wide."""
    return _with_discs(scene, share, radius, seed, fill=0)


def with_strips(scene: Scene, share: float = 0.1, radius: float = 0.08, seed: int = 0) -> tuple[Scene, list[int]]:
    """In a share of the masks a disc of background around a pixel of the silhouette belongs to the object."""
    return _with_discs(scene, share, radius, seed, fill=255)


def _with_discs(scene: Scene, share: float, radius: float, seed: int, fill: int) -> tuple[Scene, list[int]]:
    generator = torch.Generator().manual_seed(seed)
    views = some_views(len(scene), share, seed)
    masks = scene.masks.clone()
    height, width = masks.shape[1:]
    v, u = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    for view in views:
        inside = masks[view] >= 128
        rim = inside & (F.avg_pool2d(inside.float()[None], 3, 1, 1)[0] < 1)
        places = (rim if fill else inside).nonzero()
        row, column = places[torch.randint(len(places), (), generator=generator)].tolist()
        disc = (u - column) ** 2 + (v - row) ** 2 < (radius * width) ** 2
        masks[view][disc] = fill
    return replace(scene, masks=masks), views


def with_noisy_cameras(scene: Scene, degrees: float = 1.0, percent: float = 1.0, seed: int = 0) -> Scene:
    """Every camera turned by `degrees` about an axis of its own and moved by `percent` of its distance from the origin."""
    generator = torch.Generator().manual_seed(seed)
    axes, moves = (F.normalize(torch.randn(len(scene), 3, generator=generator), dim=-1) for _ in range(2))
    half = torch.deg2rad(torch.tensor(degrees / 2))
    turns = quaternion_to_rotation(torch.cat([half.cos().expand(len(scene), 1), half.sin() * axes], dim=-1))
    poses = scene.cameras.camera_to_world.clone()
    poses[:, :3, :3] = turns @ poses[:, :3, :3]
    poses[:, :3, 3] += 0.01 * percent * moves * poses[:, :3, 3].norm(dim=-1, keepdim=True)
    return replace(scene, cameras=replace(scene.cameras, camera_to_world=poses))
