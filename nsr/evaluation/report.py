"""What a run leaves to look at: metrics.json, pictures of meshes, contact sheets, a self-contained report.html."""

from __future__ import annotations

import base64
import html
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from nsr.geometry.cameras import image_pixels, pixel_rays
from nsr.geometry.unseen import SEEN
from nsr.types import Cameras
from nsr.utils.errors import DataError
from nsr.utils.files import atomic_write

if TYPE_CHECKING:
    import trimesh

    from nsr.geometry.raycast import Raycaster

Surface = Literal["clay", "colors", "normals"]
Picture = np.ndarray | Tensor

_SUPERSAMPLING = 2  # rays per pixel side of a rendered mesh
_CLAY = np.array([0.80, 0.78, 0.75])
_HATCH = 45  # stripes along the height of a picture, on surface that is marked as unseen
_GAP = 6  # pixels between the pictures of a contact sheet
_SIGNIFICANT_DIGITS = 6
# Colours of an error map, from 0 to the largest error shown: dark blue, blue, green, yellow, red.
_HEAT = np.array([[13, 22, 100], [40, 110, 200], [70, 180, 110], [250, 215, 60], [200, 30, 30]]) / 255


# --- metrics.json ----------------------------------------------------------------------------------------------------


def write_metrics(path: str | Path, metrics: Mapping) -> None:
    """Write metrics as JSON: keys sorted, floats to six significant digits, NaN and infinity as null. Atomic.

    Values may be numbers, strings, None, NumPy or torch scalars and arrays, and lists and mappings of these.
    """
    text = json.dumps(_plain(metrics), indent=2, sort_keys=True, allow_nan=False, ensure_ascii=False)
    with atomic_write(path, "w") as file:
        file.write(text + "\n")


def _plain(value: object) -> object:
    """The value in types that JSON knows."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, Tensor | np.ndarray | np.generic):
        return _plain(value.tolist())
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, float):
        return float(f"{value:.{_SIGNIFICANT_DIGITS}g}") if math.isfinite(value) else None
    return str(value) if isinstance(value, Path) else value


# --- pictures --------------------------------------------------------------------------------------------------------


def render_mesh(
    mesh: trimesh.Trimesh,
    cameras: Cameras,
    view: int = 0,
    *,
    surface: Surface = "clay",
    background: float = 1.0,
    raycaster: Raycaster | None = None,
) -> np.ndarray:
    """A shaded picture [H, W, 3] uint8 of a mesh, ray cast on the CPU, without a display.

    Surface that nsr.geometry.unseen.mark_unseen has marked is hatched, but for "normals".

    Args:
        cameras: in the frame of the mesh; `view` picks one.
        surface: "clay" is grey under a light beside the camera; "colors" the vertex colours as they are; "normals" the
            normals in the camera's frame as colours ((x, -y, -z) + 1) / 2.
        background: grey level in [0, 1].
        raycaster: of this mesh, to save its preparation when several pictures are made.

    Raises:
        DataError: "colors" was asked for and the mesh has none, or the mesh is empty.
    """
    from nsr.geometry.raycast import Raycaster

    values = _vertex_values(mesh, surface)
    camera = Cameras(
        cameras.intrinsics[view : view + 1].detach().double().cpu(),
        cameras.camera_to_world[view : view + 1].detach().double().cpu(),
        cameras.width,
        cameras.height,
    )
    s = _SUPERSAMPLING
    fine = image_pixels(camera.width * s, camera.height * s).double()
    pixels = (fine + 0.5) / s - 0.5
    rays = pixel_rays(camera, torch.zeros(len(pixels), dtype=torch.long), pixels)
    raycaster = raycaster or Raycaster(mesh)
    hits = raycaster.first_hit(camera.centers[0].numpy(), rays.directions.numpy())
    rgb = np.full((len(pixels), 3), background)
    at_hits = raycaster.interpolate(hits, values)
    if surface == "colors":
        rgb[hits.hit] = at_hits
    else:
        rotation = camera.camera_to_world[0, :3, :3].numpy()
        normals = at_hits / np.maximum(np.linalg.norm(at_hits, axis=-1, keepdims=True), 1e-12) @ rotation
        rgb[hits.hit] = _clay(normals) if surface == "clay" else (normals * [1, -1, -1] + 1) / 2
    if surface != "normals" and SEEN in mesh.vertex_attributes:
        seen = raycaster.interpolate(hits, mesh.vertex_attributes[SEEN][:, None].astype(np.float64))[:, 0]
        stripe = (pixels.sum(dim=-1).numpy() / camera.height * _HATCH % 1 < 0.5)[hits.hit]
        rgb[np.flatnonzero(hits.hit)[stripe & (seen < 0.5)]] *= 0.6
    rgb = rgb.reshape(camera.height, s, camera.width, s, 3).mean(axis=(1, 3))
    return np.round(rgb * 255).astype(np.uint8)


def _vertex_values(mesh: trimesh.Trimesh, surface: Surface) -> np.ndarray:
    """[M, 3] float64 what to interpolate: colours in [0, 1], or normals."""
    from nsr.geometry.meshes import vertex_colors

    if surface != "colors":
        return np.asarray(mesh.vertex_normals, dtype=np.float64)
    colors = vertex_colors(mesh)
    if colors is None:
        raise DataError("render_mesh: expected vertex colours for surface='colors', the mesh has none; use 'clay'")
    return colors[:, :3] / 255.0


def _clay(normals: np.ndarray) -> np.ndarray:
    """[N, 3] colours of normals in the camera's frame (x right, y down, z away) under a light from the upper left."""
    light = np.array([-0.45, -0.65, -0.70])
    lambert = np.clip(normals @ (light / np.linalg.norm(light)), 0, 1)
    facing = np.abs(normals[:, 2])  # lifts the shadow side, and shows inner sides grey rather than black
    return _CLAY * (0.16 + 0.64 * lambert + 0.24 * facing)[:, None].clip(0, 1)


