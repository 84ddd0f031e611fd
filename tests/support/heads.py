"""A made head in closed form, and folders of heads in H3DS's layout."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import trimesh
from support.idr_folder import write_folder
from support.painted_ball import RADIUS, WORLD_FROM_SCENE, PaintedBall, photographs
from support.two_balls import cameras_around

from nsr.evaluation.h3ds import HeadReference

VIEWS, WIDTH, HEIGHT = 6, 32, 24
SPLITS = {3: [0, 1, 5], 4: [0, 1, 2, 5]}
# Where landmarks are, as directions from the middle of the head: x to its left, y up, z to the front.
LANDMARKS = {
    "right_eye": (-0.35, 0.35, 0.85),
    "left_eye": (0.35, 0.35, 0.85),
    "nose_tip": (0.0, -0.05, 1.0),
    "nose_base": (0.0, -0.25, 1.0),
    "right_lips": (-0.25, -0.5, 0.85),
    "left_lips": (0.25, -0.5, 0.85),
}
_BUMPS = (  # direction, height in mm, width: a nose, a chin, and two ears that differ
    ((0, -0.05, 1), 22, 0.13),
    ((0, -0.75, 0.7), 8, 0.25),
    ((1, 0.05, -0.1), 12, 0.15),
    ((-1, 0.1, 0), 8, 0.2),
    ((0.3, 0.9, -0.4), 6, 0.5),
)


def head_mesh(subdivisions: int = 4) -> trimesh.Trimesh:
    """A head of about 210 mm from chin to crown, in mm: y up, z to the front; asymmetric, so that it fits in one way alone."""
    sphere = trimesh.creation.icosphere(subdivisions=subdivisions)
    directions = np.asarray(sphere.vertices)
    vertices = directions * [76, 105, 92]
    for towards, height, width in _BUMPS:
        off = np.linalg.norm(directions - np.array(towards) / np.linalg.norm(towards), axis=1)
        vertices = vertices + directions * (height * np.exp(-((off / width) ** 2)))[:, None]
    return trimesh.Trimesh(vertices, sphere.faces, process=False)


def head_marks(mesh: trimesh.Trimesh) -> dict[str, int]:
    """The vertices of a mesh that lie in the directions of LANDMARKS."""
    directions = mesh.vertices / np.linalg.norm(mesh.vertices, axis=1, keepdims=True)
    return {name: int(np.argmax(directions @ (np.array(to) / np.linalg.norm(to)))) for name, to in LANDMARKS.items()}


def head_regions(mesh: trimesh.Trimesh, tip: int) -> dict[str, np.ndarray]:
    from_tip = np.linalg.norm(mesh.vertices - mesh.vertices[tip], axis=1)
    chosen = {"face": mesh.vertices[:, 2] > 0.1 * mesh.extents[2], "face_sphere": from_tip < 95, "nose": from_tip < 25}
    return {name: np.flatnonzero(inside) for name, inside in chosen.items()}


def head_reference(subdivisions: int = 4) -> HeadReference:
    mesh = head_mesh(subdivisions)
    marks = head_marks(mesh)
    return HeadReference(mesh, marks, head_regions(mesh, marks["nose_tip"]), "made")


def write_truth(folder: Path, mesh: trimesh.Trimesh, marks: Mapping[str, int], regions: Mapping[str, np.ndarray]) -> None:
    """full_head.obj, landmarks.txt and regions/."""
    (folder / "regions").mkdir(parents=True)
    lines = [f"v {x:.9g} {y:.9g} {z:.9g}" for x, y, z in mesh.vertices] + [f"f {a} {b} {c}" for a, b, c in mesh.faces + 1]
    (folder / "full_head.obj").write_text("\n".join(lines))
    (folder / "landmarks.txt").write_text("\n".join(f"{name} {vertex}" for name, vertex in marks.items()))
    for name, vertices in regions.items():
        (folder / "regions" / f"{name}.txt").write_text("\n".join(map(str, vertices)) + "\n")


def ball_mesh(radius: float = RADIUS, subdivisions: int = 4) -> trimesh.Trimesh:
    """The surface of the painted ball in world units."""
    return trimesh.creation.icosphere(subdivisions=subdivisions, radius=radius).apply_transform(WORLD_FROM_SCENE)


def write_ball_head(folder: Path) -> Path:
    """VIEWS photographs of the painted ball as a scene of H3DS, with the ball as the head: z is up, as its cameras have it."""
    scene = photographs(cameras_around(VIEWS, WIDTH, HEIGHT), PaintedBall())
    write_folder(scene, folder, suffix="jpg", stem="img_{:04d}", mask_stem="mask_{:04d}")
    mesh = ball_mesh()
    local = (mesh.vertices - WORLD_FROM_SCENE[:3, 3]) @ WORLD_FROM_SCENE[:3, :3]
    turned = trimesh.Trimesh(local[:, [0, 2, 1]] * [-1, 1, 1], mesh.faces, process=False)  # front is +y of the scene
    marks = head_marks(turned)
    from_tip = np.linalg.norm(mesh.vertices - mesh.vertices[marks["nose_tip"]], axis=1)
    reach = {"face": 50, "face_sphere": 40, "nose": 10}
    write_truth(folder, mesh, marks, {name: np.flatnonzero(from_tip < limit) for name, limit in reach.items()})
    return folder


def write_h3ds(root: Path, *names: str, version: str = "0.1", splits: Mapping[int, list[int]] = SPLITS) -> Path:
    """A folder of heads with its config.toml and version.txt."""
    tables = []
    for name in names:
        write_ball_head(root / name)
        tables.append(f"[scenes.{name}]\ntags = ['made', 'ball']\nviews = {VIEWS}\n[scenes.{name}.default_views_configs]")
        tables += [f"{count} = {views}" for count, views in splits.items()]
    (root / "config.toml").write_text(f"version = {version}\n" + "\n".join(tables))
    (root / "version.txt").write_text(f"{version}\n")
    return root
