"""Time to equal quality: the least budget that is as good as the baseline."""

import importlib
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def convergence(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("convergence")


def test_the_least_budget_that_is_as_good_is_named(convergence, monkeypatch, capsys, tmp_path):
    asked = []

    def reconstruct(scene, budget, seed, out, options):
        asked.append((scene, budget, out.name, options))
        baseline = {"bust": 0.5, "dents": 0.1}[scene]
        return {"chamfer_percent": baseline if "--conf" in options else 10.0 / budget, "steps": 46}

    monkeypatch.setattr(convergence, "reconstruct", reconstruct)
    arguments = ["bust", "dents", "--budgets", "60", "15", "30", "--out", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", ["convergence.py", *arguments])
    assert convergence.main() == 0
    out = capsys.readouterr().out
    assert "| bust | 0.5 %, 46 steps | 0.333 % in 30 s | 40 or more |" in out
    assert "| dents | 0.1 %, 46 steps | not reached | - |" in out
    assert asked[0] == ("bust", 1200.0, "base_idr", ["--conf", "base/idr", "--mesh-only", "--resolution", "128"])
    assert [(scene, budget) for scene, budget, folder, _ in asked if folder == "instant"] == [
        ("bust", 15), ("bust", 30), ("dents", 15), ("dents", 30), ("dents", 60)
    ]  # fmt: skip