def error_heatmap(
    predicted: trimesh.Trimesh, ground_truth: trimesh.Trimesh, *, maximum: float | None = None
) -> trimesh.Trimesh:
    """The predicted mesh with vertices coloured by exact distance to the true one, from blue (0) to red (maximum).

    maximum: the distance that is fully red, in the meshes' units; default 1 % of the ground truth's object radius.
    """
    from nsr.evaluation.chamfer import object_radius, point_to_mesh
    from nsr.geometry.meshes import new_mesh

    distance, _ = point_to_mesh(np.asarray(predicted.vertices), ground_truth)
    colors = heat_colors(distance, maximum or 0.01 * object_radius(ground_truth))
    return new_mesh(predicted.vertices, predicted.faces, colors)


def heat_colors(errors: np.ndarray, maximum: float) -> np.ndarray:
    """[..., 3] uint8 colours of errors [...]: dark blue (0), blue, green, yellow, red (maximum or more)."""
    level = np.clip(errors / maximum, 0, 1)
    stops = np.linspace(0, 1, len(_HEAT))
    colors = np.stack([np.interp(level, stops, _HEAT[:, channel]) for channel in range(3)], axis=-1)
    return np.round(colors * 255).astype(np.uint8)


def color_bar(maximum: float, unit: str, height: int = 240, ticks: int = 5) -> np.ndarray:
    """A picture [height, W, 3] uint8 of what the colours of heat_colors stand for."""
    top, bottom = 24, height - 24
    bar = heat_colors(np.linspace(maximum, 0, bottom - top), maximum)
    picture = Image.new("RGB", (96, height), "white")
    picture.paste(Image.fromarray(np.repeat(bar[:, None], 24, axis=1)), (8, top))
    draw = ImageDraw.Draw(picture)
    for i in range(ticks):
        value, y = maximum * i / (ticks - 1), bottom - 1 - (bottom - 1 - top) * i / (ticks - 1)
        more = "+" if i == ticks - 1 else ""
        draw.line([(32, y), (37, y)], fill="black")
        draw.text((41, y), f"{value:g}{more} {unit}", fill="black", font=_font(13), anchor="lm")
    return np.array(picture)


def preview_picture(
    path: str | Path,
    rows: Sequence[tuple[str, Sequence[Picture]]],
    *,
    columns: Sequence[str] = (),
    height: int = 240,
) -> None:
    """Write a contact sheet (PNG): one row of pictures per label, the names of the columns on top. Atomic.

    Args:
        rows: (label, pictures); a picture is [H, W, 3] or [H, W], uint8 or floating in [0, 1], array or tensor. Rows
            may differ in length; a label may be empty.
        height: of every picture in the sheet, in pixels; the width keeps the aspect.

    Raises:
        DataError: there is no picture to show.
    """
    cells = [[_cell(picture, height) for picture in pictures] for _, pictures in rows]
    if not any(cells):
        raise DataError(f"{path}: a contact sheet needs at least one picture, got none")
    font = _font(15)
    margin = max((int(font.getlength(label)) for label, _ in rows), default=0)
    margin = margin + 2 * _GAP if margin else _GAP
    top = 28 if columns else _GAP
    count = max(len(row) for row in cells)
    widths = [max(row[i].width for row in cells if i < len(row)) for i in range(count)]
    left = [margin + sum(widths[:i]) + i * _GAP for i in range(count)]
    sheet = Image.new("RGB", (left[-1] + widths[-1] + _GAP, top + len(cells) * (height + _GAP)), "white")
    draw = ImageDraw.Draw(sheet)
    for x, column in zip(left, columns, strict=False):
        draw.text((x, top - 6), column, fill="black", font=font, anchor="ls")
    for i, ((label, _), row) in enumerate(zip(rows, cells, strict=True)):
        y = top + i * (height + _GAP)
        draw.text((_GAP, y + height / 2), label, fill="black", font=font, anchor="lm")
        for x, cell in zip(left, row, strict=False):
            sheet.paste(cell, (x, y))
    with atomic_write(path, "wb") as file:
        sheet.save(file, format="PNG")


