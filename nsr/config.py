"""Configuration: trees read from HOCON files, bound to frozen dataclasses, strictly.

A configuration is a dataclass with typed fields. `bind` fills it from a tree and refuses what it does not know: an
unknown key, a value of another type, an impossible value. Each error names the dotted key, the file or override that
sets it, and the nearest valid name. Alternatives are tagged blocks, declared with `variant`:
`encoder { type = hashgrid, hashgrid { levels = 12 } }`.

    tree, source = load_tree(find_conf("instant"), ["train.seed=3"])
    config = bind(RunConfig, tree, source)
    to_hocon(to_tree(config))  # the resolved configuration, every default written out
"""

from __future__ import annotations

import dataclasses
import math
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any, Literal, TypeVar, Union

from nsr.utils.errors import ConfigError
from nsr.utils.hocon import Source, did_you_mean, find_conf, load_tree, to_hocon

__all__ = ["Source", "Variant", "bind", "check", "find_conf", "load_tree", "to_hocon", "to_tree", "variant"]

T = TypeVar("T")

_REGISTRY = "nsr.config.registry"


@dataclass(frozen=True)
class Variant:
    """One of several alternatives: its name in the registry, and its options (of the dataclass found there)."""

    type: str
    options: Any


def variant(registry: Mapping[str, type], default: str | Variant | None = None) -> Any:
    """A dataclass field that holds a `Variant`: `encoder: Variant = variant(ENCODERS, default="hashgrid")`.

    registry maps each name to the dataclass of its options. default is a name (options at their defaults) or a
    Variant; without one the block is required.
    """
    metadata = {_REGISTRY: registry}
    if default is None:
        return field(metadata=metadata)
    if isinstance(default, str):
        return field(default_factory=lambda: Variant(default, registry[default]()), metadata=metadata)
    return field(default=default, metadata=metadata)


def check(config: Any, name: str, holds: bool, expected: str) -> None:
    """For __post_init__: ValueError unless a field's value `holds`; `bind` adds the dotted key and the file."""
    if not holds:
        raise ValueError(f"{name} is {getattr(config, name)!r}; expected {expected}")


def bind(cls: type[T], tree: Mapping[str, Any], where: str | Source = "configuration") -> T:
    """An instance of the dataclass `cls` from a tree; keys that the tree leaves out keep their defaults.

    A block that sets only some keys of a nested dataclass keeps the others as the *field's* default has them. Integers
    are accepted where a float is expected, and 1e5 where an int is; nothing else is converted. ConfigError names the
    key, where it stands, what was expected and what came.
    """
    return _Binder(where).dataclass(cls, tree, "", None)


def to_tree(config: Any) -> dict:
    """All of a configuration as a plain, JSON-able dict, defaults included; bind(type(config), ...) restores it."""
    return {name: _to_plain(getattr(config, name)) for name in _fields(type(config))}


