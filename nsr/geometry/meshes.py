"""Triangle meshes: connected components, the way from the scene frame to the world, reading and writing files."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from nsr.utils.errors import DataError, UsageError, is_transient
from nsr.utils.files import atomic_write

if TYPE_CHECKING:
    import trimesh

MESH_SUFFIXES = (".ply", ".obj", ".glb")


def new_mesh(
    vertices: np.ndarray,
    faces: np.ndarray,
    colors: np.ndarray | None = None,
    attributes: Mapping[str, np.ndarray] | None = None,
) -> trimesh.Trimesh:
    """A mesh whose vertices keep their order and number; colors [M, 3] or [M, 4] uint8 sRGB when given.

    attributes: [M] each, other properties of the vertices by name; of the files, .ply holds them.
    """
    import trimesh

    return trimesh.Trimesh(vertices, faces, vertex_colors=colors, vertex_attributes=dict(attributes or {}), process=False)


def vertex_colors(mesh: trimesh.Trimesh) -> np.ndarray | None:
    """[M, 4] uint8 sRGB colours of the vertices, None when the mesh has none of its own."""
    return np.array(mesh.visual.vertex_colors) if mesh.visual.kind == "vertex" else None


def largest_component(mesh: trimesh.Trimesh) -> trimesh.Trimesh:
    """The connected component with the largest area.

    Raises:
        DataError: the mesh has no triangles.
    """
    label, area = components(mesh)
    return select_vertices(mesh, label == np.argmax(area))


def components(mesh: trimesh.Trimesh) -> tuple[np.ndarray, np.ndarray]:
    """Connected component of every vertex [M], and the area of every component.

    Raises:
        DataError: the mesh has no triangles.
    """
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import connected_components

    faces = np.asarray(mesh.faces)
    if len(faces) == 0:
        raise DataError("components: the mesh has no triangles; was a surface extracted at all?")
    ends = faces[:, [0, 1]].ravel(), faces[:, [1, 2]].ravel()
    graph = coo_matrix((np.ones(len(ends[0]), dtype=bool), ends), shape=(len(mesh.vertices),) * 2)
    count, label = connected_components(graph, directed=False)
    return label, np.bincount(label[faces[:, 0]], weights=mesh.area_faces, minlength=count)


def select_vertices(mesh: trimesh.Trimesh, keep: np.ndarray) -> trimesh.Trimesh:
    """The mesh reduced to the vertices where keep [M] is True and the faces between them."""
    number = np.cumsum(keep) - 1
    faces = np.asarray(mesh.faces)
    colors = vertex_colors(mesh)
    colors = None if colors is None else colors[keep]
    attributes = {name: values[keep] for name, values in mesh.vertex_attributes.items()}
    return new_mesh(mesh.vertices[keep], number[faces[keep[faces].all(axis=1)]], colors, attributes)


def to_world(mesh: trimesh.Trimesh, world_from_scene: np.ndarray) -> trimesh.Trimesh:
    """The mesh moved by a similarity [4, 4]. Normals stay outwards, under a reflection too."""
    matrix = np.asarray(world_from_scene, dtype=np.float64)
    vertices = mesh.vertices @ matrix[:3, :3].T + matrix[:3, 3]
    mirrored = np.linalg.det(matrix[:3, :3]) < 0
    faces = np.array(mesh.faces[:, ::-1] if mirrored else mesh.faces)
    return new_mesh(vertices, faces, vertex_colors(mesh), mesh.vertex_attributes)


def load_mesh(path: str | Path) -> trimesh.Trimesh:
    """Read one mesh (PLY, OBJ, GLB, STL, OFF) with its vertex colours; the parts of a scene file become one mesh.

    Raises:
        DataError: the file is missing, cannot be read, holds no triangles or a vertex that is not finite.
    """
    import trimesh

    path = Path(path)
    if not path.is_file():
        raise DataError(f"{path}: no such mesh file")
    is_glb = path.suffix.lower() == ".glb"
    try:
        # trimesh drops the vertex colours of a part that has a material.
        mesh = trimesh.load(path, process=False, force="mesh", **({"skip_materials": True} if is_glb else {}))
    except Exception as error:  # the readers of trimesh raise whatever their formats trip over
        if is_transient(error):
            raise
        raise DataError(f"{path}: cannot be read as a mesh ({type(error).__name__}: {error})") from error
    if not isinstance(mesh, trimesh.Trimesh) or len(mesh.faces) == 0:
        raise DataError(f"{path}: expected a mesh with triangles, found none (a point cloud?)")
    if not np.isfinite(mesh.vertices).all():
        raise DataError(f"{path}: the mesh has vertices with NaN or infinite coordinates")
    colors = vertex_colors(mesh)
    if is_glb and colors is not None:
        linear = colors[:, :3] / 255.0
        srgb = np.where(linear <= 0.0031308, linear * 12.92, 1.055 * linear ** (1 / 2.4) - 0.055)
        mesh.visual.vertex_colors = np.concatenate([np.round(srgb * 255).astype(np.uint8), colors[:, 3:]], axis=1)
    return mesh


def load_numbered_mesh(path: str | Path) -> trimesh.Trimesh:
    """Read one mesh whose vertices have the order and number of the file, for files that name vertices by number.

    load_mesh does not see to that in OBJ files: trimesh drops vertices without a face, and repeats those with several texture
    coordinates or normals. Colours and textures of OBJ files are left out. Raises what load_mesh raises.
    """
    import igl

    path = Path(path)
    if path.suffix.lower() != ".obj" or not path.is_file():
        return load_mesh(path)
    try:
        vertices, _, _, faces, *_ = igl.readOBJ(str(path))
    except Exception as error:  # libigl says no more than that it failed
        if is_transient(error):
            raise
        raise DataError(f"{path}: cannot be read as a mesh of triangles ({error}); cut other polygons up") from error
    if len(faces) == 0 or faces.shape[1] != 3 or vertices.shape[1] < 3:
        raise DataError(f"{path}: expected a mesh with triangles, found {len(vertices)} vertices and {len(faces)} faces")
    if faces.min() < 0 or faces.max() >= len(vertices):
        raise DataError(f"{path}: a face has vertex {faces.max() + 1}, but there are {len(vertices)}; is the file whole?")
    vertices = vertices[:, :3]  # behind them may be colours
    if not np.isfinite(vertices).all():
        raise DataError(f"{path}: the mesh has vertices with NaN or infinite coordinates")
    return new_mesh(vertices, faces)


def save_mesh(mesh: trimesh.Trimesh, path: str | Path) -> None:
    """Write a mesh with its vertex colours; the file appears complete or not at all.

    The suffix decides: .ply (binary, with the vertex attributes), .obj (colours behind the coordinates) or .glb. Coordinates
    stay as they are. In .glb the colours are converted to linear, as glTF 2.0 wants COLOR_0, on a matte double-sided material.

    Raises:
        UsageError: the suffix is none of these.
    """
    path = Path(path)
    if path.suffix.lower() not in MESH_SUFFIXES:
        raise UsageError(f"{path}: meshes are written as {', '.join(MESH_SUFFIXES)}, not as {path.suffix!r}")
    encoded = _encode(mesh, path.suffix.lower()[1:])
    with atomic_write(path, "wb") as file:
        file.write(encoded)


def _encode(mesh: trimesh.Trimesh, kind: str) -> bytes:
    if kind != "glb":
        encoded = mesh.export(file_type=kind)
        return encoded.encode() if isinstance(encoded, str) else encoded
    colors = vertex_colors(mesh)
    if colors is not None:
        srgb = colors[:, :3] / 255.0
        linear = np.where(srgb <= 0.04045, srgb / 12.92, ((srgb + 0.055) / 1.055) ** 2.4)
        colors = np.concatenate([np.round(linear * 255).astype(np.uint8), colors[:, 3:]], axis=1)
    return new_mesh(mesh.vertices, mesh.faces, colors).export(file_type="glb", tree_postprocessor=_matte)


def _matte(tree: dict) -> None:
    """Give every part of a glTF tree one matte material; without one, viewers show bare metal."""
    tree["materials"] = [{"pbrMetallicRoughness": {"metallicFactor": 0.0, "roughnessFactor": 1.0}, "doubleSided": True}]
    for part in tree["meshes"]:
        for primitive in part["primitives"]:
            primitive["material"] = 0