def _cell(picture: Picture, height: int) -> Image.Image:
    array = picture.detach().cpu().numpy() if isinstance(picture, Tensor) else np.asarray(picture)
    if array.dtype == bool:
        array = array.astype(np.float32)
    if array.dtype != np.uint8:
        array = np.round(np.nan_to_num(array).clip(0, 1) * 255).astype(np.uint8)
    image = Image.fromarray(array).convert("RGB")
    return image.resize((max(1, round(image.width * height / image.height)), height), Image.Resampling.LANCZOS)


def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)


# --- report.html -----------------------------------------------------------------------------------------------------

_PAGE = """<!doctype html>
<html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
  :root {{ color-scheme: light dark; }}
  body {{ font: 16px/1.5 system-ui, sans-serif; max-width: 68rem; margin: 2.5rem auto; padding: 0 1rem; }}
  h1 {{ font-weight: 600; margin-bottom: .3rem; }}
  h2 {{ font-weight: 600; font-size: 1.1rem; margin-top: 2rem; }}
  table {{ border-collapse: collapse; font-variant-numeric: tabular-nums; }}
  td {{ padding: .15rem 1.5rem .15rem 0; border-bottom: 1px solid #8884; }}
  td + td {{ text-align: right; padding-right: 0; }}
  figure {{ margin: 1rem 0 0; }}
  img {{ max-width: 100%; border-radius: 4px; }}
  figcaption {{ color: #777; font-size: .9rem; }}
</style>
<h1>{title}</h1>
{body}
</html>
"""


def write_report(
    path: str | Path, *, title: str, metrics: Mapping, pictures: Sequence[str | Path] = (), note: str = ""
) -> None:
    """Write a self-contained HTML page: pictures (PNG, JPEG or GIF files, embedded) and tables of the metrics. Atomic.

    Metrics that are mappings become tables of their own; lists are left out.

    Raises:
        DataError: a picture cannot be read.
    """
    parts = [f"<p>{html.escape(note)}</p>"] if note else []
    parts += [_figure(Path(picture)) for picture in pictures]
    plain = _plain(metrics)
    parts.append(_table("Metrics", {k: v for k, v in plain.items() if not isinstance(v, dict | list)}))
    parts += [_table(name, table) for name, table in plain.items() if isinstance(table, dict)]
    with atomic_write(path, "w") as file:
        file.write(_PAGE.format(title=html.escape(title), body="\n".join(parts)))


def _figure(picture: Path) -> str:
    kind = {".png": "png", ".jpg": "jpeg", ".jpeg": "jpeg", ".gif": "gif"}.get(picture.suffix.lower())
    if kind is None or not picture.is_file():
        raise DataError(f"{picture}: expected a PNG, JPEG or GIF file to put into the report")
    data = base64.b64encode(picture.read_bytes()).decode()
    name = html.escape(picture.name)
    return f'<figure><img src="data:image/{kind};base64,{data}" alt="{name}"><figcaption>{name}</figcaption></figure>'


def _table(heading: str, values: Mapping) -> str:
    rows = []
    for name, value in values.items():
        if isinstance(value, dict):
            value = ", ".join(f"{key} {_number(item)}" for key, item in value.items())
        elif isinstance(value, list):
            continue
        rows.append(f"<tr><td>{html.escape(str(name))}</td><td>{html.escape(_number(value))}</td></tr>")
    return f"<h2>{html.escape(heading)}</h2>\n<table>\n" + "\n".join(rows) + "\n</table>"


def _number(value: object) -> str:
    if value is None:
        return "not defined"
    return f"{value:.4g}" if isinstance(value, float) else str(value)
