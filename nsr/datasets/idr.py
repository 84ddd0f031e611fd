"""The IDR layout: a folder of images, one of masks, and cameras.npz (Yariv et al. 2020; DTU, BlendedMVS, H3DS heads).

scene/
  image/000000.png ...      (or images/)
  mask/000.png ...          (or masks/; left out when the images carry an alpha channel, or when nobody has made masks)
  cameras.npz               (or cameras_sphere.npz, as NeuS writes it)
      world_mat_i           4x4 or 3x4, K [R | t]: world to pixel, of the i-th image in natural order
      scale_mat_i           4x4 similarity: scene frame (unit sphere) to world frame; computed when missing
  cameras_linear_init.npz   optional, the same keys: noisy cameras to start from where the cameras are trained;
                            cameras.npz then is the reference they are measured against
  mesh_gt.ply               optional ground truth in the world frame (or gt.ply, full_head.obj)
"""

from __future__ import annotations

import io
import logging
import os
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from nsr.datasets.images import list_images, masks_from_alpha, read_image, read_many, read_mask, trailing_number
from nsr.geometry.cameras import decompose_projection
from nsr.types import Cameras, Scene, Sphere
from nsr.utils.errors import DataError, UsageError, is_transient
from nsr.utils.files import atomic_write

IMAGE_FOLDERS = ("image", "images")
MASK_FOLDERS = ("mask", "masks")
CAMERA_FILES = ("cameras.npz", "cameras_sphere.npz")
START_CAMERA_FILE = "cameras_linear_init.npz"
GROUND_TRUTH_FILES = ("full_head.obj", "mesh_gt.ply", "gt.ply")
_LOG = logging.getLogger("nsr")


@dataclass(frozen=True)
class IdrFiles:
    """What was found in a folder; `masks` is None when only the images may give them, by their alpha channel."""

    images: list[Path]
    masks: list[Path] | None
    cameras: Path
    ground_truth: Path | None


def load_idr(
    path: str | Path,
    views: list[int] | None = None,
    *,
    train_cameras: bool = False,
    masks: Tensor | None = None,
    sphere: Sphere | None = None,
) -> Scene:
    """Read a scene in IDR layout; only the given views (positions in natural order) when `views` is not None.

    train_cameras: the cameras are to be refined. Where there is a START_CAMERA_FILE, the scene's cameras are then its noisy
    ones, and `reference` holds those of the camera file.
    masks: [V, H, W] uint8 of all views of the folder, instead of its own. Without any the scene is not masked.
    sphere: centre and radius (world units) of what is to be the scene's unit sphere, instead of what scale_mat says.

    Raises:
        DataError: a file is missing or unusable, or images, masks and cameras do not belong together.
        UsageError: a view was asked for that the scene does not have.
    """
    folder = Path(path)
    files = find_files(folder)
    count = len(files.images)
    views = list(range(count)) if views is None else list(views)
    if not views:
        raise UsageError(f"{folder}: no view was chosen; expected at least one of 0 to {count - 1}")
    if out_of_range := [v for v in views if not 0 <= v < count]:
        raise UsageError(f"{folder}: view {out_of_range[0]} was asked for, but the scene has views 0 to {count - 1}")

    frame = {"masks": masks, "sphere": sphere}
    world, world_from_scene = _read_cameras(files, views, **frame)
    reference_world = None
    if train_cameras and (start := folder / START_CAMERA_FILE).exists():
        reference_world = world
        world, world_from_scene = _read_cameras(replace(files, cameras=start), views, world_from_scene, **frame)

    images = _read_images([files.images[v] for v in views])
    if masks is not None and tuple(masks.shape) != (count, *images.shape[1:3]):
        found = f"{count} images of {images.shape[2]}x{images.shape[1]}"
        raise DataError(f"{folder}: masks of shape {list(masks.shape)} for {found} pixels; expected one per image, of its size")
    masks = _read_masks(files, views, images.shape[1:3]) if masks is None else masks.numpy()[views]
    size = {"width": images.shape[2], "height": images.shape[1]}
    return Scene(
        images=torch.from_numpy(images),
        masks=torch.from_numpy(masks if masks is not None else np.full(images.shape[:3], 255, dtype=np.uint8)),
        cameras=_scene_cameras(world, world_from_scene, **size),
        world_from_scene=world_from_scene,
        view_names=tuple(files.images[v].stem for v in views),
        name=folder.resolve().name,
        source=str(folder),
        ground_truth=str(files.ground_truth) if files.ground_truth else None,
        guesses=tuple(filter(None, [guessed_pairs(files)])),
        reference=_scene_cameras(reference_world, np.eye(4), **size) if reference_world is not None else None,
        masked=masks is not None,
    )


