"""H3DS, heads with scans (Ramon et al., ICCV 2021; Caselles et al. 2023), and what is laid out like it.

ROOT/
  version.txt                 the version of the data: 0.2 (with config_v1) or 0.4 (with config_v2)
  config.toml                 optional: which scenes there are, and which views to reconstruct them from; see find_config
  SCENE/
    full_head.obj             the scan, in mm
    image/img_0000.jpg ...
    mask/mask_0000.png ...
    cameras.npz               world_mat_i and scale_mat_i, see nsr.datasets.idr
    landmarks.txt             a landmark's name and its vertex of the scan, per line
    regions/face.txt ...      face, face_sphere, nose: one vertex of the scan per line

The configuration is that of the public `h3ds` package: per scene `views` (how many), `tags`, and `default_views_configs`, lists
of views by their intended number. Some of the published lists repeat a view or have one more than they say; here each view
counts once, and a list is known by the number it goes under.
"""

from __future__ import annotations

import importlib.util
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from nsr.datasets.idr import load_idr
from nsr.types import Scene
from nsr.utils.errors import DataError, is_transient

if TYPE_CHECKING:
    import trimesh

FILE = "config.toml"  # in the folder of the scenes
MESH, LANDMARKS, REGIONS = "full_head.obj", "landmarks.txt", ("face", "face_sphere", "nose")
LANDMARK_NAMES = ("right_eye", "left_eye", "nose_tip", "nose_base", "right_lips", "left_lips")
VIEW_COUNTS = (3, 4, 8, 16, 32)  # that both versions have lists for
LAYOUT = (
    "expected a folder with version.txt and one folder per head, with full_head.obj, image/img_0000.jpg ..., "
    "mask/mask_0000.png ..., cameras.npz, landmarks.txt and regions/"
)
ACCESS = (
    "H3DS is not downloaded by nsr: its authors give access for non-commercial research; the form and the terms are on "
    "https://github.com/CrisalixSA/h3ds (docs/heads.md)"
)
Landmark = int | tuple[float, float, float]  # a vertex, or a point


@dataclass(frozen=True)
class H3dsScene:
    """A head's folder. tags, views (how many), splits: what the configuration says of it, by the number of views intended."""

    folder: Path
    tags: tuple[str, ...] = ()
    views: int | None = None
    splits: Mapping[int, Sequence[int]] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return self.folder.name

    @property
    def mesh_file(self) -> Path:
        return self.folder / MESH

    def image_file(self, view: int) -> Path:
        return self.folder / "image" / f"img_{view:04}.jpg"

    def mask_file(self, view: int) -> Path:
        return self.folder / "mask" / f"mask_{view:04}.png"

    def load(self, views: list[int] | None = None) -> Scene:
        """The photographs, masks and cameras of all views, or of some. Raises what load_idr raises."""
        return load_idr(self.folder, views)

    def load_mesh(self) -> trimesh.Trimesh:
        """The scan in mm, its vertices in the order that landmarks and regions count in."""
        from nsr.geometry.meshes import load_numbered_mesh

        return load_numbered_mesh(self.mesh_file)

    def landmarks(self) -> dict[str, int]:
        """Vertex of the scan by landmark. Raises DataError where one of LANDMARK_NAMES is missing."""
        file = self.folder / LANDMARKS
        marks = read_landmarks(file)
        if points := [name for name, mark in marks.items() if not isinstance(mark, int)]:
            raise DataError(f"{file}: expected vertices of {MESH}, got a point for {points[0]}; fetch the file again")
        if missing := [name for name in LANDMARK_NAMES if name not in marks]:
            raise DataError(f"{file}: expected {', '.join(LANDMARK_NAMES)}; {', '.join(missing)} missing; fetch the file again")
        return marks

    def region(self, name: str) -> np.ndarray:
        """[N] int64 vertices of the scan in a region of REGIONS."""
        file = self.folder / "regions" / f"{name}.txt"
        lines = _read_text(file).split()
        if not lines or not all(line.isdecimal() for line in lines):
            found = next((line for line in lines if not line.isdecimal()), "nothing")
            raise DataError(f"{file}: expected one vertex number per line, found {found[:40]}; fetch the file again")
        return np.array(lines, dtype=np.int64)

    def missing(self) -> list[str]:
        """What the folder lacks of the layout, in words; nothing where it is whole."""
        if not self.folder.is_dir():
            return ["the folder"]
        plain = (MESH, "cameras.npz", LANDMARKS, *(f"regions/{name}.txt" for name in REGIONS))
        lacking = [name for name in plain if not (self.folder / name).is_file()]
        for kind in (self.image_file, self.mask_file):
            files = [kind(view) for view in range(self.views or 0)]
            if absent := [file for file in files if not file.is_file()]:
                lacking.append(f"{len(absent)} of {len(files)} in {absent[0].parent.name}/ ({absent[0].name})")
        return lacking


