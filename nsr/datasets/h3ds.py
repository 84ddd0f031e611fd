"""The views that H3DS (Ramon et al. 2021) reconstructs a head from, so that results of so many views can be compared."""

from __future__ import annotations

import tomllib
from pathlib import Path

from nsr.utils.errors import DataError, is_transient

FILE = "config.toml"  # in the folder of the scenes


def published_views(scene: str | Path, wanted: int, count: int) -> list[int] | None:
    """Positions of the `wanted` views that the data set gives for a scene folder of `count` views; None where it says nothing.

    Read from scenes.SCENE.default_views_configs.WANTED of config.toml beside the folder. Raises DataError where the file cannot
    be read, or names views that are not there.
    """
    folder = Path(scene).resolve()
    file = folder.parent / FILE
    if not folder.is_dir() or not file.is_file():  # a built-in scene is no folder
        return None
    try:
        scenes = tomllib.loads(file.read_text(encoding="utf-8")).get("scenes", {})
        views = scenes.get(folder.name, {}).get("default_views_configs", {}).get(str(wanted))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError, AttributeError) as error:
        if is_transient(error):
            raise
        raise DataError(f"{file}: cannot be read as the view splits of H3DS: {error}; choose views with --views") from error
    if views is None:
        return None
    if (
        not isinstance(views, list)
        or not all(isinstance(view, int) for view in views)
        or len(set(views) & set(range(count))) != len(views)
        or len(views) != wanted
    ):
        raise DataError(
            f"{file}: expected {wanted} different views from 0 to {count - 1} for {folder.name}, found {views}; "
            "choose with --views"
        )
    return views
