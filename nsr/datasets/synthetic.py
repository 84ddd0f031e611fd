"""The built-in scenes: exact meshes, textured, lit and rendered by ray casting at any size and number of views.

`bust` shows nearly everything to its silhouettes; `dents` has six deep cavities that silhouettes cannot see. The mesh
from which a scene is rendered is its ground truth, to the last bit. The seed moves the cameras a little and changes
texture and light; the geometry depends on the name alone. Scenes are cached, keyed by everything that decides their
pixels.
"""

from __future__ import annotations

import hashlib
import json
import os
import zipfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image

from nsr.datasets.synthetic_room import Room
from nsr.geometry.cameras import compose_projection
from nsr.types import Cameras, Scene
from nsr.utils.errors import DataError, UsageError, is_transient
from nsr.utils.files import atomic_folder, atomic_write

if TYPE_CHECKING:
    import trimesh

    from nsr.geometry.raycast import Raycaster

NAMES = ("bust", "dents")
ARRANGEMENTS = ("frontal", "around")
BACKGROUNDS = ("plain", "room")
BACKGROUND = 0.5  # a neutral grey, so that neither a white nor a black prior is right by chance
OBJECT_RADIUS = 0.81  # every shape lies in this ball of the scene frame

# Scene to world: millimetres, far from the origin, so that a lost scale or offset shows.
WORLD_FROM_SCENE = np.array([[120.0, 0, 0, 35.0], [0, 120.0, 0, -60.0], [0, 0, 120.0, 410.0], [0, 0, 0, 1.0]])

_VERSION = 3  # of everything below; a new one retires the cached scenes
_RESOLUTION = {"bust": 288, "dents": 192}  # marching cubes cells: 270 and 340 thousand triangles
_SUPERSAMPLING = 2  # rays per pixel side
_RAYS_AT_A_TIME = 2**18
_CAMERA_DISTANCE = 3.2


def make_scene(
    name: str,
    *,
    views: int = 40,
    width: int = 400,
    height: int = 300,
    arrangement: str = "frontal",
    background: str = "plain",
    seed: int = 0,
    cache_dir: str | Path | None = None,
) -> Scene:
    """Render a built-in scene, or read it from the cache.

    Args:
        name: "bust" or "dents".
        views, width, height: number and size in pixels of the images.
        arrangement: "frontal", cameras spread over the front 60 % of the sphere, or "around", all round.
        background: "plain", grey, or "room", textured and far behind the object (nsr.datasets.synthetic_room).
        seed: of texture, light and camera jitter.
        cache_dir: where finished scenes are kept; default $XDG_CACHE_HOME/nsr/synthetic or ~/.cache/nsr/synthetic.

    Returns:
        A scene whose `ground_truth` is the path of the mesh it was rendered from. Same arguments, same pixels.

    Raises:
        UsageError: the name, arrangement or background is unknown, a number is out of range, or the cache cannot be made.
    """
    _check(name, views, width, height, arrangement, background)
    cache = _cache_folder(cache_dir)
    mesh_path = _mesh_path(name, cache)
    world_mesh = _cached_mesh(name, mesh_path)

    key = [name, views, width, height, arrangement, seed, _VERSION]
    key += [background] if background != "plain" else []  # scenes cached before there was a choice keep their names
    digest = hashlib.sha256(json.dumps(key).encode()).hexdigest()[:16]
    path = cache / f"{name}-{views}x{width}x{height}-{arrangement}-{digest}.npz"
    arrays = _read_cached(path, (views, height, width))
    if arrays is None:
        arrays = _render_scene(world_mesh, views, width, height, arrangement, background, seed)
        with atomic_write(path, "wb") as file:
            np.savez(file, **arrays)

    cameras = Cameras(torch.from_numpy(arrays["intrinsics"]).float(), torch.from_numpy(arrays["poses"]).float(), width, height)
    return Scene(
        images=torch.from_numpy(arrays["images"]),
        masks=torch.from_numpy(arrays["masks"]),
        cameras=cameras,
        world_from_scene=WORLD_FROM_SCENE.copy(),
        view_names=tuple(f"{i:06d}" for i in range(views)),
        name=name,
        source=f"built-in scene {name}: {views} views of {width}x{height}, {arrangement}, {background} background, seed {seed}",
        ground_truth=str(mesh_path),
    )


