"""The front door of the data: a folder in any layout that nsr reads, or a built-in scene's name, becomes a `Scene`."""

from __future__ import annotations

import re
from pathlib import Path

from torch import Tensor

from nsr.datasets.idr import CAMERA_FILES, IMAGE_FOLDERS, load_idr
from nsr.types import Scene, Sphere
from nsr.utils.errors import DataError, UsageError

BUILT_IN = ("bust", "dents")
_FORMS = "expected a count (8), a list (0,3,5) or ranges (0-10:2)"


def load_scene(
    path_or_name: str | Path,
    *,
    views: list[int] | None = None,
    train_cameras: bool = False,
    masks: Tensor | None = None,
    sphere: Sphere | None = None,
) -> Scene:
    """Read a scene folder in IDR, NeuS or H3DS layout, or make a built-in scene.

    Args:
        path_or_name: a folder, or `bust` or `dents` (a folder of that name wins if it looks like a scene).
        views: positions of the views to keep, all when None.
        train_cameras: start from a folder's noisy cameras, where it has them beside the true ones; see load_idr.
        masks, sphere: instead of the folder's own; see load_idr.

    Raises:
        DataError: nothing there that can be read; the message lists what was looked for.
        UsageError: a view that the scene does not have; masks or a sphere for a built-in scene, whose own are exact.
    """
    folder = Path(path_or_name)
    if is_built_in(path_or_name):
        from nsr.datasets.synthetic import make_scene

        if masks is not None or sphere is not None:
            raise UsageError(
                f"{path_or_name}: a built-in scene has exact masks and its sphere; "
                "write it as files (nsr data synthetic) to try others"
            )
        scene = make_scene(str(path_or_name))
        return scene if views is None else scene.select(_checked(views, len(scene)))
    if not folder.is_dir():
        built_in = ", ".join(BUILT_IN)
        raise DataError(f"{path_or_name}: no such folder; expected a scene folder, or a built-in scene: {built_in}")
    if not _looks_like_scene(folder):
        raise DataError(_unknown_layout(folder))
    return load_idr(folder, views, train_cameras=train_cameras, masks=masks, sphere=sphere)


def is_built_in(path_or_name: str | Path) -> bool:
    """Whether load_scene makes this scene itself; a folder of results named like a built-in scene does not hide it."""
    return str(path_or_name) in BUILT_IN and not _looks_like_scene(Path(path_or_name))


def _looks_like_scene(folder: Path) -> bool:
    return any((folder / name).exists() for name in (*CAMERA_FILES, *IMAGE_FOLDERS))


def parse_views(text: str, count: int) -> list[int]:
    """Views of a scene of `count` views, from text.

    "8" is eight views spread evenly; "0,3,5" are these; "0-10:2" is every second from 0 to 10; "3," is view 3 alone.
    Ranges and numbers may be mixed.

    Raises:
        UsageError: not of this form, a view that does not exist, or one named twice.
    """
    text = text.strip()
    if text.isdecimal():
        wanted = int(text)
        if not 1 <= wanted <= count:
            raise UsageError(f"views {text!r}: expected 1 to {count} views ('{text},' means view {text} alone)")
        return [i * count // wanted for i in range(wanted)]
    views: list[int] = []
    for part in filter(None, (part.strip() for part in text.split(","))):
        match = re.fullmatch(r"(\d+)(?:-(\d+)(?::([1-9]\d*))?)?", part)
        if match is None:
            raise UsageError(f"views {text!r}: cannot read {part!r}; {_FORMS}")
        first, last = int(match[1]), int(match[2] or match[1])
        if last < first:
            raise UsageError(f"views {text!r}: the range {part!r} runs backwards; write {last}-{first}")
        views.extend(range(first, last + 1, int(match[3] or 1)))
    if not views:
        raise UsageError(f"views {text!r}: names no view; {_FORMS}")
    if len(set(views)) != len(views):
        raise UsageError(f"views {text!r}: a view is named twice")
    return _checked(views, count)


def _checked(views: list[int], count: int) -> list[int]:
    if wrong := [view for view in views if not 0 <= view < count]:
        raise UsageError(f"view {wrong[0]} was asked for, but the scene has views 0 to {count - 1}")
    return views


def _unknown_layout(folder: Path) -> str:
    """What a folder holds, and what nsr could have read."""
    inside = sorted(p.name + "/" * p.is_dir() for p in folder.iterdir() if not p.name.startswith("."))
    held = ", ".join(inside[:8]) + (f" and {len(inside) - 8} more" if len(inside) > 8 else "") or "nothing"
    scenes = [p.name for p in sorted(folder.iterdir()) if any((p / name).exists() for name in CAMERA_FILES)]
    hint = f"; did you mean {folder / scenes[0]}?" if scenes else ""
    return (
        f"{folder}: not a scene: no {' or '.join(CAMERA_FILES)} and no {' or '.join(IMAGE_FOLDERS)} folder; "
        f"it holds {held}. "
        "Layouts understood: IDR (image/, mask/, cameras.npz), NeuS (image/ or images/, mask/ or masks/, "
        f"cameras_sphere.npz), H3DS heads (IDR with full_head.obj); docs/own_photos.md shows how to make one{hint}"
    )