# ------------------------------------------------------------------------------------------------------ finding files


def has_masks(folder: Path) -> bool:
    """Whether a scene folder has masks: files of their own, or its images an alpha channel. Raises what find_files raises."""
    files = find_files(folder)
    return files.masks is not None or masks_from_alpha(files.images[:1]) is not None


def find_files(folder: Path) -> IdrFiles:
    """The files of a scene, masks paired with images. DataError when something is missing or does not pair up."""
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder; expected a scene with image/, mask/ and cameras.npz")
    cameras = _first(folder, CAMERA_FILES)
    if cameras is None:
        raise DataError(
            f"{folder}: no camera file; expected {' or '.join(CAMERA_FILES)} with world_mat_i per image "
            "(docs/own_photos.md shows how to write one)"
        )
    image_folder = _first(folder, IMAGE_FOLDERS)
    images = list_images(image_folder) if image_folder else []
    if not images:
        where = image_folder or " or ".join(f"{name}/" for name in IMAGE_FOLDERS)
        raise DataError(f"{folder}: no images; expected png or jpg files in {where}")
    mask_folder = _first(folder, MASK_FOLDERS)
    masks = pair_masks(images, list_images(mask_folder)) if mask_folder else None
    return IdrFiles(images, masks, cameras, _first(folder, GROUND_TRUTH_FILES))


def pair_masks(images: list[Path], masks: list[Path]) -> list[Path]:
    """Masks in the order of their images: by equal stem, else by number in the name, else by natural order.

    Raises:
        DataError: images or masks lack a partner; the message names them.
    """
    for key in (_stem, trailing_number):
        by_key = {key(mask): mask for mask in masks}
        if len(by_key) == len(masks) and {key(image) for image in images} == by_key.keys() and None not in by_key:
            return [by_key[key(image)] for image in images]
    offsets = {_offset(image, mask) for image, mask in zip(images, masks, strict=False)}
    if len(images) == len(masks) and len(offsets) == 1:  # names without numbers, or counted from another start
        return masks
    numbered = all(trailing_number(path) is not None for path in images + masks)
    key = trailing_number if numbered else _stem
    image_keys, mask_keys = {key(path) for path in images}, {key(path) for path in masks}
    raise DataError(
        f"{images[0].parent.parent}: {len(images)} images and {len(masks)} masks do not pair up; "
        f"images without a mask: {_some([p.name for p in images if key(p) not in mask_keys])}; "
        f"masks without an image: {_some([p.name for p in masks if key(p) not in image_keys])}; "
        "give each image a mask of the same name or number"
    )


def guessed_pairs(files: IdrFiles) -> str | None:
    """In words, that images and masks are paired by their order alone, where names and numbers tell otherwise or nothing."""
    for image, mask in zip(files.images, files.masks or files.images, strict=True):
        number = trailing_number(image)
        if image.stem != mask.stem and (number is None or number != trailing_number(mask)):
            return f"images and masks differ in names and numbers and are paired by order: {image.name} with {mask.name}"
    return None


def camera_numbers(files: IdrFiles, matrices: dict[str, np.ndarray]) -> list[int]:
    """The i of world_mat_i for every image.

    Image k in natural order has camera k when there are as many cameras as images. When the images are a part of a
    larger set, the number in each name picks its camera.
    """
    available = {int(key.removeprefix("world_mat_")) for key in matrices if _is_world_key(key)}
    if not available:
        raise DataError(
            f"{files.cameras}: no camera matrices; expected keys world_mat_0, world_mat_1, ... (K [R | t], 4x4), "
            f"found {_some(sorted(matrices))}"
        )
    count = len(files.images)
    if available == set(range(count)):
        return list(range(count))
    numbers = [trailing_number(image) for image in files.images]
    if len(set(numbers)) == count and available.issuperset(numbers):
        return numbers
    if len(available) == count:  # as many cameras as images, counted from another start
        return sorted(available)
    missing = [f"world_mat_{i} ({files.images[i].name})" for i in range(count) if i not in available]
    raise DataError(
        f"{files.cameras}: {len(available)} cameras for {count} images, and the numbers in the image names do not tell "
        f"which belong together; without a camera by position: {_some(missing)}"
    )


