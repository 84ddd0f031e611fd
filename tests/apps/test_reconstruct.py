"""`nsr reconstruct`: from a folder of photographs to every file it promises, in world units, with honest figures."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import trimesh
from PIL import Image
from support.idr_folder import write_folder
from support.painted_ball import RADIUS, WORLD_FROM_SCENE, PaintedBall, photographs
from support.refusals import USAGE, files_in
from support.tiny_run import VIEWS, write_tiny_conf, write_tiny_scene
from support.two_balls import cameras_around

from nsr.apps.main import main
from nsr.apps.mesh import training_masks
from nsr.datasets.detect import is_built_in, load_scene
from nsr.geometry.meshes import load_mesh, vertex_colors
from nsr.training.checkpoint import load_checkpoint
from nsr.training.run import data_place, load_run
from nsr.utils.errors import UsageError
from nsr.utils.files import file_lock

EPOCHS = 60  # as steps, and not as seconds: the least powerful machine takes as many
WORLD_RADIUS, WORLD_CENTRE = 50 * RADIUS, WORLD_FROM_SCENE[:3, 3]
ALWAYS = {"train_seconds", "steps", "rays", "peak_memory_mb", "psnr", "psnr_views", "iou", "ssim", "scene", "views", "seed"}
ALWAYS |= {"checkpoint"}
PERCENT = {"chamfer_percent", "accuracy_percent", "completeness_percent", "median_percent"}
DISTANCES = PERCENT | {"f_score_1percent", "normal_consistency"}
RESULTS = {"mesh.ply", "mesh.glb", "preview.png", "turntable.png", "report.html", "metrics.json"}


def ball(path: Path, radius: float = WORLD_RADIUS) -> Path:
    trimesh.creation.icosphere(subdivisions=4, radius=radius).apply_translation(WORLD_CENTRE).export(path)
    return path


@pytest.fixture(scope="module")
def results(tmp_path_factory) -> Path:
    """A reconstruction with one view held out and the true mesh known. The longer start makes the tiny network a ball."""
    folder = tmp_path_factory.mktemp("reconstruct")
    scene = write_tiny_scene(folder / "ball")
    start = ["start.resolution=32", "start.steps=80", "start.points=512"]
    conf = write_tiny_conf(folder / "tiny.conf", *start, "train.budget=0", f"train.nepoch={EPOCHS}")
    options = ["--conf", conf, "--out", folder / "runs" / "out", "--resolution", 32, "--holdout", 1]
    command = ["reconstruct", scene, *options, "--gt", ball(folder / "truth.ply"), "--seed", 4]
    assert main([str(argument) for argument in command]) == 0
    return folder / "runs" / "out"


def metrics(folder: Path) -> dict:
    return json.loads((folder / "metrics.json").read_text())


@pytest.mark.parametrize("name", ["mesh.ply", "mesh.glb"])
def test_the_mesh_is_the_ball_in_world_units(results, name):
    mesh = load_mesh(results / name)
    assert len(mesh.faces) > 500
    assert np.allclose(mesh.bounds.mean(axis=0), WORLD_CENTRE, atol=0.1 * WORLD_RADIUS)
    assert np.allclose(np.ptp(mesh.bounds, axis=0), 2 * WORLD_RADIUS, rtol=0.1)
    outwards = ((mesh.triangles_center - WORLD_CENTRE) * mesh.face_normals).sum(axis=1)
    assert (outwards > 0).mean() > 0.99
    assert vertex_colors(mesh)[:, :3].std() > 1


def test_every_picture_opens_and_shows_something(results):
    for name in ("preview.png", "turntable.png"):
        with Image.open(results / name) as picture:
            pixels = np.array(picture.convert("RGB"))
        assert min(pixels.shape[:2]) >= 24
        assert pixels.std() > 10
    report = (results / "report.html").read_text()
    assert "chamfer_percent" in report
    assert len(re.findall(r'src="data:image/(?:png|jpeg);base64,', report)) == 2
    assert "http://" not in report.replace("http://www.w3.org", "")


def test_metrics_hold_every_promised_figure(results):
    figures = metrics(results)
    assert ALWAYS | DISTANCES | {f"{name}_all" for name in DISTANCES} <= figures.keys()
    assert (figures["scene"], figures["views"], figures["seed"]) == ("ball", VIEWS - 1, 4)
    assert figures["psnr_views"] == "held out"
    assert figures["train_seconds"] > 0
    assert figures["steps"] == EPOCHS * figures["views"]
    assert figures["rays"] == 64 * figures["steps"]
    assert figures["peak_memory_mb"] > 50
    assert 5 < figures["psnr"] < 60
    assert 0.8 < figures["iou"] <= 1
    assert 0 < figures["chamfer_percent_all"] < 5
    assert figures["chamfer_percent_all"] == pytest.approx(
        (figures["accuracy_percent_all"] + figures["completeness_percent_all"]) / 2, rel=1e-4
    )
    assert 0.9 < figures["normal_consistency_all"] <= 1


@pytest.mark.parametrize("unseen", ["mark", "trim"])
def test_unseen_surface_of_a_finished_run(results, tmp_path, unseen, capsys):
    """The run of `results` without its report is finished by the same command, with what fewer than four of five views see."""
    out = Path(shutil.copytree(results, tmp_path / "out"))
    (out / "report.html").unlink()
    files = results.parents[1]
    command = ["reconstruct", files / "ball", "--conf", files / "tiny.conf", "--out", out, "--resolution", 32, "--seed", 4]
    command += ["--holdout", 1, "--gt", files / "truth.ply", "--unseen", unseen, "--min-views"]
    assert main([str(argument) for argument in [*command, 6]]) == 2
    assert "--min-views 6: expected 1 to 5" in capsys.readouterr().err
    assert main([str(argument) for argument in [*command, 3]]) == 0
    whole, mesh, figures = load_mesh(results / "mesh.ply"), load_mesh(out / "mesh.ply"), metrics(out)
    assert whole.is_watertight
    assert mesh.is_watertight == (unseen == "mark")
    assert 10 < figures["seen_area_percent"] < 90
    for name in DISTANCES:  # of the whole mesh, whatever was written
        assert figures[name] == metrics(results)[name], name
    page = (out / "report.html").read_text()
    if unseen == "mark":
        assert np.allclose(mesh.vertices, whole.vertices)
        assert "hatched: surface that fewer than 3 training views saw" in page
        assert "trimmed" not in figures
    else:
        assert mesh.area == pytest.approx(whole.area * figures["kept_area_percent"] / 100, rel=1e-3)
        assert figures["trimmed"].keys() >= DISTANCES
        assert figures["trimmed"]["completeness_percent_all"] > figures["completeness_percent_all"]
        assert "was cut away" in page


def test_eval_measures_the_same_again(results, tmp_path):
    out = tmp_path / "again.json"
    truth = results.parents[1] / "truth.ply"
    command = ["eval", results, "--eval_rendering", "--gt", truth, "--resolution", 32, "--out", out]
    assert main([str(argument) for argument in command]) == 0
    again, first = json.loads(out.read_text()), metrics(results)
    for name in ["psnr", "ssim", "iou", "psnr_views", *DISTANCES]:
        assert again[name] == first[name], name
    for name in ("checkpoint", "train_seconds", "steps", "rays", "views", "seed"):
        assert again[name] == first[name], name


def test_the_folder_is_a_run_that_can_be_continued(results, tmp_path, capsys):
    shutil.copytree(results, tmp_path / "runs" / "out")
    experiments = ["--exps_folder", tmp_path, "--expname", "runs", "--timestamp", "out"]
    before = metrics(results)["train_seconds"]
    command = ["train", "--is_continue", *experiments, "--budget", before + 0.3]
    assert main([str(argument) for argument in command]) == 0
    said = re.search(r"(\d+) steps in ([\d.]+) s", capsys.readouterr().out)
    assert int(said[1]) > metrics(results)["steps"]
    assert float(said[2]) > before + 0.25


def contents(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in files_in(folder) if path.name != ".lock"}


class StopAt:
    """Acts as a SIGTERM that comes during a step."""

    name = "SIGTERM"

    def __init__(self, steps: int) -> None:
        self.steps = steps

    def __enter__(self) -> StopAt:
        return self

    def __exit__(self, *error: object) -> None:
        pass

    @property
    def requested(self) -> bool:
        self.steps -= 1
        return self.steps <= 0


def test_a_signal_during_a_start_that_uses_up_the_budget_stops(scene, conf, tmp_path, refused, monkeypatch):
    monkeypatch.setattr("nsr.training.launch.TerminationSignal", lambda: StopAt(1))
    command = ["reconstruct", scene, "--conf", conf, "--out", tmp_path / "out", "--budget", 0.001]
    refused(command, 75, "stopped by SIGTERM at step 0", "run the same command again to continue")


def test_an_interrupted_reconstruction_is_continued_by_the_same_command(scene, conf, tmp_path, refused, capsys, monkeypatch):
    out = tmp_path / "out"
    command = ["reconstruct", scene, "--conf", conf, "--out", out, "--resolution", 16, "--budget", 100, "--holdout", 1]
    command += ["--seed", 2, "train.nepoch=0"]
    with monkeypatch.context() as patch:
        patch.setattr("nsr.training.launch.TerminationSignal", lambda: StopAt(7))
        words = f"stopped by SIGTERM at step 7; the state is saved in {out}: run the same command again to continue"
        refused(command, 75, words)
    before = contents(out)
    for option, word in (("--seed", "--seed"), ("--holdout", "views"), ("loss.rgb_weight=7", "configuration")):
        change = [option] if "=" in option else [option, 3]
        refused([*command, *change], USAGE, out, f"unfinished run with other {word}", "--overwrite")
    refused([*command, "--train_cameras"], USAGE, "--train_cameras")
    refused(["reconstruct", shutil.copytree(scene, tmp_path / "cup"), *command[2:]], USAGE, "data")
    pixels = (scene / "image" / "000000.png").read_bytes()
    shutil.copy(scene / "image" / "000001.png", scene / "image" / "000000.png")
    refused(command, USAGE, out, "unfinished run with other photographs")
    (scene / "image" / "000000.png").write_bytes(pixels)
    assert contents(out) == before

    seconds = load_checkpoint(out / "checkpoints" / "latest.safetensors").meta["state"]["clock"]["seconds"]
    capsys.readouterr()
    assert main([str(argument) for argument in [*command, "--budget", seconds + 0.3]]) == 0
    assert "continuing an unfinished run at step 7" in capsys.readouterr().out
    figures = metrics(out)
    assert figures["steps"] > 7
    assert figures["seed"] == 2
    assert seconds + 0.3 <= figures["train_seconds"] < seconds + 3


def test_an_interruption_after_training_loses_nothing(scene, conf, tmp_path, refused, monkeypatch, capsys):
    out = tmp_path / "out"
    command = ["reconstruct", scene, "--conf", conf, "--out", out, "--resolution", 16, "train.budget=0", "train.nepoch=1"]

    def interrupted(*_, **__):
        with pytest.raises(UsageError, match="written by another process"), file_lock(out):
            pass
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("nsr.training.pipeline.run_mesh", interrupted)
        words = f"interrupted after training, which is saved in {out}: run the same command again"
        refused([*command, "--overwrite"], 75, words, "again, without --overwrite, to continue")
        refused(command, 75, words, "again to continue")
    capsys.readouterr()
    assert main([str(argument) for argument in command]) == 0
    assert f"continuing an unfinished run at step {VIEWS}" in capsys.readouterr().out
    assert metrics(out)["masks"] == "given"


def test_what_cannot_begin_leaves_no_folders(tmp_path, conf, refused):
    refused(["reconstruct", tmp_path / "typo", "--conf", conf, "--out", tmp_path / "a" / "b" / "c"], 3, "no such folder")
    assert not any(tmp_path.iterdir())


def test_a_wrong_mask_hides_no_surface(tmp_path, conf, monkeypatch):
    """What training does not believe, --unseen and the filter of floaters must not either."""
    scene = photographs(cameras_around(12, 48, 36), PaintedBall())
    half = scene.masks.clone()
    half[4, :, : int(half[4].any(0).nonzero().float().mean())] = 0
    folder = write_folder(replace(scene, masks=half), tmp_path / "ball")
    believed = []

    def treat_unseen(mesh, views, *_):
        believed.append(views.masks)
        return mesh, {}

    monkeypatch.setattr("nsr.training.pipeline.treat_unseen", treat_unseen)
    options = ["--no-check", "--mesh-only", "--resolution", 16, "train.budget=0", "train.nepoch=1", "start.max_misses=1"]
    out = tmp_path / "out"
    assert main([str(argument) for argument in ["reconstruct", folder, "--conf", conf, "--out", out, *options]]) == 0
    (masks,) = believed
    assert (masks[half != scene.masks] == 255).float().mean() > 0.9
    assert torch.equal(training_masks(load_run(out)), masks)


def test_finished_results_are_replaced_only_on_demand(results, tmp_path, refused, capsys):
    out = Path(shutil.copytree(results, tmp_path / "out"))
    (out / "mine.txt").write_text("mine")
    before = contents(out)
    files = results.parents[1]
    command = ["reconstruct", files / "ball", "--conf", files / "tiny.conf", "--out", out, "--resolution", 16]
    refused([*command, "--budget", 0.3], USAGE, out, "report.html", "--overwrite")
    assert contents(out) == before
    (out / "plots").mkdir()
    assert main([str(argument) for argument in [*command, "--budget", 1e-6, "--overwrite"]]) == 0
    printed = capsys.readouterr().out
    assert printed.count("warning: not one step was trained") == 1
    assert "--budget" in printed
    figures = metrics(out)
    assert (figures["steps"], figures["views"], figures["seed"]) == (0, VIEWS, 0)
    assert not (out / "plots").exists()
    assert (out / "mine.txt").read_text() == "mine"


def test_pictures_too_small_for_ssim(conf, tmp_path):
    view = photographs(cameras_around(VIEWS, 12, 9), PaintedBall())
    command = ["reconstruct", write_folder(view, tmp_path / "ball"), "--conf", conf, "--out", tmp_path / "out"]
    assert main([str(argument) for argument in [*command, "--budget", 0.3, "--resolution", 16]]) == 0
    figures = metrics(tmp_path / "out")
    assert figures.keys() >= ALWAYS - {"ssim"}
    assert "ssim" not in figures


def test_a_folder_of_results_does_not_hide_a_built_in_scene(scene, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("bust").mkdir()
    Path("bust", "mesh.ply").touch()
    assert is_built_in("bust")
    assert data_place("bust") == "bust"
    shutil.move(scene, "dents")
    assert not is_built_in("dents")
    assert data_place("dents") == str(tmp_path / "dents")
    assert load_scene("dents").name == "dents"
    assert len(load_scene("dents")) == VIEWS


def test_without_held_out_views_or_truth(scene, conf, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["reconstruct", "ball", "--conf", str(conf), "--budget", "0.5", "--resolution", "16", "--views", "4"]) == 0
    out = tmp_path / "runs" / "ball"
    assert {path.name for path in out.iterdir()} == RESULTS | {".lock", "checkpoints", "metrics.csv", "runconf.conf"}
    figures = metrics(out)
    assert figures.keys() >= ALWAYS
    assert not figures.keys() & DISTANCES
    assert (figures["views"], figures["psnr_views"]) == (4, "training")
    printed = capsys.readouterr().out
    assert all(f"runs/ball/{name}" in printed for name in RESULTS)
    assert "psnr_views" in printed


def test_the_mesh_alone_is_measured_without_a_rendering(scene, conf, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("nsr.models.idr.IDRModel.render", None)  # would fail if anything were rendered
    ball(scene / "mesh_gt.ply")
    command = ["reconstruct", scene, "--conf", conf, "--budget", 0.3, "--resolution", 16, "--out", tmp_path / "out"]
    assert main([str(argument) for argument in [*command, "--mesh-only"]]) == 0
    figures = metrics(tmp_path / "out")
    assert figures.keys() >= DISTANCES
    assert not figures.keys() & {"psnr", "ssim", "iou", "psnr_views"}
    assert not (tmp_path / "out" / "preview.png").exists()
    assert "preview.png" not in capsys.readouterr().out
    assert "turntable" in (tmp_path / "out" / "report.html").read_text()


def test_a_scene_that_brings_its_own_truth(scene, conf, tmp_path):
    ball(scene / "mesh_gt.ply", radius=1.5 * WORLD_RADIUS)
    command = ["reconstruct", scene, "--conf", conf, "--budget", 0.3, "--resolution", 16, "--out", tmp_path / "out"]
    assert main([str(argument) for argument in command]) == 0
    assert metrics(tmp_path / "out").keys() >= DISTANCES
    with Image.open(tmp_path / "out" / "preview.png") as picture:
        pixels = np.array(picture.convert("RGB")).astype(int)
    red = np.abs(pixels - [200, 30, 30]).max(axis=-1) <= 3  # the last column's sign of errors of 1 % and more: here everywhere
    column = pixels.shape[1] // 5
    assert red[:, -column:].mean() > 0.2
    assert not red[:, :-column].any()
