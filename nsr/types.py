"""Value types that cross module borders. Frames, units and letters: nsr/CONVENTIONS.md."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

OBJECT_MASK = 128  # uint8 mask values from here on are object
Sphere = tuple[float, float, float, float]  # centre x, y, z and radius


@dataclass(frozen=True)
class Cameras:
    """V pinhole cameras that share one image size.

    intrinsics: [V, 3, 3] K, in pixels, skew allowed, pixel centres at integers.
    camera_to_world: [V, 4, 4] rigid; the camera looks along +z, x to the right, y down (OpenCV).
    width, height: image size in pixels.
    """

    intrinsics: Tensor
    camera_to_world: Tensor
    width: int
    height: int

    def __len__(self) -> int:
        return self.intrinsics.shape[0]

    def __getitem__(self, index) -> Cameras:
        """The cameras of a slice, a list or a tensor of view indices (an int keeps the view axis)."""
        if isinstance(index, int):
            index = [index]
        return replace(self, intrinsics=self.intrinsics[index], camera_to_world=self.camera_to_world[index])

    def to(self, device: torch.device | str) -> Cameras:
        return replace(self, intrinsics=self.intrinsics.to(device), camera_to_world=self.camera_to_world.to(device))

    @property
    def focals(self) -> Tensor:
        """[V] the larger focal length of each camera, pixels."""
        return self.intrinsics[:, [0, 1], [0, 1]].amax(dim=-1)

    @property
    def centers(self) -> Tensor:
        """[V, 3] camera centres."""
        return self.camera_to_world[:, :3, 3]


@dataclass(frozen=True)
class Rays:
    """origins: [..., 3]; directions: [..., 3], unit length."""

    origins: Tensor
    directions: Tensor

    def at(self, distance: Tensor) -> Tensor:
        """Points [..., 3] at a distance [...] along the rays."""
        return self.origins + distance[..., None] * self.directions

    def __getitem__(self, index) -> Rays:
        return Rays(self.origins[index], self.directions[index])


@dataclass(frozen=True)
class SurfaceHits:
    """Where N rays meet a surface, without gradient.

    distance: [N] along the ray; where hit is False, the distance at which the SDF is smallest along the ray.
    hit: [N] bool.
    evaluations: number of SDF evaluations spent on all rays together; a tensor [] on the device of the rays where the host has
        not counted them, so that nothing waits for it.
    """

    distance: Tensor
    hit: Tensor
    evaluations: int | Tensor = 0


@dataclass(frozen=True)
class RenderOutput:
    """N rendered rays: rgb [N, 3] in [0, 1], normal [N, 3] (unit, scene frame), distance [N], hit [N] bool.

    Rays that miss have rgb 1 (white), normal 0 and distance 0.
    """

    rgb: Tensor
    normal: Tensor
    distance: Tensor
    hit: Tensor


@dataclass(frozen=True)
class Scene:
    """Posed, masked photographs of one object.

    images: [V, H, W, 3] uint8 sRGB.
    masks: [V, H, W] uint8, 0 background, 255 object, in between soft.
    cameras: V cameras in the scene frame, where the object lies inside the unit sphere.
    world_from_scene: [4, 4] float64 similarity, scene frame -> world frame (IDR's scale_mat).
    view_names: V image file stems, in natural order.
    name: what to call the scene; source: where it was read from.
    ground_truth: path of a mesh in the world frame, when the scene comes with one.
    guesses: what the reader had to guess about the files, for the scene's check to tell.
    reference: V true cameras in the world frame, where `cameras` are only a start for their refinement; else None.
    masked: False where nobody has said what is object: masks are then 255 everywhere, and nsr.training.silhouettes can
        estimate them.
    """

    images: Tensor
    masks: Tensor
    cameras: Cameras
    world_from_scene: np.ndarray
    view_names: tuple[str, ...]
    name: str
    source: str = ""
    ground_truth: str | None = None
    guesses: tuple[str, ...] = ()
    reference: Cameras | None = None
    masked: bool = True

    def __len__(self) -> int:
        return self.images.shape[0]

    def select(self, views: list[int]) -> Scene:
        """The scene reduced to some of its views, in the order given."""
        return replace(
            self,
            images=self.images[views],
            masks=self.masks[views],
            cameras=self.cameras[views],
            view_names=tuple(self.view_names[i] for i in views),
            reference=self.reference[views] if self.reference is not None else None,
        )

    def to(self, device: torch.device | str) -> Scene:
        """The scene with its images, masks and cameras on a device; the reference cameras stay where they are."""
        return replace(self, images=self.images.to(device), masks=self.masks.to(device), cameras=self.cameras.to(device))
