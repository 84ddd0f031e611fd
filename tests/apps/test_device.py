"""--device auto: a GPU where there is one, but a run that is continued stays where its random numbers are."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from support.run_folders import checkpoint

from nsr import _ext
from nsr.apps import failsafe
from nsr.apps.main import main, parse
from nsr.training import launch
from nsr.training.launch import RunRequest, check_device, read_config_for_training
from nsr.utils.errors import ExtensionError


def nsr(*arguments: object) -> int:
    return main([str(argument) for argument in arguments])


@pytest.fixture
def beside_a_gpu(monkeypatch) -> None:
    """torch says that there is one. There is none: what uses it fails."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)


@pytest.fixture
def served_gpu(beside_a_gpu, monkeypatch) -> None:
    """And it may be named, and the native library says that it was built for it."""
    monkeypatch.setattr(launch, "_torch_device", torch.device)
    monkeypatch.setattr(_ext, "_devices", lambda: ("cpu", "cuda"))


def test_it_is_a_gpu_where_there_is_one(monkeypatch, request):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert check_device("auto") == torch.device("cpu")
    request.getfixturevalue("served_gpu")
    assert check_device("auto") == torch.device("cuda")
    assert check_device("cpu") == torch.device("cpu")


def test_a_gpu_for_which_nothing_was_built_is_not_passed_over(served_gpu, monkeypatch):
    monkeypatch.delenv("NSR_BACKEND", raising=False)
    monkeypatch.setattr(_ext, "_devices", lambda: ("cpu",))
    with pytest.raises(ExtensionError, match=r"no kernels for cuda: it was built for cpu alone.*--device cpu"):
        check_device("auto")


def test_experiments_that_need_a_gpu_get_it_unasked(served_gpu):
    """`nsr failsafe train --exp HashGridCUDA` as the scripts have it, without --device."""
    asked, parser = ["--exp", "HashGridCUDA", "--scan_id", "65"], failsafe.build_parser("nsr failsafe")
    args = parse(parser, ["train", *asked])
    conf, experiment = failsafe.the_experiment(args)
    command = failsafe.train_command(args, conf, experiment, "run", again=False)
    assert command[command.index("--device") + 1] == "auto"
    assert read_config_for_training(RunRequest("", conf, device="auto"))[1] == torch.device("cuda")
    for command in failsafe.evaluation_commands(parse(parser, ["eval", *asked, "--eval_rendering"]), Path("run")):
        assert command[command.index("--device") + 1] == "auto"


def test_a_run_of_the_cpu_is_continued_there(run, tmp_path, beside_a_gpu, capsys):
    place = Path(shutil.move(run, tmp_path / "exps" / "tiny_ball" / "run"))
    before = checkpoint(place).meta["step"]
    command = ["train", "--is_continue", "--expname", "tiny_ball", "--exps_folder", tmp_path / "exps", "--device", "auto"]
    assert nsr(*command, "--nepoch", 2) == 0
    assert "device: cpu" in capsys.readouterr().err.splitlines()
    assert checkpoint(place).meta["step"] == 2 * before


def test_an_unfinished_reconstruction_of_the_cpu_is_continued_there(scene, conf, tmp_path, beside_a_gpu, capsys, monkeypatch):
    out = tmp_path / "out"
    command = ["reconstruct", scene, "--conf", conf, "--out", out, "--resolution", 16, "train.budget=0", "train.nepoch=1"]

    def killed(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("nsr.training.pipeline.run_mesh", killed)
        assert nsr(*command, "--device", "cpu") == 75
    capsys.readouterr()
    assert nsr(*command, "--device", "auto") == 0
    said = capsys.readouterr().out
    assert "continuing an unfinished run" in said
    assert "device: cpu" in said.splitlines()


def test_results_are_looked_at_with_it(run, tmp_path):
    assert nsr("mesh", run, "--device", "auto", "--resolution", 16, "--out", tmp_path / "mesh.ply") == 0
    assert (tmp_path / "mesh.ply").is_file()
