"""HOCON files: finding, reading with strict includes and `key=value` overrides, and writing.

Trees are plain nested dicts. What the tree means is nsr.config's matter.
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nsr.utils.errors import ConfigError, is_transient

_INCLUDE = re.compile(r'^[^#"\n]*?\binclude\s+(?:required\s*\()?\s*(?:file\s*\()?\s*"([^"\n]+)"', re.MULTILINE)
_ABSENT = object()


@dataclass(frozen=True)
class Source:
    """Where a tree came from: its files (included ones first, the main one last) and the overrides on top, each named.

    The tree of a file holds what it includes too.
    """

    files: tuple[tuple[str, dict], ...]
    overrides: tuple[tuple[str, dict], ...] = ()

    def __str__(self) -> str:
        return self.files[-1][0]

    def of(self, key: str) -> str:
        """The name of the override or file that sets a dotted key; of the main file when none does (a missing key)."""
        for name, tree in reversed(self.overrides):
            if _lookup(tree, key) is not _ABSENT:
                return name
        in_effect = _lookup(self.files[-1][1], key)
        if in_effect is _ABSENT:
            return str(self)
        return next(name for name, tree in self.files if _lookup(tree, key) == in_effect)


def find_conf(name: str | Path) -> Path:
    """A configuration file by path, or by its name in confs/ (of the working directory, else of this repository or
    installation)."""
    given = Path(name)
    package = Path(__file__).resolve().parents[1]
    shipped = next((p for p in (package / "confs", package.parent / "confs") if p.is_dir()), package / "confs")
    roots = [Path("confs"), shipped]
    candidates = [given, *(root / given.parent / (given.name + end) for root in roots for end in ("", ".conf"))]
    for candidate in candidates:
        if candidate.is_file():
            return candidate
    known = sorted({str(p.relative_to(root).with_suffix("")) for root in roots for p in root.rglob("*.conf")})
    raise ConfigError(
        f"configuration {str(name)!r} not found: no such file, and none of that name in {roots[0]}/ or {roots[1]}."
        f"{did_you_mean(str(given.with_suffix('')), known)} Available: {_by_folder(known) or 'none'}."
    )


def _by_folder(names: Iterable[str]) -> str:
    """Names of configurations, as a shell would write them: those of a folder together, and folders with the same names."""
    folders: dict[str, list[str]] = {}
    for name in sorted(names):
        folder, slash, leaf = name.rpartition("/")
        folders.setdefault(folder + slash, []).append(leaf)
    alike: dict[tuple[str, ...], list[str]] = {}
    for folder, leaves in folders.items():
        alike.setdefault(tuple(leaves), []).append(folder)

    def braces(words: Sequence[str]) -> str:
        return words[0] if len(words) == 1 else "{" + ", ".join(words) + "}"

    return ", ".join(braces(places) + braces(leaves) for leaves, places in alike.items())


def load_tree(path: str | Path, overrides: Sequence[str] = ()) -> tuple[dict, Source]:
    """Read a HOCON file (includes are relative to the file that names them) and put `key=value` overrides on top.

    Returns the plain nested dict and where it came from. ConfigError: missing file or include, bad syntax, a
    substitution that does not resolve, an override that is not `dotted.key=value`.
    """
    return override_tree([(str(file), _parse_file(file)) for file in _include_order(Path(path))], overrides)


def override_tree(files: Sequence[tuple[str, dict]], overrides: Sequence[str]) -> tuple[dict, Source]:
    """The last of some named trees with `key=value` overrides on top, and where it came from; see load_tree."""
    layers = [(f"override {text!r}", _parse_override(text)) for text in overrides]
    tree = files[-1][1]
    for _, override in layers:
        tree = _merge(tree, override)
    return tree, Source(tuple(files), tuple(layers))


def to_hocon(tree: Mapping[str, Any], indent: int = 0) -> str:
    """A plain tree as HOCON text that load_tree reads back equal (but for "" in lists, which pyhocon drops)."""
    pad = "    " * indent
    lines = []
    for name, value in tree.items():
        key = name if re.fullmatch(r"[A-Za-z_][\w-]*", name) else json.dumps(name)
        if isinstance(value, Mapping):
            lines.append(f"{pad}{key} {{\n{to_hocon(value, indent + 1)}{pad}}}\n" if value else f"{pad}{key} {{}}\n")
        else:
            lines.append(f"{pad}{key} = {json.dumps(value, ensure_ascii=False)}\n")
    return "".join(lines)


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """' Did you mean ...?' with the nearest of the known names, or nothing when none is near."""
    nearest = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f" Did you mean {nearest[0]!r}?" if nearest else ""


def _include_order(path: Path, chain: tuple[Path, ...] = ()) -> list[Path]:
    """The files behind a configuration, included ones first. pyhocon drops a missing include silently: not here."""
    if path.resolve() in chain:
        raise ConfigError(f"{path}: includes itself, through {' -> '.join(p.name for p in chain)}. Remove one include.")
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        if is_transient(error):
            raise
        by = f", included by {chain[-1]}" if chain else ""
        raise ConfigError(f"cannot read the configuration {path}{by}: {error}") from error
    files: list[Path] = []
    for name in _INCLUDE.findall(text):
        files += _include_order(path.parent / name, (*chain, path.resolve()))
    return [*files, path]


def _parse_file(path: Path) -> dict:
    return _parse_hocon(path.read_text(encoding="utf-8"), str(path), path.parent)


def _parse_override(text: str) -> dict:
    key, equals, value = (part.strip() for part in text.partition("="))
    if not equals or not re.fullmatch(r"[\w-]+(\.[\w-]+)*", key):
        raise ConfigError(f"override {text!r}: expected dotted.key=value, such as train.seed=3.")
    advice = f"Write {key}=[a, b] for a list, and quotes around text with special characters."
    tree = _parse_hocon(f"{key} = {value}", f"override {text!r}", Path(), advice)
    # `a=1,b=2` parses as two keys, and would set one that nobody asked for.
    if not value.startswith("{") and _branch(tree) != key.split("."):
        raise ConfigError(f"override {text!r}: expected one value. {advice}")
    return tree


def _parse_hocon(text: str, name: str, folder: Path, advice: str = "") -> dict:
    from pyhocon import ConfigFactory
    from pyhocon.exceptions import ConfigException
    from pyparsing import ParseBaseException

    try:
        tree = ConfigFactory.parse_string(text, basedir=str(folder))
    except ParseBaseException as error:
        place = f"line {error.lineno}, column {error.column} (near {error.line.strip()[:60]!r})"
        # pyparsing may quote its whole grammar; a short message ("Expected '}'") helps, a long one does not.
        reason = f": {error.msg}" if len(error.msg) < 60 else ""
        raise ConfigError(f"{name}: not valid HOCON in {place}{reason}. {advice}".rstrip()) from error
    except ConfigException as error:
        raise ConfigError(f"{name}: not valid HOCON: {error}") from error
    if not hasattr(tree, "as_plain_ordered_dict"):
        raise ConfigError(f"{name}: expected `key = value` lines at the top level, got a list.")
    return _plain(tree.as_plain_ordered_dict())


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list) else value


def _merge(below: dict, above: dict) -> dict:
    merged = dict(below)
    for key, value in above.items():
        both = isinstance(value, dict) and isinstance(below.get(key), dict)
        merged[key] = _merge(below[key], value) if both else value
    return merged


def _branch(tree: Any) -> list[str]:
    """The keys from the root down to where the tree forks or ends."""
    keys = []
    while isinstance(tree, dict) and len(tree) == 1:
        key, tree = next(iter(tree.items()))
        keys.append(key)
    return keys


def _lookup(tree: Any, key: str) -> Any:
    for part in key.split("."):
        if not isinstance(tree, dict) or part not in tree:
            return _ABSENT
        tree = tree[part]
    return tree
