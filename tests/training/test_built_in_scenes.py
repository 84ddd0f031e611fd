"""What `nsr reconstruct` reaches on the built-in scenes, with a bound near it: a recipe that has become worse is noticed.

Slow: `pytest -m slow -s tests/training/test_built_in_scenes.py`. As many steps as two cores take in 15 s, start included.
"""

from __future__ import annotations

import json

import pytest

from nsr.apps.main import main

pytestmark = pytest.mark.slow


@pytest.mark.parametrize(("scene", "most"), [("bust", 0.19), ("dents", 0.34)])
def test_a_short_run(scene, most, tmp_path):
    command = ["reconstruct", scene, "--mesh-only", "--out", str(tmp_path / "out"), "train.budget=0", "train.nepoch=5"]
    assert main(command) == 0
    assert json.loads((tmp_path / "out" / "metrics.json").read_text())["chamfer_percent"] < most