def write_scene(scene: Scene, folder: str | Path) -> None:
    """Write a scene in IDR layout: image/, mask/, cameras.npz and, when it has one, mesh_gt.ply. All of it or nothing.

    Raises:
        UsageError: the folder exists and is not empty.
        DataError: the scene's ground truth cannot be read.
    """
    from nsr.geometry.meshes import load_mesh, save_mesh

    with atomic_folder(folder) as partial_folder:
        for kind, pictures in (("image", scene.images), ("mask", scene.masks)):
            (partial_folder / kind).mkdir()
            for i, picture in enumerate(pictures.numpy()):
                Image.fromarray(picture).save(partial_folder / kind / f"{i:06d}.png")
        np.savez(partial_folder / "cameras.npz", **_idr_matrices(scene))
        if scene.ground_truth is not None:
            save_mesh(load_mesh(scene.ground_truth), partial_folder / "mesh_gt.ply")


def _idr_matrices(scene: Scene) -> dict[str, np.ndarray]:
    """world_mat_i = K [R | t] (world to pixel) and scale_mat_i, 4x4 each, for every view."""
    in_scene = compose_projection(scene.cameras.intrinsics.numpy(), scene.cameras.camera_to_world.numpy())
    scale = np.cbrt(np.linalg.det(scene.world_from_scene[:3, :3]))
    matrices = {}
    for i, projection in enumerate(in_scene @ np.linalg.inv(scene.world_from_scene) * scale):
        matrices[f"world_mat_{i}"] = np.concatenate([projection, [[0, 0, 0, 1.0]]])
        matrices[f"scale_mat_{i}"] = np.asarray(scene.world_from_scene, dtype=np.float64)
    return matrices


# --- arguments and cache ---------------------------------------------------------------------------------------------


def _check_name(name: str) -> None:
    if name not in NAMES:
        raise UsageError(f"built-in scene: expected one of {', '.join(NAMES)}, got {name!r}")


def _check(name: str, views: int, width: int, height: int, arrangement: str, background: str) -> None:
    _check_name(name)
    for what, value, known in (("arrangement", arrangement, ARRANGEMENTS), ("background", background, BACKGROUNDS)):
        if value not in known:
            raise UsageError(f"built-in scene: expected one of {', '.join(known)} as {what}, got {value!r}")
    if views < 1 or min(width, height) < 16:
        raise UsageError(f"built-in scene: expected at least 1 view of 16x16, got {views} of {width}x{height}")


def _cache_folder(cache_dir: str | Path | None) -> Path:
    if cache_dir is None:
        base = os.environ.get("XDG_CACHE_HOME")
        cache_dir = (Path(base) if base else Path.home() / ".cache") / "nsr" / "synthetic"
    folder = Path(cache_dir).absolute()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        if is_transient(error):
            raise
        raise UsageError(
            f"{folder}: the cache of built-in scenes cannot be made ({error.strerror}); "
            "set XDG_CACHE_HOME to a folder that can be written"
        ) from error
    return folder


def _mesh_path(name: str, cache: Path) -> Path:
    return cache / f"{name}-v{_VERSION}.ply"


def _cached_mesh(name: str, path: Path) -> trimesh.Trimesh:
    from nsr.geometry.meshes import load_mesh, save_mesh

    try:
        return load_mesh(path)
    except DataError:  # not there yet, or damaged: make it (again)
        save_mesh(_build_mesh(name), path)
        return load_mesh(path)


def _build_mesh(name: str) -> trimesh.Trimesh:
    from nsr.datasets.synthetic_shapes import SHAPES
    from nsr.geometry.mesh_extraction import extract_mesh
    from nsr.geometry.meshes import largest_component, to_world

    in_scene = extract_mesh(SHAPES[name], resolution=_RESOLUTION[name], extent=0.85, clip_radius=None, refine_steps=2)
    return to_world(largest_component(in_scene), WORLD_FROM_SCENE)


def _read_cached(path: Path, shape: tuple[int, int, int]) -> dict[str, np.ndarray] | None:
    """The arrays of a cached scene; None when it is missing or damaged (the archive carries checksums)."""
    try:
        with np.load(path, allow_pickle=False) as archive:
            arrays = {key: archive[key] for key in ("images", "masks", "intrinsics", "poses")}
    except (OSError, EOFError, KeyError, ValueError, zipfile.BadZipFile):
        return None
    return arrays if arrays["masks"].shape == shape and arrays["images"].shape == (*shape, 3) else None


# --- cameras ---------------------------------------------------------------------------------------------------------


