"""A tiny scene, its configuration and a finished run over it, for tests through the command line."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from support.failsafe_run import EXPERIMENT, parsed, train_options, write_workplace
from support.refusals import check_refusal
from support.tiny_run import ROOT, write_tiny_conf, write_tiny_scene

from nsr.apps import failsafe
from nsr.apps.main import main


@pytest.fixture(scope="session")
def tiny_files(tmp_path_factory) -> Path:
    """A folder with ball/, tiny.conf and run/, one epoch of training over ball/ without its view 3. Not to be changed."""
    files = tmp_path_factory.mktemp("tiny")
    conf, scene = write_tiny_conf(files / "tiny.conf"), write_tiny_scene(files / "ball")
    train = ["train", "--conf", conf, "--data_dir", scene, "--holdout", 1, "--nepoch", 1, "--exps_folder", files / "exps"]
    assert main([str(argument) for argument in train]) == 0
    (run,) = (files / "exps" / "tiny_ball").iterdir()
    run.rename(files / "run")
    return files


@pytest.fixture
def conf(tiny_files) -> Path:
    return tiny_files / "tiny.conf"


@pytest.fixture
def scene(tiny_files, tmp_path) -> Path:
    """A copy of the scene to do with as one likes."""
    return Path(shutil.copytree(tiny_files / "ball", tmp_path / "ball"))


@pytest.fixture
def run(tiny_files, tmp_path) -> Path:
    """A copy of the finished run."""
    return Path(shutil.copytree(tiny_files / "run", tmp_path / "run"))


@pytest.fixture(scope="session")
def workplace(tmp_path_factory) -> Path:
    """A working directory for nsr failsafe; see write_workplace. Not to be changed."""
    return write_workplace(tmp_path_factory.mktemp("workplace"))


@pytest.fixture
def in_workplace(workplace, monkeypatch) -> None:
    """Configurations and scans are found from the working directory; so is this checkout, by the processes."""
    monkeypatch.chdir(workplace)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.delenv("NSR_DEBUG", raising=False)


@pytest.fixture(scope="session")
def peaceful(workplace, tmp_path_factory) -> Path:
    """A run of nsr failsafe that nothing disturbs. Not to be changed."""
    exps = tmp_path_factory.mktemp("peaceful")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(workplace)
        args = parsed("train", *train_options(exps))
        command = failsafe.train_command(args, *failsafe.the_experiment(args), "run", again=False)
        assert main(command[3:]) == 0
    return exps / EXPERIMENT / "run"


@pytest.fixture
def refused(capsys, monkeypatch):
    """A function that runs a command line and sees to it that it is refused with a code and with words in its one line."""
    monkeypatch.delenv("NSR_DEBUG", raising=False)

    def run(arguments: list, code: int, *words: object) -> None:
        assert main([str(argument) for argument in arguments]) == code
        check_refusal(capsys.readouterr().err, *words)

    return run
