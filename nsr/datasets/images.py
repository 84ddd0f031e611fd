"""Reading photographs and masks whatever program wrote them, always as 8 bit arrays of a known shape."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image

from nsr.utils.errors import DataError, is_transient

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".webp")
_SIXTEEN_BIT_MODES = ("I", "I;16", "I;16B", "I;16L", "I;16N")


def natural_key(name: str | Path) -> tuple:
    """Sort key that puts img_2 before img_10; a path is compared by its file name."""
    name = Path(name).name
    parts = re.split(r"(\d+)", name)
    return tuple((1, int(part), "") if part.isdecimal() else (0, 0, part.lower()) for part in parts), name


def trailing_number(name: str | Path) -> int | None:
    """The last number in a file's stem (img_0012.jpg -> 12), None when there is none."""
    digits = re.findall(r"\d+", Path(name).stem)
    return int(digits[-1]) if digits else None


def list_images(folder: Path) -> list[Path]:
    """The image files directly in a folder, in natural order, hidden files left out."""
    files = (p for p in folder.iterdir() if p.suffix.lower() in IMAGE_SUFFIXES and not p.name.startswith("."))
    return sorted((p for p in files if p.is_file()), key=natural_key)


def read_image(path: str | Path) -> np.ndarray:
    """[H, W, 3] uint8 sRGB of an 8 or 16 bit image: colour, greyscale or palette; an alpha channel is dropped.

    Pixels are returned as stored: an EXIF orientation is not applied, as camera calibration programs ignore it too.

    Raises:
        DataError: the file is missing, truncated, or not an image.
    """
    image = _open(path)
    if image.mode in _SIXTEEN_BIT_MODES or image.mode == "F":
        grey = _eight_bits(np.asarray(image), path)
        return np.repeat(grey[..., None], 3, axis=-1)
    return np.array(image.convert("RGB"))


def read_mask(path: str | Path) -> np.ndarray:
    """[H, W] uint8 mask, 0 background, 255 object, soft values kept.

    A varying alpha channel is the mask; otherwise the largest colour channel is. A mask of only two values, one of them
    zero, is stretched to 0 and 255 (label images store 1, palettes store any colour). 16 bit masks are reduced to 8.

    Raises:
        DataError: the file is missing, truncated, or not an image.
    """
    image = _open(path)
    if image.mode in _SIXTEEN_BIT_MODES or image.mode == "F":
        values = np.asarray(image)
        return _stretch_binary(values) if _is_binary(values) else _eight_bits(values, path)
    alpha = _alpha(image)
    values = alpha if alpha is not None else np.asarray(image.convert("RGB")).max(axis=-1)
    return _stretch_binary(values) if _is_binary(values) else values


def masks_from_alpha(paths: Sequence[Path]) -> list[np.ndarray] | None:
    """The alpha channels of cut-out images as masks, for scenes without a mask folder; None when no image has one.

    Raises:
        DataError: some images have an alpha channel that varies, others have none.
    """
    masks = read_many(lambda path: _alpha(_open(path)), paths)
    if all(mask is None for mask in masks):
        return None
    for path, mask in zip(paths, masks, strict=True):
        if mask is None:
            raise DataError(
                f"{path}: was to give the mask by its alpha channel, as other images do, but has none that varies; "
                "cut it out too, or put masks of the same names into a folder mask/ beside the images"
            )
    return masks


def read_many(reader: Callable[[Path], np.ndarray], paths: Iterable[Path]) -> list[np.ndarray]:
    """`reader` over files on a few threads (decoding releases the interpreter), in the order of `paths`."""
    with ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1)) as pool:
        return list(pool.map(reader, paths))


def _open(path: str | Path) -> Image.Image:
    """A fully decoded image, so that a truncated file fails here and by name."""
    try:
        with Image.open(path) as image:
            image.load()
            return image
    except FileNotFoundError as error:
        raise DataError(f"read image: {path} does not exist") from error
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        if is_transient(error):
            raise
        raise DataError(f"read image: {path} is truncated or no image ({error}); copy or export it again") from error


def _alpha(image: Image.Image) -> np.ndarray | None:
    """[H, W] uint8 alpha of an image when it has one that is not constant."""
    if image.mode not in ("RGBA", "LA", "PA", "La", "RGBa") and "transparency" not in image.info:
        return None
    alpha = np.asarray(image.convert("RGBA"))[..., 3]
    return alpha.copy() if alpha.min() != alpha.max() else None


def _eight_bits(values: np.ndarray, path: str | Path) -> np.ndarray:
    """16 bit (or float in [0, 1]) greyscale to uint8; values that never exceed 255 are taken as 8 bit data."""
    if not np.isfinite(values).all() or values.min() < 0 or values.max() > 65535:
        raise DataError(f"read image: {path} has values outside 0..65535; export it as an 8 or 16 bit image")
    if np.issubdtype(values.dtype, np.floating) and values.max() <= 1:
        return np.rint(values * 255).astype(np.uint8)
    if values.max() <= 255:
        return np.rint(values).astype(np.uint8)
    return np.rint(values / 257).astype(np.uint8)


def _is_binary(values: np.ndarray) -> bool:
    """Whether an array holds only zero and at most one other value."""
    top = values.max()
    return bool(((values == 0) | (values == top)).all())


def _stretch_binary(values: np.ndarray) -> np.ndarray:
    return np.where(values > 0, 255, 0).astype(np.uint8)
