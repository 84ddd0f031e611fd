"""A folder without masks, through every command that meets it: estimated once, kept beside the run, never mixed up."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from support.idr_folder import write_folder
from support.refusals import USAGE
from support.tiny_run import write_tiny_conf
from support.unmasked_scene import ball_before

from nsr.apps.main import main
from nsr.datasets.idr import load_idr
from nsr.datasets.images import read_mask
from nsr.training.estimated_masks import FOLDER, read_masks, with_silhouettes
from nsr.training.run import load_run
from nsr.training.settings import PhotometricConfig
from nsr.utils.errors import DataError

VIEWS = 12


def nsr(*arguments: object) -> int:
    return main([str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> Path:
    """ball/ without masks and scale_mat, tiny.conf, and run/, one epoch of training. Not to be changed."""
    files = tmp_path_factory.mktemp("unmasked")
    ball = write_folder(ball_before("room", VIEWS, 120, 90), files / "ball", scale_mat=False)
    shutil.rmtree(ball / "mask")
    conf = write_tiny_conf(files / "tiny.conf")
    assert nsr("train", "--conf", conf, "--data_dir", ball, "--nepoch", 1, "--exps_folder", files / "exps") == 0
    (run,) = (files / "exps" / "tiny_ball").iterdir()
    run.rename(files / "run")
    return files


@pytest.fixture
def run(files, tmp_path) -> Path:
    return Path(shutil.copytree(files / "run", tmp_path / "run"))


def test_the_estimate_is_kept_and_read_again(files, run):
    truth = ball_before("room", VIEWS, 120, 90).masks >= 128
    scene = load_run(run).load_scene()
    masks = scene.masks >= 128
    assert scene.masked
    assert (masks & truth).sum() > 0.9 * (masks | truth).sum()
    assert torch.equal(read_masks(run), scene.masks)
    assert {path.name for path in (run / FOLDER).iterdir()} == {f"{view:06d}.png" for view in range(VIEWS)}
    assert not any(key.startswith("scale_mat") for key in np.load(files / "ball" / "cameras.npz"))


def test_a_run_without_its_estimate_is_refused(run):
    shutil.rmtree(run / FOLDER)
    with pytest.raises(DataError, match=FOLDER):
        load_run(run).load_scene()


def test_a_run_whose_estimate_was_changed_is_refused(run):
    path = run / FOLDER / "000003.png"
    shutil.copy(run / FOLDER / "000004.png", path)
    with pytest.raises(DataError, match="masks"):
        load_run(run).load_scene()


def test_a_run_continues_with_its_estimate(files, tmp_path, monkeypatch):
    exps = tmp_path / "exps"
    shutil.copytree(files / "run", exps / "tiny_ball" / "2026_01_01_00_00_00")
    monkeypatch.setattr("nsr.training.estimated_masks.estimate_silhouettes", None)  # would fail if it were estimated again
    command = ["train", "--is_continue", "--expname", "tiny_ball", "--exps_folder", exps, "--nepoch", 2]
    assert nsr(*command) == 0
    assert load_run(exps / "tiny_ball" / "2026_01_01_00_00_00").step == 2 * VIEWS
    assert nsr(*command[:-1], 3, "--sphere", 0, 0, 0, 1) == USAGE


def test_reconstruct_says_what_it_does(files, tmp_path, capsys):
    out = tmp_path / "out"
    sphere = *np.array([7.0, -3.0, 100.0]), 45.0  # painted_ball.WORLD_FROM_SCENE, a little tighter
    options = ["--conf", files / "tiny.conf", "--sphere", *sphere, "--resolution", 24, "train.budget=0", "train.nepoch=1"]
    assert nsr("reconstruct", files / "ball", "--out", out, *options) == 0
    assert "no masks; silhouettes of 12 views estimated" in capsys.readouterr().out
    assert json.loads((out / "metrics.json").read_text())["silhouette_seconds"] > 0
    np.testing.assert_allclose(load_run(out).load_scene().world_from_scene[:3], np.c_[45 * np.eye(3), sphere[:3]])


def test_masks_that_came_later_are_not_passed_over(files, tmp_path, capsys):
    """An interrupted run has an estimate; by now the user has mended it."""
    ball, out = shutil.copytree(files / "ball", tmp_path / "ball"), tmp_path / "out"
    command = ["reconstruct", ball, "--conf", files / "tiny.conf", "--out", out, "--resolution", 16]
    command += ["train.budget=0", "train.nepoch=1"]
    assert nsr(*command) == 0
    figures = json.loads((out / "metrics.json").read_text())
    assert figures["masks"] == "estimated"
    assert "they were estimated" in (out / "report.html").read_text()
    (out / "report.html").unlink()
    shutil.copytree(out / FOLDER, ball / "mask")
    capsys.readouterr()
    assert nsr(*command) == USAGE
    assert "holds a run with estimated masks" in capsys.readouterr().err
    assert nsr("train", "--is_continue", "--expname", out.name, "--exps_folder", _with_runs(out, tmp_path)) == USAGE
    assert "holds a run with estimated masks" in capsys.readouterr().err
    assert nsr(*command, "--overwrite") == 0
    assert json.loads((out / "metrics.json").read_text())["masks"] == "given"
    assert not (out / FOLDER).exists()


def _with_runs(run: Path, folder: Path) -> Path:
    """An experiments folder with a copy of the run, under its name."""
    shutil.copytree(run, folder / "exps" / run.name / "2026_01_01_00_00_00")
    return folder / "exps"


def test_data_masks_writes_a_folder_that_serves_as_mask(files, tmp_path, capsys):
    ball = shutil.copytree(files / "ball", tmp_path / "ball")
    assert nsr("data", "check", ball) == 0
    assert "nsr data masks" in capsys.readouterr().out
    assert nsr("data", "masks", ball, "--out", ball / "mask") == 0
    assert load_idr(ball).masked
    assert nsr("data", "masks", ball, "--out", ball / "mask") == USAGE  # never written over
    capsys.readouterr()
    assert nsr("data", "check", ball) == 0
    assert "the visual hull fills the silhouettes" in capsys.readouterr().out


def test_data_masks_looks_again_where_the_object_reaches_out(files, tmp_path, monkeypatch):
    """As reconstruct does: else the masks that it writes end at a sphere that only the cameras have told."""
    truth, frames = ball_before("room", VIEWS, 120, 90).masks, []

    def estimate(scene, config):
        frames.append(scene.world_from_scene)
        return truth

    monkeypatch.setattr("nsr.training.estimated_masks.estimate_silhouettes", estimate)
    monkeypatch.setattr("nsr.training.estimated_masks.CUT", 0.0)
    assert nsr("data", "masks", files / "ball", "--out", tmp_path / "mask") == 0
    assert len(frames) == 2
    assert not np.allclose(*frames)
    assert (read_mask(tmp_path / "mask" / "000003.png") == truth[3].numpy()).all()


def test_a_scene_that_has_masks_keeps_its_sphere(monkeypatch):
    """Built-in scenes, for one, could not be read again with others."""
    scene = ball_before("room", VIEWS, 120, 90)
    monkeypatch.setattr("nsr.training.estimated_masks.estimate_silhouettes", lambda scene, config: 255 - scene.masks)
    monkeypatch.setattr("nsr.training.estimated_masks.CUT", 0.0)
    masked = with_silhouettes(scene, "bust", PhotometricConfig())
    assert torch.equal(masked.masks, 255 - scene.masks)
    assert (masked.world_from_scene == scene.world_from_scene).all()


@pytest.mark.parametrize("sphere", [(0, 0, 0, 0), (0, 0, 0, -1), ("nan", 0, 0, 1)])
def test_a_sphere_that_is_none_is_refused(files, tmp_path, sphere):
    assert nsr("reconstruct", files / "ball", "--out", tmp_path / "out", "--sphere", *sphere) == USAGE
    assert not (tmp_path / "out").exists()


def test_a_built_in_scene_takes_no_sphere(tmp_path):
    assert nsr("reconstruct", "bust", "--out", tmp_path / "out", "--sphere", 0, 0, 0, 1) == USAGE


def test_an_estimate_without_a_run_is_not_taken_for_that_of_the_next(files, tmp_path):
    """What a process that died between its first files left behind."""
    ball, out = shutil.copytree(files / "ball", tmp_path / "ball"), tmp_path / "out"
    shutil.copytree(files / "run" / FOLDER, out / FOLDER)
    shutil.copytree(files / "run" / FOLDER, ball / "mask")
    options = ["--conf", files / "tiny.conf", "--resolution", 16, "--mesh-only", "train.budget=0", "train.nepoch=1"]
    assert nsr("reconstruct", ball, "--out", out, *options) == 0
    assert json.loads((out / "metrics.json").read_text())["masks"] == "given"
    assert not (out / FOLDER).exists()
