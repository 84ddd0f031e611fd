"""The ablation's table: each part switches something off, and its cells are what the runs measured."""

import sys

import pytest

from nsr.config import bind
from nsr.training.settings import Config
from nsr.utils.hocon import find_conf, load_tree


@pytest.fixture
def ablation(program):
    return program("ablation")


def configured(conf: str, overrides: list[str]) -> Config:
    return bind(Config, *load_tree(find_conf(conf), overrides))


def test_each_part_changes_the_recipe(ablation):
    whole = configured("instant", [])
    for part, overrides in ablation.RECIPE.items():
        assert (configured("instant", overrides) == whole) == (part == "everything"), part
        for override in overrides:  # none of them is idle
            assert configured("instant", [override]) != whole, (part, override)


def test_each_bank_of_the_study_is_another(ablation):
    seen = []
    for part, options in ablation.STUDIES["filter-banks"].items():
        conf, overrides = (options[1], options[2:]) if options else ("instant", [])
        config = configured(conf, overrides)
        assert config not in seen, part
        seen.append(config)


def test_unknown_parts_are_named(ablation, monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(sys, "argv", ["ablation.py", "bust", "--only", "no warmup", "--out", str(tmp_path)])
    with pytest.raises(SystemExit, match="2"):
        ablation.main()
    assert "--only no warmup: not a part of recipe; expected some of: everything; start: hull" in capsys.readouterr().err


def test_the_table_holds_medians_and_asks_for_runs_without_a_clock(ablation, monkeypatch, capsys, tmp_path):
    asked = []

    def reconstruct(scene, budget, seed, out, options):
        asked.append((scene, budget, seed, out.name, options))
        psnr = {"psnr": 20.0 + seed, "psnr_views": "held out" if "--holdout" in options else "training"}
        return psnr if scene == "photos" else {"chamfer_percent": {0: 0.5, 1: 0.2, 2: 0.3}[seed], **psnr}

    monkeypatch.setattr(ablation, "reconstruct", reconstruct)
    arguments = ["bust", "photos", "--seeds", "0", "1", "2", "--epochs", "7", "--only", "no warm-up", "--out", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", ["ablation.py", *arguments])
    assert ablation.main() == 0
    assert "| no warm-up | 0.3 % (0.2-0.5) | 21 dB, training views (20-22) |" in capsys.readouterr().out
    assert asked[0] == ("bust", None, 0, "no_warm-up", ["train.warmup_steps=0", "train.budget=0", "train.nepoch=7"])
    assert len(asked) == 6
    monkeypatch.setattr(sys, "argv", ["ablation.py", *arguments, "--holdout", "8"])
    assert ablation.main() == 0
    assert "| no warm-up | 0.3 % (0.2-0.5) | 21 dB (20-22) |" in capsys.readouterr().out
    assert asked[-1][4] == ["--holdout", "8", "train.warmup_steps=0", "train.budget=0", "train.nepoch=7"]


def test_a_part_that_fails_leaves_the_rest_of_the_table(ablation, monkeypatch, capsys, tmp_path):
    def reconstruct(scene, budget, seed, out, options):
        if "loss.mask_weight=0" in options and seed == 1:
            raise ablation.FailedRun("nsr reconstruct: exit 70: losses are not finite")
        if scene == "photos":
            return {"steps": 12}
        return {"chamfer_percent": None if "loss.eikonal_weight=0" in options else 0.5 + seed}

    monkeypatch.setattr(ablation, "reconstruct", reconstruct)
    parts = ["no mask term", "no eikonal term", "no warm-up"]
    arguments = ["bust", "photos", "--seeds", "0", "1", "--only", *parts, "--out", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", ["ablation.py", *arguments])
    assert ablation.main() == 1
    printed = capsys.readouterr()
    assert "| no mask term | 0.5 % 1 failed | 1 without a figure 1 failed |" in printed.out
    assert "| no eikonal term | 2 without a figure | 2 without a figure |" in printed.out
    assert "| no warm-up | 1 % (0.5-1.5) | 2 without a figure |" in printed.out
    assert printed.err == 2 * "nsr reconstruct: exit 70: losses are not finite\n"
