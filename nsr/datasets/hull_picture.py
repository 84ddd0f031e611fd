"""A contact sheet that shows at a glance whether masks and cameras fit: the visual hull drawn over the photographs."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw

from nsr.datasets.consistency import HullConsistency
from nsr.geometry.cameras import project_all
from nsr.geometry.visual_hull import carve, grid_axis
from nsr.types import OBJECT_MASK, Scene
from nsr.utils.files import atomic_write

_OUTSIDE = np.array([255, 40, 160])  # hull where the mask says background
_UNFILLED = np.array([40, 140, 255])  # mask that the hull does not fill
_OUTLINE = np.array([60, 230, 60])  # the hull's outline
_LEGEND = "green: outline of the visual hull; blue: mask that it does not fill; pink: hull outside the mask"


def hull_picture(scene: Scene, path: str | Path, *, most: int = 12, width: int = 400) -> None:
    """Write a PNG of up to `most` views, spread evenly, each with the visual hull of all views over the image.

    Where everything fits, a green line follows the object; blue and pink areas are disagreement. Views that contradict
    all others have no part in the hull, so that they show as wrong instead of emptying the picture.
    """
    resolution = 112
    wrong, _ = HullConsistency(scene.masks, scene.cameras, resolution=40).wrong_views()
    right = scene.select([view for view in range(len(scene)) if view not in wrong])
    occupied = carve(right.masks, right.cameras, resolution, min_views=min(2, len(right)))
    axis = grid_axis(resolution, 1.0)
    points = axis[occupied.cpu().nonzero()]
    points = points[points.norm(dim=-1) <= 1]
    chosen = np.linspace(0, len(scene) - 1, min(most, len(scene))).round().astype(int).tolist()
    tiles = [_tile(scene, view, points, float(axis[1] - axis[0]), width) for view in chosen]
    columns = math.ceil(math.sqrt(len(tiles)))
    rows = math.ceil(len(tiles) / columns)
    tile_width, tile_height = tiles[0].size
    sheet = Image.new("RGB", (columns * tile_width, rows * tile_height + 18), "white")
    for i, tile in enumerate(tiles):
        sheet.paste(tile, ((i % columns) * tile_width, (i // columns) * tile_height))
    empty = "" if len(points) else "THE VISUAL HULL IS EMPTY: masks and cameras do not fit together. "
    ImageDraw.Draw(sheet).text((4, rows * tile_height + 3), empty + _LEGEND, fill="black")
    with atomic_write(path, "wb") as file:
        sheet.save(file, format="PNG")


def _tile(scene: Scene, view: int, points: torch.Tensor, spacing: float, width: int) -> Image.Image:
    """One view, scaled to a width, with the hull of vertices [N, 3] over it and its name in the corner."""
    width = min(width, scene.cameras.width)
    scale = width / scene.cameras.width
    height = max(1, round(scene.cameras.height * scale))
    pixels = np.array(Image.fromarray(scene.images[view].cpu().numpy()).resize((width, height)), dtype=np.float32)
    mask = np.array(Image.fromarray(scene.masks[view].cpu().numpy()).resize((width, height))) >= OBJECT_MASK
    shadow = _shadow(scene, view, points, spacing, scale, (height, width))
    for area, colour in ((mask & ~shadow, _UNFILLED), (shadow & ~mask, _OUTSIDE)):
        pixels[area] = 0.35 * pixels[area] + 0.65 * colour
    pixels[_outline(shadow)] = _OUTLINE
    tile = Image.fromarray(pixels.astype(np.uint8))
    draw = ImageDraw.Draw(tile)
    box = draw.textbbox((4, 3), scene.view_names[view])
    draw.rectangle((0, 0, box[2] + 3, box[3] + 3), fill="black")
    draw.text((4, 3), scene.view_names[view], fill="white")
    return tile


def _shadow(scene: Scene, view: int, points: torch.Tensor, spacing: float, scale: float, size: tuple[int, int]) -> np.ndarray:
    """[h, w] bool: the pixels of the scaled image that the hull's voxels cover."""
    cameras = scene.cameras[view].to("cpu")
    image = torch.zeros(size, dtype=torch.bool)
    if len(points) == 0:
        return image.numpy()
    pixels, depth = project_all(cameras, points)
    focal = float(cameras.focals[0]) * scale
    side = max(1, math.ceil(focal * spacing / max(float(depth[0].median()), 1e-6)))
    corner = ((pixels[0] + 0.5) * scale - side / 2).round().long()
    corner = corner[depth[0] > 0]
    for offset in range(side * side):  # a voxel is a square of its projected size
        column, row = corner[:, 0] + offset % side, corner[:, 1] + offset // side
        inside = (column >= 0) & (column < size[1]) & (row >= 0) & (row < size[0])
        image[row[inside], column[inside]] = True
    return image.numpy()


def _outline(shadow: np.ndarray) -> np.ndarray:
    """The pixels of a silhouette that have a neighbour outside it."""
    inner = np.pad(shadow, 1)
    inner = inner[:-2, 1:-1] & inner[2:, 1:-1] & inner[1:-1, :-2] & inner[1:-1, 2:]
    return shadow & ~inner
