"""`--train_cameras`: IDR's noisy start, and results that do not depend on where the refined frame has drifted."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import trimesh
from PIL import Image
from support.idr_folder import world_matrices
from support.painted_ball import RADIUS, WORLD_FROM_SCENE
from support.refusals import DATA
from support.tiny_run import VIEWS, write_tiny_conf, write_tiny_scene

from nsr.apps.main import main
from nsr.datasets.detect import load_scene
from nsr.geometry.meshes import load_mesh
from nsr.geometry.poses import quaternion_to_rotation, transform_cameras
from nsr.training.run import load_run

START = "cameras_linear_init.npz"
WORLD_RADIUS, WORLD_CENTRE = 50 * RADIUS, WORLD_FROM_SCENE[:3, 3]

HELD_OUT = VIEWS // 2  # of --holdout 1


def nsr(*arguments: object) -> None:
    assert main([str(argument) for argument in arguments]) == 0


def figures(file: Path) -> dict:
    return json.loads(file.read_text())


def write_noisy_start(scene: Path, degrees: float) -> None:
    """Every camera turned by an angle about an axis of its own, where it stands."""
    known = load_scene(scene)
    axes = torch.nn.functional.normalize(torch.randn(len(known), 3, generator=torch.Generator().manual_seed(0)), dim=-1)
    half = torch.deg2rad(torch.tensor(degrees / 2))
    turns = quaternion_to_rotation(torch.cat([half.cos().expand(len(known), 1), half.sin() * axes], dim=-1))
    poses = known.cameras.camera_to_world.clone()
    poses[:, :3, :3] = turns @ poses[:, :3, :3]
    np.savez(scene / START, **world_matrices(replace(known, cameras=replace(known.cameras, camera_to_world=poses))))


def test_training_starts_from_the_noisy_cameras_and_is_measured_against_the_others(scene, conf, tmp_path, capsys):
    exps, out = tmp_path / "exps", tmp_path / "m.json"
    train = ["train", "--conf", conf, "--data_dir", scene, "--exps_folder", exps, "--budget", 1e-6]  # not one step
    nsr(*train, "--train_cameras", "--expname", "own")
    assert "cameras: refined from the scene's own, which stay the reference" in capsys.readouterr().err
    write_noisy_start(scene, degrees=3.0)
    nsr(*train, "--train_cameras", "--expname", "noisy")
    assert f"cameras: refined from those of {START}; the scene's own are the reference" in capsys.readouterr().err
    nsr(*train, "--expname", "fixed")
    assert "cameras:" not in capsys.readouterr().err
    for name, error in {"own": 0.0, "noisy": 3.0, "fixed": 0.0}.items():
        (run,) = (exps / name).iterdir()
        nsr("eval", run, "--eval_cameras", "--out", out)
        assert figures(out)["rotation_error_degrees_mean"] == pytest.approx(error, abs=0.02)
        assert figures(out)["translation_error_mean"] == pytest.approx(0, abs=1e-3)
        assert ("aligned" in figures(out)) == (name != "fixed")


def test_a_run_with_a_noisy_start_goes_on_with_it(scene, conf, tmp_path, refused):
    write_noisy_start(scene, degrees=1.0)
    options = ["--data_dir", scene, "--exps_folder", tmp_path / "exps", "--expname", "noisy"]
    nsr("train", "--conf", conf, *options, "--train_cameras", "--nepoch", 1, "train.learning_rate_cam=0.01")
    nsr("train", *options, "--is_continue", "--nepoch", 2)
    (run,) = (tmp_path / "exps" / "noisy").iterdir()
    assert load_run(run).step == 2 * VIEWS
    assert load_run(run).load_scene().reference is not None
    (scene / START).unlink()
    refused(["train", *options, "--is_continue", "--nepoch", 3], DATA, "not the data of this run", "found other cameras")
    refused(["eval", run], DATA, "not the data of this run")


BOUNDED = ("start.type=hull", "train.budget=0", "train.nepoch=40")  # by steps: a busy machine trains as well


@pytest.fixture(scope="module")
def drifted(tmp_path_factory) -> Path:
    """out/ is a reconstruction of ball/ whose start has no noise in the training views, but another scene frame and world.

    So have cameras that drifted together while they were refined: no photograph tells.
    """
    folder = tmp_path_factory.mktemp("drifted")
    scene = write_tiny_scene(folder / "ball")
    turned = np.array([[0, 0, 1, 0], [1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 0, 1.0]])
    frame = np.diag([1.1, 1.1, 1.1, 1]) @ turned  # from the start's scene frame to the scene's
    frame[:3, 3] = [0.05, -0.1, 0.08]
    world = np.diag([3.0, 3.0, 3.0, 1]) @ turned  # from the world to the start's
    world[:3, 3] = [500, -20, 9]
    known = load_scene(scene)
    world_from_start = world @ known.world_from_scene @ frame
    cameras = transform_cameras(known.cameras, np.linalg.inv(frame))
    cameras.camera_to_world[HELD_OUT, :3, :3] @= quaternion_to_rotation(torch.tensor([0.95, 0.2, 0.2, 0.2]))  # nobody mends it
    start = replace(known, cameras=cameras, world_from_scene=world_from_start)
    scales = {f"scale_mat_{view}": world_from_start for view in range(VIEWS)}
    np.savez(scene / START, **world_matrices(start), **scales)
    truth = trimesh.creation.icosphere(subdivisions=4, radius=WORLD_RADIUS).apply_translation(WORLD_CENTRE)
    truth.export(folder / "truth.ply")
    conf = write_tiny_conf(folder / "tiny.conf", "start.resolution=32", "start.steps=80", "start.points=512", *BOUNDED)
    options = ["--conf", conf, "--out", folder / "out", "--resolution", 32, "--holdout", 1]
    nsr("reconstruct", scene, *options, "--gt", folder / "truth.ply", "--train_cameras")
    return folder


def test_results_are_aligned_to_the_reference_cameras(drifted):
    measured = figures(drifted / "out" / "metrics.json")
    assert measured["aligned"] == "similarity of the training cameras"
    assert measured["psnr_views"] == "held out"
    assert measured["iou"] > 0.8
    assert measured["chamfer_percent_all"] < 8
    assert measured["rotation_error_degrees_mean"] < 2
    mesh = load_mesh(drifted / "out" / "mesh.ply")
    assert np.allclose(mesh.bounds.mean(axis=0), WORLD_CENTRE, atol=0.15 * WORLD_RADIUS)


def test_eval_and_mesh_align_alike(drifted, tmp_path):
    out = tmp_path / "again.json"
    nsr("eval", drifted / "out", "--eval_rendering", "--gt", drifted / "truth.ply", "--resolution", 32, "--out", out)
    nsr("eval", drifted / "out", "--eval_cameras", "--out", out)
    again, first = figures(out), figures(drifted / "out" / "metrics.json")
    for name in ("aligned", "psnr", "iou", "chamfer_percent", "chamfer_percent_all", "rotation_error_degrees_mean"):
        assert again[name] == first[name], name
    nsr("mesh", drifted / "out", "--resolution", 32, "--out", tmp_path / "mesh.ply")
    assert np.allclose(load_mesh(tmp_path / "mesh.ply").bounds, load_mesh(drifted / "out" / "mesh.ply").bounds, atol=1e-3)


def test_held_out_views_are_rendered_in_the_drifted_frame(drifted, tmp_path):
    nsr("render", drifted / "out", "--views", f"{HELD_OUT},", "--samples", 1, "--out", tmp_path / "views")
    shown = np.array(Image.open(tmp_path / "views" / f"view_{HELD_OUT:04d}.png")).min(axis=-1) < 255
    mask = load_scene(drifted / "ball").masks[HELD_OUT].numpy() > 127
    assert (shown & mask).sum() / (shown | mask).sum() > 0.8


def test_the_noisy_start_is_read_for_trained_cameras_alone(drifted, tmp_path):
    options = ["--conf", drifted / "tiny.conf", "--budget", 0.3, "--resolution", 16]
    nsr("reconstruct", drifted / "ball", *options, "--out", tmp_path / "out")
    assert "aligned" not in figures(tmp_path / "out" / "metrics.json")
    assert load_run(tmp_path / "out").load_scene().reference is None
