"""Strict binding of configurations: what is accepted, what is refused, and how clearly."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nsr.config import Variant, bind, find_conf, load_tree, to_hocon, to_tree, variant
from nsr.utils import hocon
from nsr.utils.errors import ConfigError


@dataclass(frozen=True)
class Grid:
    levels: int = 12
    scale: float = 1.5


@dataclass(frozen=True)
class Waves:
    count: int = 6

    def __post_init__(self) -> None:
        if self.count < 0:
            raise ValueError(f"count must not be negative, got {self.count}")


ENCODERS = {"hashgrid": Grid, "fourier": Waves}


@dataclass(frozen=True)
class Network:
    dims: tuple[int, ...] = (64, 64)
    encoder: Variant = variant(ENCODERS, default="hashgrid")
    views: Variant = variant(ENCODERS, default=Variant("fourier", Waves(count=4)))


@dataclass(frozen=True)
class Bare:
    encoder: Variant = variant(ENCODERS)


@dataclass(frozen=True)
class Settings:
    name: str
    steps: int = 100
    rate: float = 1e-3
    fast: bool = False
    budget: float | None = None
    mode: Literal["idr", "no_normal"] = "idr"
    betas: tuple[float, float] = (0.9, 0.99)
    milestones: list[int] = field(default_factory=list)
    weights: dict[str, float] = field(default_factory=dict)
    either: int | str = 1
    grid: Grid = field(default_factory=lambda: Grid(levels=3))
    network: Network = field(default_factory=Network)


def bound(**tree) -> Settings:
    return bind(Settings, {"name": "x", **tree}, "a.conf")


def message(**tree) -> str:
    with pytest.raises(ConfigError) as caught:
        bound(**tree)
    return str(caught.value)


def write(folder, name: str, text: str):
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


# ---------------------------------------------------------------------------------------------- accepted


def test_missing_keys_take_their_defaults():
    assert bound() == Settings(name="x")


def test_a_partial_block_keeps_the_rest_of_the_field_default():
    # levels = 3 is the default of the field `grid`, 12 that of the class.
    assert bound(grid={"scale": 2}).grid == Grid(levels=3, scale=2.0)
    assert bound(network={"views": {}}).network.views == Variant("fourier", Waves(count=4))
    assert bound(network={"views": {"type": "hashgrid"}}).network.views == Variant("hashgrid", Grid())


def test_integers_serve_as_floats_and_integral_floats_as_integers():
    config = bound(rate=1, steps=1e5, betas=[0, 1])
    assert (config.rate, config.steps, config.betas) == (1.0, 100000, (0.0, 1.0))
    assert isinstance(config.rate, float)
    assert isinstance(config.steps, int)


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("budget", None, None),
        ("budget", 60, 60.0),
        ("rate", "inf", float("inf")),
        ("mode", "no_normal", "no_normal"),
        ("milestones", [1, 2], [1, 2]),
        ("weights", {"rgb": 1, "mask": 0.5}, {"rgb": 1.0, "mask": 0.5}),
        ("either", "word", "word"),
        ("fast", True, True),
    ],
)
def test_accepted_values(key, value, expected):
    assert getattr(bound(**{key: value}), key) == expected


def test_variant_binds_the_block_of_the_chosen_type_only():
    block = {"type": "fourier", "fourier": {"count": 2}, "hashgrid": {"levels": 5}}
    assert bound(network={"encoder": block}).network.encoder == Variant("fourier", Waves(count=2))


# ---------------------------------------------------------------------------------------------- refused


@pytest.mark.parametrize(
    ("tree", "fragments"),
    [
        ({"stepz": 1}, ["a.conf: stepz: unknown key", "Did you mean 'steps'?"]),
        ({"grid": {"level": 1}}, ["grid.level: unknown key", "Did you mean 'levels'?"]),
        ({"steps": "many"}, ["steps: expected an integer, got 'many'"]),
        ({"steps": 1.5}, ["steps: expected an integer, got 1.5"]),
        ({"steps": True}, ["steps: expected an integer, got True"]),
        ({"steps": float("nan")}, ["steps: expected an integer"]),
        ({"rate": False}, ["rate: expected a number, got False"]),
        ({"rate": "1e-3"}, ["rate: expected a number, got '1e-3'"]),
        ({"fast": 1}, ["fast: expected true or false, got 1"]),
        ({"name": 7}, ["name: expected a string, got 7", "quotes"]),
        ({"steps": None}, ["steps: expected an integer, got None"]),
        ({"budget": "long"}, ["budget: expected a number, got 'long'"]),
        ({"mode": "no_norm"}, ["mode: expected one of idr, no_normal", "Did you mean 'no_normal'?"]),
        ({"betas": [0.9]}, ["betas: expected 2 values, got 1"]),
        ({"betas": 0.9}, ["betas: expected a list"]),
        ({"milestones": [1, "b"]}, ["milestones[1]: expected an integer, got 'b'"]),
        ({"weights": {"rgb": "x"}}, ["weights.rgb: expected a number"]),
        ({"weights": 3}, ["weights: expected a block"]),
        ({"either": 1.5}, ["either: expected an integer or a string, got 1.5"]),
        ({"grid": 3}, ["grid: expected a block", "got 3"]),
        ({"network": {"encoder": {"type": "hashgird"}}}, ["network.encoder.type: unknown type", "'hashgrid'?"]),
        ({"network": {"encoder": "hashgrid"}}, ["network.encoder: expected a block", "network.encoder.type"]),
        ({"network": {"encoder": {"hasgrid": {}}}}, ["network.encoder.hasgrid: unknown key", "'hashgrid'?"]),
        ({"network": {"encoder": {"hashgrid": {"lvls": 1}}}}, ["network.encoder.hashgrid.lvls: unknown key"]),
        ({"network": {"views": {"fourier": {"count": -1}}}}, ["network.views.fourier.count: count must not be negative"]),
    ],
)
def test_refusals_name_key_file_and_remedy(tree, fragments):
    text = message(**tree)
    assert text.startswith("a.conf: ")
    for fragment in fragments:
        assert fragment in text


def test_missing_required_key():
    with pytest.raises(ConfigError, match=r"a\.conf: name: required, but missing: expected a string"):
        bind(Settings, {}, "a.conf")


def test_required_variant_without_type():
    with pytest.raises(ConfigError, match=r"encoder: required, but missing"):
        bind(Bare, {})
    with pytest.raises(ConfigError, match=r"encoder\.type: required, but missing: expected one of hashgrid, fourier"):
        bind(Bare, {"encoder": {}})


# ---------------------------------------------------------------------------------------------- round trip


@settings(max_examples=60, deadline=None)
@given(
    config=st.builds(
        Settings,
        name=st.text(max_size=8),
        steps=st.integers(-(2**40), 2**40),
        rate=st.floats(allow_nan=False),
        fast=st.booleans(),
        budget=st.none() | st.floats(allow_nan=False, allow_infinity=False),
        betas=st.tuples(st.floats(0, 1), st.floats(0, 1)),
        milestones=st.lists(st.integers(0, 9)),
        weights=st.dictionaries(st.from_regex(r"[a-z]{1,5}", fullmatch=True), st.floats(-1, 1)),
        either=st.integers() | st.text(max_size=5),
        grid=st.builds(Grid, levels=st.integers(1, 20), scale=st.floats(0, 1e20)),
        network=st.builds(
            Network,
            dims=st.lists(st.integers(1, 9)).map(tuple),
            encoder=st.builds(Variant, st.just("fourier"), st.builds(Waves, count=st.integers(0, 9))),
        ),
    )
)
def test_trees_round_trip_through_json_and_binding(config):
    tree = json.loads(json.dumps(to_tree(config), allow_nan=False))
    assert bind(Settings, tree) == config


def test_written_hocon_reads_back_equal(tmp_path):
    texts = ['quote " backslash \\ newline \n', "${no} # no comment", "1e-5", "true", "é ~ = : / ,", "a.b"]
    tree = {
        "texts": texts,
        "numbers": [1, -2, 1e16, 1e-15, 0.1, 2**53 + 1],
        "nothing": None,
        "empty": "",
        "flags": [True, False],
        "block": {"empty": {}, "list": [], "odd key": 1, "dotted.key": 2},
    }
    read, _ = load_tree(write(tmp_path, "a.conf", to_hocon(tree)))
    assert read == tree
    config = bound(rate=float("inf"), budget=3, name='a "b"')
    read, source = load_tree(write(tmp_path, "b.conf", to_hocon(to_tree(config))))
    assert bind(Settings, read, source) == config


# ---------------------------------------------------------------------------------------------- files and overrides


def test_includes_are_relative_to_their_file_and_overrides_win(tmp_path):
    write(tmp_path, "base/deep.conf", "name = deep\nsteps = 1\ngrid { levels = 7 }")
    write(tmp_path, "base/base.conf", 'include "deep.conf"\nsteps = 2')
    path = write(tmp_path, "leaf.conf", 'include "base/base.conf"\nrate = 0.5')
    tree, source = load_tree(path, ["steps=3", "network.encoder.type=fourier", "betas=[0.1, 0.2]", 'name="7"'])
    config = bind(Settings, tree, source)
    assert (config.name, config.steps, config.rate, config.grid.levels) == ("7", 3, 0.5, 7)
    assert (config.network.encoder.type, config.betas) == ("fourier", (0.1, 0.2))


def test_errors_name_the_file_or_override_at_fault(tmp_path):
    base = write(tmp_path, "base.conf", "name = x\ngrid { levles = 7 }\nsteps = 1")
    leaf = write(tmp_path, "leaf.conf", 'include "base.conf"\nsteps = few')

    def fault(*overrides) -> str:
        tree, source = load_tree(leaf, overrides)
        with pytest.raises(ConfigError) as caught:
            bind(Settings, tree, source)
        return str(caught.value)

    assert fault().startswith(f"{leaf}: steps:")
    assert fault("steps=1").startswith(f"{base}: grid.levles:")
    assert fault("stepz=1").startswith("override 'stepz=1': stepz: unknown key. Did you mean 'steps'?")


@pytest.mark.parametrize(
    ("text", "fragment"),
    [
        ("a = {", "not valid HOCON in line 1"),
        ("a = 1\nb = [1, 2", "not valid HOCON in line 2"),
        ("a = ${nowhere}", "nowhere"),
        ('include "missing.conf"\na = 1', "missing.conf"),
        ("[1, 2]", "got a list"),
    ],
)
def test_bad_files(tmp_path, text, fragment):
    with pytest.raises(ConfigError) as caught:
        load_tree(write(tmp_path, "bad.conf", text))
    assert "bad.conf" in str(caught.value)
    assert fragment in str(caught.value)


def test_missing_file_and_circular_include(tmp_path):
    with pytest.raises(ConfigError, match="cannot read"):
        load_tree(tmp_path / "none.conf")
    write(tmp_path, "a.conf", 'include "b.conf"')
    write(tmp_path, "b.conf", 'include "a.conf"')
    with pytest.raises(ConfigError, match="includes itself"):
        load_tree(tmp_path / "a.conf")


@pytest.mark.parametrize("override", ["steps", "=3", "a..b=1", "steps=1,rate=2", "betas=1,2", "a=[1"])
def test_bad_overrides(tmp_path, override):
    with pytest.raises(ConfigError, match="override"):
        load_tree(write(tmp_path, "a.conf", "name = x"), [override])


def test_find_conf_in_an_installation_without_the_repository(tmp_path, monkeypatch):
    path = write(tmp_path, "site-packages/nsr/confs/base/theirs.conf", "a = 1")
    monkeypatch.setattr(hocon, "__file__", str(tmp_path / "site-packages/nsr/utils/hocon.py"))
    write(tmp_path, "site-packages/confs/instant.conf", "a = 2")  # of another package
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert find_conf("base/theirs") == path.resolve()
    with pytest.raises(ConfigError, match=r"Available: base/theirs"):
        find_conf("instant")


def test_find_conf_by_path_by_name_and_not_at_all(tmp_path, monkeypatch):
    path = write(tmp_path, "confs/encoders/mine.conf", "a = 1")
    monkeypatch.chdir(tmp_path)
    assert find_conf(path) == path
    assert find_conf("encoders/mine").resolve() == path
    assert find_conf("encoders/mine.conf").resolve() == path
    with pytest.raises(ConfigError, match=r"Did you mean 'encoders/mine'\?"):
        find_conf("encoders/mien")