@dataclass(frozen=True)
class H3ds:
    """The data set in a folder. version: that of version.txt, None where there is none; config: the file that named the scenes;
    config_version: what that file says it is for, "" where it says nothing."""

    root: Path
    version: str | None
    config: Path
    config_version: str
    scenes: dict[str, H3dsScene]

    @classmethod
    def open(cls, root: str | Path, config: str | Path | None = None) -> H3ds:
        """The data set in `root`; config: instead of what find_config finds.

        Files of scenes may be missing, see H3dsScene.missing. Raises DataError where the folder is not of the layout, there is
        no configuration, or it cannot be used; the message says how access to the data is obtained.
        """
        root = Path(root)
        if not root.is_dir():
            raise DataError(f"{root}: no such folder; {LAYOUT}. {ACCESS}")
        if is_h3ds_scene(root):
            raise DataError(f"{root}: one head; expected the folder of all of them: {root.resolve().parent}")
        version = _version(root)
        file = Path(config) if config is not None else find_config(root)
        if file is None and not any(is_h3ds_scene(folder) for folder in root.iterdir()):
            held = ", ".join(sorted(path.name for path in root.iterdir())[:8]) or "nothing"
            raise DataError(f"{root}: not H3DS, it holds {held}; {LAYOUT}. {ACCESS}")
        if file is None:
            raise DataError(
                f"{root}: no configuration with its scenes and views: expected {FILE} in it, or the h3ds package's for version "
                f"{version or '(no version.txt)'} (pip install --no-deps h3ds), or --config FILE"
            )
        read = _read_config(file)
        scenes = {name: _scene(root / name, file, entry) for name, entry in read.scenes.items()}
        if not scenes:
            raise DataError(f"{file}: names no scenes; expected tables scenes.NAME with views and default_views_configs")
        return cls(root, version, file, read.version, scenes)


def is_h3ds_scene(folder: str | Path) -> bool:
    """Whether a folder is a head with what measuring it takes: full_head.obj, landmarks.txt and regions/."""
    folder = Path(folder)
    return (folder / MESH).is_file() and (folder / LANDMARKS).is_file() and (folder / "regions").is_dir()


# ------------------------------------------------------------------------------------------------------ configuration


def published_views(scene: str | Path, wanted: int, count: int) -> list[int] | None:
    """The views from which the data set means a scene folder to be reconstructed where `wanted` of its `count` views are taken;
    None where it says nothing.

    Read from scenes.SCENE.default_views_configs.WANTED of the configuration that find_config finds for the folder above. Raises
    DataError where that cannot be read, or names views that are not there.
    """
    folder = Path(scene).resolve()
    if not folder.is_dir():  # a built-in scene
        return None
    file = find_config(folder.parent)
    entry = _read_config(file).scenes.get(folder.name) if file is not None else None
    views = _split_table(file, folder.name, entry).get(str(wanted)) if entry is not None else None
    return None if views is None else _split(file, folder.name, str(wanted), views, count)


def find_config(root: Path) -> Path | None:
    """The file with the views of a folder of scenes: its own config.toml; else that of the installed `h3ds` package for the
    version in version.txt; else None."""
    if (root / FILE).is_file():
        return root / FILE
    version = _version(root)
    if version is None:
        return None
    return next((file for file in _installed_configs() if _read_config(file).version == version), None)


