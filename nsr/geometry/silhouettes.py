"""How far points are from the surface that silhouettes allow, to a fraction of a pixel."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from nsr.geometry.cameras import level_cameras, project_all
from nsr.geometry.masks import halved
from nsr.geometry.visual_hull import signed_cell_distance
from nsr.types import Cameras


def silhouette_distance(masks: Tensor, cameras: Cameras, points: Float[Tensor, "N 3"], width: int = 512) -> Float[Tensor, " N"]:
    """Signed distance [N] in scene units from the visual hull's surface, negative inside, of points near it.

    Of the distances in the views' images, to first order in space, the largest: exact to a fraction of a pixel, where a grid
    of occupancies is exact to a voxel. Views that do not see a point say nothing; -inf where none does.

    Args:
        masks: [V, H, W] bool, or uint8 where 128 and above is object.
        points: [N, 3] in the frame of the cameras.
        width: pixels, roughly, across the images in which distances are measured; larger masks are halved.
    """
    level = max(round(np.log2(masks.shape[2] / width)), 0)
    masks, cameras = halved(masks, level), level_cameras(cameras, level)
    largest = torch.full_like(points[:, 0], -torch.inf)
    for view, image in enumerate(_signed_image_distances(masks, cameras)):
        pixels, depth = (value[0] for value in project_all(cameras[view], points))
        # In [-1, 1] from the first to the last pixel centre, as grid_sample has it with align_corners.
        place = pixels / pixels.new_tensor([cameras.width - 1, cameras.height - 1]) * 2.0 - 1.0
        within = (depth > 0) & (place.abs() <= 1.0).all(dim=-1)
        distance = torch.nn.functional.grid_sample(
            image.to(points)[None, None], place[None, None], align_corners=True, padding_mode="border"
        )[0, 0, 0]
        largest = torch.where(within, torch.maximum(largest, distance * depth), largest)
    return largest


def _signed_image_distances(masks: Bool[Tensor, "V H W"], cameras: Cameras) -> Iterator[Float[Tensor, "H W"]]:
    """Distance from each pixel centre to the silhouette, which runs half way between object and background pixels, on an image
    plane at depth 1."""
    from concurrent.futures import ThreadPoolExecutor

    def one(mask: Tensor, intrinsics: Tensor) -> Tensor:
        inside = mask.cpu().numpy()
        sides = 1.0 / float(intrinsics[1, 1]), 1.0 / float(intrinsics[0, 0])  # of a pixel, by rows and columns
        if inside.all():
            return torch.full(mask.shape, -max(mask.shape) * max(sides))
        return torch.from_numpy(signed_cell_distance(inside, sides))

    with ThreadPoolExecutor() as pool:  # scipy computes without the interpreter's lock
        yield from pool.map(one, masks, cameras.intrinsics)
