"""Every configuration in confs/ loads, and its defaults say what the published paper says."""

from pathlib import Path

import pytest

from nsr.config import bind, to_tree
from nsr.models.idr import IDRModel
from nsr.training.settings import Config
from nsr.utils.hocon import find_conf, load_tree

ROOT = Path(__file__).parent.parent
CONFS = sorted(p.relative_to(ROOT / "confs").with_suffix("").as_posix() for p in (ROOT / "confs").rglob("*.conf"))


def load(name: str) -> Config:
    tree, source = load_tree(find_conf(name))
    return bind(Config, tree, source)


@pytest.mark.parametrize("name", CONFS)
def test_conf_binds_and_builds(name):
    config = load(name)
    model = IDRModel.build(config.model, seed=0)
    assert sum(p.numel() for p in model.parameters()) > 1000
    assert bind(Config, to_tree(config)) == config


def test_base_is_the_defaults():
    assert load("base/idr") == Config()


def test_a_leaf_is_an_include_and_few_overrides():
    for name in CONFS:
        if name not in ("instant", "base/idr"):
            lines = [line for line in find_conf(name).read_text().splitlines() if line.strip() and not line.startswith("#")]
            assert lines[0].startswith("include "), name
            assert len(lines) <= 11, name