def _first(folder: Path, names: tuple[str, ...]) -> Path | None:
    return next((folder / name for name in names if (folder / name).exists()), None)


def _stem(path: Path) -> str:
    return path.stem


def _offset(image: Path, mask: Path) -> int | None:
    """By how much the numbers in two names differ; None when one of them has no number."""
    a, b = trailing_number(image), trailing_number(mask)
    return None if a is None or b is None else a - b


def _some(items: list[str], most: int = 8) -> str:
    """A list for an error message: the first few items and how many more there are."""
    rest = f" and {len(items) - most} more" if len(items) > most else ""
    return (", ".join(items[:most]) + rest) or "none"


def _is_world_key(key: str) -> bool:
    return key.startswith("world_mat_") and key.removeprefix("world_mat_").isdecimal()


# ------------------------------------------------------------------------------------------------------------ cameras


def _read_cameras(
    files: IdrFiles,
    views: list[int],
    world_from_scene: np.ndarray | None = None,
    *,
    masks: Tensor | None = None,
    sphere: Sphere | None = None,
) -> tuple[list[np.ndarray], np.ndarray]:
    """world_mat of the views, and the scene's frame: by `sphere`, else by scale_mat, else `world_from_scene`, else computed."""
    from nsr.geometry.normalisation import sphere_frame

    matrices = read_matrices(files.cameras)
    numbers = camera_numbers(files, matrices)
    world = [_matrix(files.cameras, matrices, f"world_mat_{number}") for number in numbers]
    if sphere is not None:
        world_from_scene = sphere_frame(sphere)
    elif any(key.startswith("scale_mat_") and not key.startswith("scale_mat_inv") for key in matrices):
        world_from_scene = _common_scale(files.cameras, matrices, [numbers[v] for v in views])
    elif world_from_scene is None:
        world_from_scene = _normalise(files, matrices, world, masks)
    return [world[v] for v in views], world_from_scene


def read_matrices(path: Path) -> dict[str, np.ndarray]:
    """What a camera file holds, by key. Raises DataError where it cannot be read."""
    try:
        with np.load(path, allow_pickle=False) as archive:
            return {key: archive[key] for key in archive.files}
    except Exception as error:  # zipfile, zlib and numpy raise whatever a damaged archive leads them to
        if is_transient(error):
            raise
        raise DataError(f"{path}: not a readable npz archive ({error}); write the cameras again") from error


def _matrix(path: Path, matrices: dict[str, np.ndarray], key: str) -> np.ndarray:
    """A camera or scale matrix as [4, 4] float64. DataError when it is missing, misshapen or not finite."""
    if key not in matrices:
        found = _some(sorted(matrices))
        raise DataError(f"{path}: key {key} is missing; expected one 4x4 matrix per image, found {found}")
    matrix = np.asarray(matrices[key])
    if matrix.shape not in ((4, 4), (3, 4)) or not np.issubdtype(matrix.dtype, np.number):
        raise DataError(f"{path}: {key} must be a 4x4 or 3x4 matrix, got {matrix.dtype} of shape {list(matrix.shape)}")
    if not np.isfinite(matrix).all():
        raise DataError(f"{path}: {key} has NaN or infinite entries; drop this view or solve its camera again")
    return np.vstack([matrix[:3], [0, 0, 0, 1]]).astype(np.float64)


def _common_scale(path: Path, matrices: dict[str, np.ndarray], numbers: list[int]) -> np.ndarray:
    """scale_mat, which must be one similarity for all views."""
    scale = _matrix(path, matrices, f"scale_mat_{numbers[0]}")
    for number in numbers:
        if not np.allclose(_matrix(path, matrices, f"scale_mat_{number}"), scale, rtol=1e-5, atol=1e-6 * scale[0, 0]):
            raise DataError(
                f"{path}: scale_mat_{number} differs from scale_mat_{numbers[0]}; all views must share one scene frame "
                "(remove the scale_mat keys to have it computed from the masks)"
            )
    factor = np.cbrt(np.linalg.det(scale[:3, :3]))
    if not factor > 0 or not np.allclose(scale[:3, :3].T @ scale[:3, :3] / factor**2, np.eye(3), atol=1e-4):
        raise DataError(
            f"{path}: scale_mat_{numbers[0]} is not a similarity (one positive scale, a rotation, an offset); "
            "remove the scale_mat keys to have it computed from the masks"
        )
    return scale