def _installed_configs() -> list[Path]:
    """The configuration files of the `h3ds` package, which is not imported: it needs much that reading them does not."""
    try:
        found = importlib.util.find_spec("h3ds")
    except ValueError:  # a module of that name without a spec
        found = None
    folders = found.submodule_search_locations if found is not None else None
    return sorted(file for folder in folders or () for file in Path(folder).glob("config*.toml"))


class _Config(NamedTuple):
    version: str
    scenes: dict[str, dict[str, Any]]


def _read_config(file: Path) -> _Config:
    try:
        tree = tomllib.loads(file.read_text(encoding="utf-8"))
        scenes = tree.get("scenes", {})
        if not isinstance(scenes, dict) or not all(isinstance(entry, dict) for entry in scenes.values()):
            raise TypeError("scenes is not a table of tables")
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError, TypeError) as error:
        if is_transient(error):
            raise
        raise DataError(
            f"{file}: cannot be read as the view splits of H3DS: {error}; mend the file, or list the views"
        ) from error
    return _Config(str(tree.get("version", "")), scenes)


def _scene(folder: Path, file: Path, entry: dict) -> H3dsScene:
    """A scene as the configuration has it."""
    views, tags = entry.get("views"), entry.get("tags", [])
    if type(views) is not int or views < 1:
        raise DataError(f"{file}: scenes.{folder.name}.views: expected the number of views, found {views}")
    if not isinstance(tags, list) or not all(isinstance(tag, str) for tag in tags):
        raise DataError(f"{file}: scenes.{folder.name}.tags: expected a list of words, found {tags}")
    table = _split_table(file, folder.name, entry)
    splits = {int(key): _split(file, folder.name, key, table[key], views) for key in table if key.isdecimal()}
    return H3dsScene(folder, tuple(tags), views, dict(sorted(splits.items())))


def _split_table(file: Path, scene: str, entry: dict) -> dict[str, Any]:
    table = entry.get("default_views_configs", {})
    if not isinstance(table, dict):
        raise DataError(f"{file}: scenes.{scene}.default_views_configs: expected a table of lists of views, found {table}")
    return table


def _split(file: Path, scene: str, key: str, views: object, count: int) -> list[int]:
    """A list of views, each of them once."""
    if not isinstance(views, list) or not views or not all(type(view) is int and 0 <= view < count for view in views):
        raise DataError(
            f"{file}: scenes.{scene}.default_views_configs.{key}: expected a list of views from 0 to {count - 1}, found "
            f"{views}; mend the file, or list the views"
        )
    return list(dict.fromkeys(views))


def _version(root: Path) -> str | None:
    """The first line of version.txt."""
    file = root / "version.txt"
    return _read_text(file).strip().partition("\n")[0].strip() or None if file.is_file() else None


# -------------------------------------------------------------------------------------------------------------- files


def read_landmarks(file: Path) -> dict[str, Landmark]:
    """Landmarks of a mesh by name. Each line has the name and a vertex, `nose_tip 2839`, or a point, `nose_tip 1.5 3 98.2`.

    Raises DataError where the file cannot be read so.
    """
    marks: dict[str, Landmark] = {}
    for number, line in enumerate(_read_text(file).splitlines(), 1):
        name, *values = line.split() or [""]
        mark = _landmark(values)
        if name and (mark is None or name in marks):
            what = "a second" if name in marks else "no"
            raise DataError(
                f"{file}: line {number}: expected NAME VERTEX or NAME X Y Z, found {what} vertex or point of {name}: "
                f"{line[:60]!r}"
            )
        if name:
            marks[name] = mark
    if not marks:
        raise DataError(f"{file}: names no landmarks; expected lines NAME VERTEX or NAME X Y Z")
    return marks


def _landmark(values: Sequence[str]) -> Landmark | None:
    try:
        if len(values) == 1 and values[0].isdecimal():
            return int(values[0])
        point = tuple(float(value) for value in values)
    except ValueError:
        return None
    return point if len(point) == 3 and np.isfinite(point).all() else None


def _read_text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        if is_transient(error):
            raise
        raise DataError(f"{file}: cannot be read as text ({error}); expected a file of H3DS's layout") from error
