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
        found = baseline if "--conf" in options else 10.0 / budget
        return {"chamfer_percent": found if budget > 15 else None, "steps": 46, "train_seconds": budget + 1}

    monkeypatch.setattr(convergence, "reconstruct", reconstruct)
    arguments = ["bust", "dents", "--budgets", "60", "15", "30", "--out", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", ["convergence.py", *arguments])
    assert convergence.main() == 0
    out = capsys.readouterr().out
    assert "| bust | 0.5 %, 46 steps | 0.333 % in 31 s | 38.7 |" in out
    assert "| dents | 0.1 %, 46 steps | not reached | - |" in out
    baselines = [call for call in asked if call[2] == "base_idr"]
    assert baselines[0] == ("bust", 1200.0, "base_idr", ["--conf", "base/idr", "--mesh-only", "--resolution", "128"])
    assert [(scene, budget) for scene, budget, folder, _ in asked if folder == "instant"] == [
        ("bust", 15), ("bust", 15), ("bust", 30), ("dents", 15), ("dents", 15), ("dents", 30), ("dents", 60)
    ]  # fmt: skip


def test_a_baseline_of_which_nothing_is_seen_ends_no_table(convergence, monkeypatch, capsys, tmp_path):
    def reconstruct(scene, budget, seed, out, options):
        return {"chamfer_percent": None, "steps": 46, "train_seconds": budget}

    monkeypatch.setattr(convergence, "reconstruct", reconstruct)
    monkeypatch.setattr(sys, "argv", ["convergence.py", "bust", "--budgets", "15", "--out", str(tmp_path)])
    assert convergence.main() == 0
    assert "| bust | inf %, 46 steps | not reached | - |" in capsys.readouterr().out


def test_a_scene_without_ground_truth_is_refused_before_the_long_run(convergence, monkeypatch, tmp_path):
    asked = []

    def reconstruct(scene, budget, seed, out, options):
        asked.append(budget)
        return {"steps": 46, "train_seconds": budget}

    monkeypatch.setattr(convergence, "reconstruct", reconstruct)
    monkeypatch.setattr(sys, "argv", ["convergence.py", "photos", "--budgets", "15", "--out", str(tmp_path)])
    with pytest.raises(SystemExit, match="photos: has no ground truth"):
        convergence.main()
    assert asked == [15]