def _scene_cameras(world: list[np.ndarray], world_from_scene: np.ndarray, width: int, height: int) -> Cameras:
    """Cameras in the scene frame: P = world_mat @ scale_mat, taken apart in float64."""
    projections = np.stack(world)[:, :3] @ world_from_scene
    intrinsics, camera_to_world = decompose_projection(projections)
    return Cameras(torch.from_numpy(intrinsics).float(), torch.from_numpy(camera_to_world).float(), width, height)


def _normalise(files: IdrFiles, matrices: dict[str, np.ndarray], world: list[np.ndarray], masks: Tensor | None) -> np.ndarray:
    """Compute scale_mat from all cameras and all masks: `masks`, else the scene's own, else none.

    What the scene's own masks say is kept in the camera file, where that can be written.
    """
    from nsr.geometry.normalisation import camera_normalisation, scene_normalisation

    size = read_image(files.images[0]).shape
    intrinsics, camera_to_world = decompose_projection(np.stack(world)[:, :3])
    cameras = Cameras(torch.from_numpy(intrinsics), torch.from_numpy(camera_to_world), size[1], size[0])
    if masks is not None:
        return scene_normalisation(cameras, masks)
    own = _read_masks(files, list(range(len(files.images))), size[:2])
    if own is None:
        return camera_normalisation(cameras)
    world_from_scene = scene_normalisation(cameras, torch.from_numpy(own))
    numbers = [key.removeprefix("world_mat_") for key in matrices if _is_world_key(key)]
    buffer = io.BytesIO()
    np.savez(buffer, **matrices, **{f"scale_mat_{number}": world_from_scene for number in numbers})
    try:
        if not os.access(files.cameras, os.W_OK):
            raise PermissionError("the file is read-only")
        with atomic_write(files.cameras, "wb") as file:
            file.write(buffer.getvalue())
        _LOG.info("%s: scale_mat was missing; computed from the masks and written back", files.cameras)
    except OSError as error:
        _LOG.warning("%s: scale_mat was missing; computed from the masks, not written back (%s)", files.cameras, error)
    return world_from_scene


# ------------------------------------------------------------------------------------------------------------- pixels


def _read_images(paths: list[Path]) -> np.ndarray:
    """[V, H, W, 3] uint8. DataError when the sizes differ."""
    images = read_many(read_image, paths)
    for path, image in zip(paths, images, strict=True):
        if image.shape != images[0].shape:
            raise DataError(
                f"{path}: image of {_size(image)} pixels, but {paths[0].name} has {_size(images[0])}; all images of a "
                "scene must have one size: resize or crop them before the cameras are computed"
            )
    return np.stack(images)


def _read_masks(files: IdrFiles, views: list[int], size: tuple[int, int]) -> np.ndarray | None:
    """[V, H, W] uint8, None where nobody has made any. DataError when a mask is empty or of another size than its image."""
    if files.masks is None:
        paths = [files.images[v] for v in views]
        masks = masks_from_alpha(paths)
        if masks is None:
            return None
    else:
        paths = [files.masks[v] for v in views]
        masks = read_many(read_mask, paths)
    for path, mask in zip(paths, masks, strict=True):
        if mask.shape != size:
            turned = " and without an EXIF orientation" if mask.shape == size[::-1] else ""
            raise DataError(
                f"{path}: mask of {_size(mask)} pixels for images of {size[1]}x{size[0]}; "
                f"export the mask at the size of its image{turned}"
            )
    empty = [path.name for path, mask in zip(paths, masks, strict=True) if mask.max() < 128]
    if empty:
        raise DataError(
            f"{paths[0].parent}: empty mask (no pixel is object): {_some(empty)}; "
            "paint the object white, or remove these views with their images"
        )
    return np.stack(masks)


def _size(array: np.ndarray) -> str:
    return f"{array.shape[1]}x{array.shape[0]}"