def _make_cameras(
    views: int, width: int, height: int, arrangement: str, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """K [V, 3, 3] and camera_to_world [V, 4, 4], float64: jittered Fibonacci points that look at the centre."""
    # A Fibonacci lattice over a band of the sphere without its poles: of 0.9 times 240 of 360 degrees when frontal.
    index = np.arange(views)
    height_on_sphere = 0.9 * (2 * (index + 0.5) / views - 1)
    reach = np.radians(120 if arrangement == "frontal" else 180)
    azimuth = reach * (2 * ((index + 0.5) * (np.sqrt(5) - 1) / 2 % 1) - 1)
    ring = np.sqrt(1 - height_on_sphere**2)
    towards = np.stack([ring * np.sin(azimuth), height_on_sphere, ring * np.cos(azimuth)], axis=-1)
    towards += rng.uniform(-0.03, 0.03, towards.shape)
    towards /= np.linalg.norm(towards, axis=-1, keepdims=True)

    target = rng.uniform(-0.012, 0.012, (views, 3))
    distance = _CAMERA_DISTANCE * rng.uniform(0.97, 1.03, (views, 1))
    up = np.array([0.0, 1.0, 0.0]) + rng.uniform(-0.05, 0.05, (views, 3))
    poses = _look_at(target + distance * towards, target, up)

    # The ball of the object, seen from the nearest distance and off target, fills the shorter side but for a margin.
    half = min(width, height) / 2
    focal = 0.94 * half / np.tan(np.arcsin((OBJECT_RADIUS + 0.02) / (0.97 * _CAMERA_DISTANCE)))
    center = (width - 1) / 2 + 0.020 * half, (height - 1) / 2 - 0.026 * half
    intrinsics = np.array([[focal, 0, center[0]], [0, 1.006 * focal, center[1]], [0, 0, 1]])
    return np.tile(intrinsics, (views, 1, 1)), poses


def _look_at(center: np.ndarray, target: np.ndarray, up: np.ndarray) -> np.ndarray:
    """camera_to_world [V, 4, 4]: x right, y down, z from the centres [V, 3] to the targets [V, 3]."""
    z = target - center
    z /= np.linalg.norm(z, axis=-1, keepdims=True)
    x = np.cross(z, up)
    x /= np.linalg.norm(x, axis=-1, keepdims=True)
    poses = np.tile(np.eye(4), (len(center), 1, 1))
    poses[:, :3, :4] = np.stack([x, np.cross(z, x), z, center], axis=-1)
    return poses


# --- appearance and rendering ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Appearance:
    """Texture and light of a scene, fixed to the object.

    waves: [3, K] wave vectors (radians per scene unit), phases: [K], amplitudes: [K, 3]: a random field per channel.
    base: [3] mean albedo. lights: [M, 3] unit directions towards the lights, the first one is the key; powers: [M].
    """

    waves: np.ndarray
    phases: np.ndarray
    amplitudes: np.ndarray
    base: np.ndarray
    lights: np.ndarray
    powers: np.ndarray

    def albedo(self, points: np.ndarray) -> np.ndarray:
        """[N, 3]: contrast at all scales from the object's size down to the shortest wave, nothing below."""
        field = np.empty_like(points)
        for start in range(0, len(points), 8192):  # keeps the waves of a chunk in the cache
            part = slice(start, start + 8192)
            field[part] = np.cos(points[part] @ self.waves + self.phases) @ self.amplitudes
        return self.base * (1 + 0.72 * np.tanh(field))

    def shade(self, points: np.ndarray, normals: np.ndarray, to_eye: np.ndarray) -> np.ndarray:
        """Colours [N, 3] in [0, 1]: wrapped diffuse light and a weak, broad highlight (Blinn 1977) of the key light."""
        diffuse = 0.36 + ((normals @ self.lights.T + 1) / 2) ** 2 @ self.powers
        halfway = to_eye + self.lights[0]
        halfway /= np.linalg.norm(halfway, axis=-1, keepdims=True)
        highlight = 0.08 * np.clip((normals * halfway).sum(-1), 0, 1) ** 12
        return np.clip(self.albedo(points) * diffuse[:, None] + highlight[:, None], 0, 1)


def _make_appearance(rng: np.random.Generator) -> _Appearance:
    # Wavelengths evenly over the octaves; the shortest is 3.5 pixels of a 400x300 view, so it survives sampling.
    count, longest, shortest = 128, 0.5, 0.026
    wavelength = longest * (shortest / longest) ** ((np.arange(count) + rng.uniform(0, 1, count)) / count)
    direction = rng.normal(size=(count, 3))
    direction /= np.linalg.norm(direction, axis=-1, keepdims=True)
    amplitudes = 1.0 + 0.22 * rng.normal(size=(count, 3))  # mostly brightness, some colour
    amplitudes *= 0.55 * np.sqrt(2 / count)
    lights = np.array([[0.50, 0.62, 0.60], [-0.80, 0.15, 0.45], [0.1, 0.2, -1.0], [0, 1.0, 0.1]])
    lights += rng.uniform(-0.08, 0.08, lights.shape)
    lights /= np.linalg.norm(lights, axis=-1, keepdims=True)
    waves = 2 * np.pi / wavelength * direction.T
    base = np.array([0.60, 0.52, 0.45]) + rng.uniform(-0.03, 0.03, 3)
    arrays = waves, rng.uniform(0, 2 * np.pi, count), amplitudes, base, lights, np.array([0.55, 0.22, 0.25, 0.15])
    return _Appearance(*(a.astype(np.float32) for a in arrays))


def _render_scene(
    world_mesh: trimesh.Trimesh, views: int, width: int, height: int, arrangement: str, background: str, seed: int
) -> dict[str, np.ndarray]:
    from nsr.geometry.meshes import to_world
    from nsr.geometry.raycast import Raycaster

    mesh = to_world(world_mesh, np.linalg.inv(WORLD_FROM_SCENE))
    camera_rng, appearance_rng, room_rng = (np.random.default_rng([seed, stream]) for stream in range(3))
    intrinsics, poses = _make_cameras(views, width, height, arrangement, camera_rng)
    render = partial(
        _render_view,
        raycaster=Raycaster(mesh),
        normals=np.asarray(mesh.vertex_normals, dtype=np.float32),
        appearance=_make_appearance(appearance_rng),
        room=Room(room_rng) if background == "room" else None,
        size=(width, height),
    )
    with ThreadPoolExecutor(min(os.cpu_count() or 1, 8)) as pool:
        pictures = list(pool.map(render, intrinsics, poses))
    images, masks = (np.stack(part) for part in zip(*pictures, strict=True))
    return {"images": images, "masks": masks, "intrinsics": intrinsics, "poses": poses}


def _render_view(
    intrinsics: np.ndarray,
    pose: np.ndarray,
    raycaster: Raycaster,
    normals: np.ndarray,
    appearance: _Appearance,
    room: Room | None,
    size: tuple[int, int],
) -> tuple[np.ndarray, np.ndarray]:
    """One image [H, W, 3] and its mask [H, W], uint8: the mean over each pixel of _SUPERSAMPLING^2 rays."""
    width, height = size
    image, mask = np.empty((height, width, 3), dtype=np.uint8), np.empty((height, width), dtype=np.uint8)
    rows = max(1, _RAYS_AT_A_TIME // (width * _SUPERSAMPLING**2))
    for top in range(0, height, rows):
        bottom = min(top + rows, height)
        directions = _band_directions(intrinsics, pose, width, top, bottom)
        rgb = np.full(directions.shape, BACKGROUND, dtype=np.float32)
        covered = np.zeros(len(directions), dtype=np.float32)
        # Only rays that meet the object's ball are worth casting.
        eye = pose[:3, 3]
        near = np.flatnonzero(directions @ -eye > np.sqrt(eye @ eye - OBJECT_RADIUS**2))
        hits = raycaster.first_hit(eye, directions[near])
        seen = near[hits.hit]
        towards = directions[seen].astype(np.float32)
        points = eye.astype(np.float32) + towards * hits.distance[hits.hit, None].astype(np.float32)
        normal = raycaster.interpolate(hits, normals)
        normal /= np.linalg.norm(normal, axis=-1, keepdims=True)
        rgb[seen] = appearance.shade(points, normal, -towards)
        covered[seen] = 1
        if room is not None:
            rgb[covered == 0] = room.colors(eye, directions[covered == 0])
        image[top:bottom] = np.round(_box_filter(rgb, bottom - top, width) * 255)
        mask[top:bottom] = np.round(_box_filter(covered[:, None], bottom - top, width)[..., 0] * 255)
    return image, mask


def _band_directions(intrinsics: np.ndarray, pose: np.ndarray, width: int, top: int, bottom: int) -> np.ndarray:
    """Unit directions [N, 3] of the sub-pixel rays of some rows; pixel (u, v) covers u +- 0.5, v +- 0.5."""
    s = _SUPERSAMPLING
    u = (np.arange(width * s) + 0.5) / s - 0.5
    v = (np.arange(top * s, bottom * s) + 0.5) / s - 0.5
    x = (u - intrinsics[0, 2]) / intrinsics[0, 0]
    y = (v - intrinsics[1, 2]) / intrinsics[1, 1]
    in_camera = np.stack([*np.broadcast_arrays(x[None, :], y[:, None]), np.ones((len(y), len(x)))], axis=-1)
    in_camera /= np.linalg.norm(in_camera, axis=-1, keepdims=True)
    return in_camera.reshape(-1, 3) @ pose[:3, :3].T


def _box_filter(values: np.ndarray, rows: int, width: int) -> np.ndarray:
    """[rows, width, C] means of the sub-pixel values [rows * s * width * s, C]."""
    s = _SUPERSAMPLING
    values = values.reshape(rows, s, width, s, -1)
    return sum(values[:, i, :, j] for i in range(s) for j in range(s)) / s**2