def _to_plain(value: Any) -> Any:
    if isinstance(value, Variant):
        return {"type": value.type, value.type: to_tree(value.options)}
    if dataclasses.is_dataclass(value):
        return to_tree(value)
    if isinstance(value, dict):
        return {name: _to_plain(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_to_plain(item) for item in value]
    # JSON has no infinity; bind reads the word back.
    return str(value) if isinstance(value, float) and math.isinf(value) else value


class _Binder:
    """Walks types and values together; knows where the values came from, for its errors."""

    def __init__(self, where: str | Source) -> None:
        self.where = where

    def error(self, key: str, problem: str) -> ConfigError:
        place = self.where.of(key.partition("[")[0]) if isinstance(self.where, Source) else self.where
        return ConfigError(f"{place}: {key or 'top level'}: {problem}")

    def unknown(self, key: str, name: str, known: list[str]) -> ConfigError:
        problem = f"unknown key.{did_you_mean(name, known)} Valid: {', '.join(known) or 'none'}."
        return self.error(_join(key, name), problem)

    def dataclass(self, cls: type, tree: Any, key: str, defaults: Any) -> Any:
        """defaults: an instance whose values the missing keys take; None for those of the class."""
        known = _fields(cls)
        if not isinstance(tree, Mapping):
            raise self.error(key, f"expected a block {{ ... }} of {', '.join(known)}; got {_shown(tree)}.")
        for name in tree:
            if name not in known:
                raise self.unknown(key, name, list(known))
        values = {}
        for name, (spec, hint) in known.items():
            default = getattr(defaults, name) if defaults is not None else _default(spec)
            if name in tree:
                values[name] = self.value(hint, tree[name], _join(key, name), default, spec.metadata.get(_REGISTRY))
            elif default is dataclasses.MISSING:
                raise self.error(_join(key, name), f"required, but missing: expected {_expected(hint)}.")
            else:
                values[name] = default
        try:
            return cls(**values)
        except ValueError as error:
            # Such a message begins with the field at fault, unless no single one is.
            name = str(error).partition(" ")[0].rstrip(":")
            raise self.error(_join(key, name) if name in known else key, str(error)) from error

    def variant(self, registry: Mapping[str, type], value: Any, key: str, default: Any) -> Variant:
        default = default if isinstance(default, Variant) else None
        if not isinstance(value, Mapping):
            block = f"a block {{ type = NAME, NAME {{ ... }} }} with NAME one of {', '.join(registry)}"
            raise self.error(key, f"expected {block}; got {_shown(value)}. On the command line set {key}.type.")
        for name in value:
            if name != "type" and name not in registry:
                raise self.unknown(key, name, ["type", *registry])
        chosen = value.get("type", default.type if default else None)
        if chosen is None:
            raise self.error(_join(key, "type"), f"required, but missing: expected one of {', '.join(registry)}.")
        if not isinstance(chosen, str) or chosen not in registry:
            guess = did_you_mean(str(chosen), registry)
            problem = f"unknown type {_shown(chosen)}.{guess} Available: {', '.join(registry)}."
            raise self.error(_join(key, "type"), problem)
        defaults = default.options if default and default.type == chosen else None
        return Variant(chosen, self.dataclass(registry[chosen], value.get(chosen, {}), _join(key, chosen), defaults))

    def value(self, hint: Any, value: Any, key: str, default: Any = None, registry: Mapping | None = None) -> Any:
        if registry is not None:
            return self.variant(registry, value, key, default)
        if dataclasses.is_dataclass(hint):
            return self.dataclass(hint, value, key, default if isinstance(default, hint) else None)
        origin, args = typing.get_origin(hint), typing.get_args(hint)
        if origin in (Union, types.UnionType):
            return self.union(hint, args, value, key, default)
        if origin in (tuple, list):
            return self.sequence(origin, args, value, key)
        if origin is dict and isinstance(value, Mapping):
            return {name: self.value(args[1], item, _join(key, name)) for name, item in value.items()}
        if origin is Literal and any(value == choice and type(value) is type(choice) for choice in args):
            return value
        if origin in (dict, Literal):
            guess = did_you_mean(value, map(str, args)) if isinstance(value, str) else ""
            raise self.error(key, f"expected {_expected(hint)}, got {_shown(value)}.{guess}")
        return self.scalar(hint, value, key)

    def union(self, hint: Any, args: tuple, value: Any, key: str, default: Any) -> Any:
        if value is None and type(None) in args:
            return None
        members = [arg for arg in args if arg is not type(None)]
        if len(members) == 1:
            return self.value(members[0], value, key, default)
        for member in members:
            try:
                return self.value(member, value, key, default)
            except ConfigError:
                continue
        raise self.error(key, f"expected {_expected(hint)}, got {_shown(value)}.")

    def sequence(self, origin: type, args: tuple, value: Any, key: str) -> Any:
        if not isinstance(value, list | tuple):
            raise self.error(key, f"expected a list [ ... ] with {_expected(args[0])} each, got {_shown(value)}.")
        open_ended = origin is list or args[-1] is Ellipsis
        if not open_ended and len(value) != len(args):
            raise self.error(key, f"expected {len(args)} values, got {len(value)}: {_shown(value)}.")
        hints = [args[0]] * len(value) if open_ended else args
        return origin(self.value(h, item, f"{key}[{i}]") for i, (h, item) in enumerate(zip(hints, value, strict=True)))

    def scalar(self, hint: Any, value: Any, key: str) -> Any:
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if hint in (bool, str) and isinstance(value, hint):
            return value
        if hint is int and number and math.isfinite(value) and int(value) == value:
            return int(value)
        if hint is float and (number or value in ("inf", "-inf")):
            return float(value)
        if hint not in (bool, str, int, float):
            raise TypeError(f"{key}: a configuration field of type {hint} is not supported")
        advice = " Put it in double quotes." if hint is str and number else ""
        raise self.error(key, f"expected {_expected(hint)}, got {_shown(value)}.{advice}")


@cache
def _fields(cls: type) -> dict[str, tuple[dataclasses.Field, Any]]:
    """The fields of a dataclass that its constructor takes, with their resolved types."""
    hints = typing.get_type_hints(cls)
    return {spec.name: (spec, hints[spec.name]) for spec in dataclasses.fields(cls) if spec.init}


def _default(spec: dataclasses.Field) -> Any:
    return spec.default_factory() if spec.default_factory is not dataclasses.MISSING else spec.default


def _join(key: str, name: str) -> str:
    return f"{key}.{name}" if key else name


def _shown(value: Any) -> str:
    text = f"a block with {', '.join(value) or 'no keys'}" if isinstance(value, Mapping) else repr(value)
    return text if len(text) <= 100 else text[:97] + "..."


def _expected(hint: Any) -> str:
    """A type in the words of an error message."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is Literal:
        return "one of " + ", ".join(map(str, args))
    if origin in (Union, types.UnionType):
        return " or ".join(map(_expected, args))
    if origin in (tuple, list):
        return "a list"
    if origin is dict or dataclasses.is_dataclass(hint) or hint is Variant:
        return "a block { ... }"
    names = {bool: "true or false", int: "an integer", float: "a number", str: "a string", type(None): "null"}
    return names.get(hint, str(hint))
