"""Where a head is wrong: its scan coloured by the distance to the reconstruction, as meshes and as one picture.

The distances are those to the reconstruction's surface, after the alignment of the region that is shown: head_surface_mm and
face_surface_mm are their means. The colours always mean the same: dark blue is 0, red HEAD_MAXIMUM or FACE_MAXIMUM and more.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from nsr.evaluation.h3ds import AlignedHead, HeadErrors, HeadReference
from nsr.evaluation.report import Surface, color_bar, heat_colors, preview_picture, render_mesh
from nsr.geometry.meshes import new_mesh, save_mesh, select_vertices
from nsr.geometry.poses import look_at
from nsr.types import Cameras

if TYPE_CHECKING:
    import trimesh

HEAD_MAXIMUM, FACE_MAXIMUM = 10.0, 3.0  # mm, shown red
FILES = ("h3ds_head.ply", "h3ds_face.ply", "h3ds.png")  # of a run
ERROR = "error_mm"  # the vertex property that the heat maps have
VIEWS = {"front": 0, "its left": 60, "its right": -60, "back": 180}  # where the camera stands, in degrees to the head's left
SIZE = 240  # pixels along the side of each picture
_DISTANCE, _FILLED = 5.0, 0.95  # from the middle to the camera, in radii; how much of the pictures is filled


def heat_map(aligned: AlignedHead, maximum: float) -> trimesh.Trimesh:
    """The measured part of the scan, coloured from 0 to `maximum` mm, with each vertex's error as the property ERROR."""
    scan = aligned.reference.mesh
    errors = np.full(len(scan.vertices), np.nan)
    errors[aligned.vertices] = aligned.surface_distances
    measured = np.isfinite(errors)
    shown = np.where(measured, errors, 0)
    coloured = new_mesh(scan.vertices, scan.faces, heat_colors(shown, maximum), {ERROR: shown.astype(np.float32)})
    return select_vertices(coloured, measured)


def write_heat_maps(errors: HeadErrors, folder: Path, prefix: str = "") -> list[Path]:
    """Write the heat maps of the head and of the face, and a picture of both and of the reconstruction.

    They are FILES of a folder, with a prefix to their names; returns their paths.
    """
    from nsr.geometry.raycast import Raycaster

    head, face, picture = files = [folder / f"{prefix}{name}" for name in FILES]
    maps = {head: heat_map(errors.head, HEAD_MAXIMUM), face: heat_map(errors.face, FACE_MAXIMUM)}
    for path, mesh in maps.items():
        save_mesh(mesh, path)
    reference, blank = errors.head.reference, np.full((SIZE, SIZE, 3), 255, dtype=np.uint8)
    about_head, about_face = (cameras_about(reference, aligned.vertices) for aligned in (errors.head, errors.face))
    all_round, in_front = range(len(VIEWS)), range(len(VIEWS) - 1)

    def pictures(mesh: trimesh.Trimesh, cameras: Cameras, views: range, surface: Surface) -> list[np.ndarray]:
        raycaster = Raycaster(mesh)
        return [render_mesh(mesh, cameras, view, surface=surface, raycaster=raycaster) for view in views]

    rows = [
        ("scan", pictures(reference.mesh, about_head, all_round, "clay")),
        ("reconstruction", pictures(errors.head.mesh, about_head, all_round, "clay")),
        ("error, head", [*pictures(maps[head], about_head, all_round, "colors"), color_bar(HEAD_MAXIMUM, "mm", SIZE)]),
        ("error, face", [*pictures(maps[face], about_face, in_front, "colors"), blank, color_bar(FACE_MAXIMUM, "mm", SIZE)]),
    ]
    preview_picture(picture, rows, columns=list(VIEWS), height=SIZE)
    return files


def cameras_about(reference: HeadReference, vertices: np.ndarray) -> Cameras:
    """Cameras of VIEWS, in the frame of a scan, in whose pictures some of its vertices just fit.

    Up is from the lips to the eyes, the front where the nose is.
    """
    scan = np.asarray(reference.mesh.vertices, dtype=np.float64)
    at = {name: scan[vertex] for name, vertex in reference.landmarks.items()}
    eyes, lips = ((at[f"right_{part}"] + at[f"left_{part}"]) / 2 for part in ("eye", "lips"))
    up = (eyes - lips) / np.linalg.norm(eyes - lips)
    front = at["nose_tip"] - (eyes + lips) / 2
    front -= (front @ up) * up
    front /= np.linalg.norm(front)
    shown = scan[vertices]
    centre = (shown.min(axis=0) + shown.max(axis=0)) / 2
    angles = np.radians(list(VIEWS.values()))[:, None]
    towards = np.cos(angles) * front + np.sin(angles) * np.cross(up, front)
    eye = centre + _DISTANCE * np.linalg.norm(shown - centre, axis=1).max() * towards
    pose = look_at(*(torch.from_numpy(of) for of in (eye, centre, up)))
    local = (torch.from_numpy(shown) - pose[:, None, :3, 3]) @ pose[:, :3, :3]
    focal = _FILLED * SIZE / 2 / float((local[..., :2] / local[..., 2:]).abs().max())
    intrinsics = torch.tensor([[focal, 0, (SIZE - 1) / 2], [0, focal, (SIZE - 1) / 2], [0, 0, 1]], dtype=torch.double)
    return Cameras(intrinsics.expand(len(eye), 3, 3), pose, SIZE, SIZE)
