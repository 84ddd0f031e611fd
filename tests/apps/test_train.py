"""`nsr train` from the command line to the checkpoint: its flags, its files, and what survives a kill."""

from __future__ import annotations

import io
import math
import os
import random
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from support.run_folders import assert_same_state, checkpoint, rows, runs_in
from support.tiny_run import HEIGHT, VIEWS, WIDTH, nsr_command

from nsr.apps.main import main
from nsr.training.checkpoint import load_checkpoint
from nsr.training.run import load_run

EPOCHS = 7  # of the runs that are interrupted


def nsr(*arguments: object) -> None:
    assert main([str(argument) for argument in arguments]) == 0


# ---------------------------------------------------------------------------------------------- files and flags


def test_a_run_by_epochs_writes_its_folder_and_can_be_prolonged(scene, conf, tmp_path):
    exps = tmp_path / "exps"
    options = ["--exps_folder", exps, "--expname", "cup"]
    nsr("train", "--conf", conf, "--data_dir", scene, "--nepoch", 5, *options, "train.preview_steps=12")
    (run,) = runs_in(exps, "cup")
    assert time.strptime(run.name, "%Y_%m_%d_%H_%M_%S")
    assert {path.name for path in run.iterdir()} == {".lock", "checkpoints", "metrics.csv", "plots", "runconf.conf"}
    assert checkpoint(run).meta["step"] == 5 * VIEWS
    assert [int(row["step"]) for row in rows(run)] == [10, 20, 30]

    nsr("train", "--is_continue", "--timestamp", "latest", "--checkpoint", "latest", "--nepoch", 7, *options)
    assert runs_in(exps, "cup") == [run]
    assert checkpoint(run).meta["step"] == 7 * VIEWS
    logged = rows(run)
    assert [int(row["step"]) for row in logged] == [10, 20, 30, 40]
    assert [int(row["rays"]) for row in logged] == [640, 1280, 1920, 2560]
    assert float(logged[2]["progress"]) == 1.0
    assert float(logged[3]["progress"]) == pytest.approx(40 / 42)
    seconds = [float(row["seconds"]) for row in logged]
    assert seconds == sorted(seconds)
    assert all(math.isfinite(float(row[name])) for row in logged for name in ("loss", "rgb"))
    for name in ("mask", "eikonal"):
        assert all(math.isfinite(float(row[name])) for row in logged[:2])
        assert [row[name] for row in logged[2:]] == ["", ""]  # of steps in which only the colours learn
    assert "nepoch = 7" in (run / "runconf.conf").read_text()

    previews = sorted((run / "plots").iterdir())
    assert [path.name for path in previews] == ["step_000012.png", "step_000024.png", "step_000036.png"]
    preview = np.array(Image.open(previews[0]))
    assert preview.shape == (HEIGHT, 3 * WIDTH, 3)
    assert np.array_equal(preview[:, :WIDTH], np.array(Image.open(scene / "image" / "000001.png")))
    assert preview[:, WIDTH:].std() > 5


def test_previews_are_in_tensorboard_too(scene, conf, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    command = ["train", "--conf", conf, "--data_dir", scene, "--exps_folder", tmp_path, "--nepoch", 2, "--tensorboard"]
    nsr(*command, "train.preview_steps=6")
    (run,) = runs_in(tmp_path)
    pictures = EventAccumulator(str(run / "tensorboard")).Reload().Images("preview")
    assert [picture.step for picture in pictures] == [6, 12]
    shown = np.array(Image.open(io.BytesIO(pictures[1].encoded_image_string)))
    assert np.array_equal(shown, np.array(Image.open(run / "plots" / "step_000012.png")))


def test_a_number_of_views_is_the_published_split_also_when_continued(scene, conf, tmp_path, capsys, refused):
    (tmp_path / "config.toml").write_text("[scenes.ball.default_views_configs]\n3 = [0, 1, 5]\n2 = [0, 1]")
    options = ["--exps_folder", tmp_path / "exps", "--expname", "head"]
    nsr("train", "--conf", conf, "--data_dir", scene, "--views", 3, "--nepoch", 1, *options)
    assert "ball: views 0, 1, 5: those published for 3" in capsys.readouterr().err
    (run,) = runs_in(tmp_path / "exps", "head")
    assert load_run(run).train_views == [0, 1, 5]
    nsr("train", "--is_continue", "--views", 3, "--nepoch", 2, *options)
    assert checkpoint(run).meta["step"] == 6
    capsys.readouterr()
    refused(["train", "--is_continue", "--views", 2, "--nepoch", 3, *options], 2, "--views 2: the run began with views 0,1,5")


def test_scan_views_holdout_and_cameras(scene, conf, tmp_path):
    data, exps = tmp_path / "DTU", tmp_path / "exps"
    shutil.move(scene, data / "scan7")
    options = ["--conf", conf, "--data_dir", data, "--scan_id", 7, "--exps_folder", exps, "--nepoch", 1]
    nsr("train", *options, "--views", "0-4", "--holdout", 1)
    nsr("train", *options, "--train_cameras", "train.learning_rate_cam=0.01")
    held, refined = runs_in(exps, "tiny_7")  # though both may have begun in one second
    run = load_run(held)
    assert run.data_dir == str((data / "scan7").resolve())
    assert (run.train_views, run.holdout_views, run.step) == ([0, 1, 3, 4], [2], 4)
    given = run.load_scene().cameras.camera_to_world
    assert torch.equal(run.cameras.camera_to_world, given[[0, 1, 3, 4]])
    moved = (load_run(refined).cameras.camera_to_world - given).abs().amax(dim=(1, 2))
    assert (moved > 1e-4).all()
    assert (moved < 0.5).all()


def test_the_same_seed_gives_the_same_run(scene, conf, tmp_path):
    for seed in (1, 1, 2):
        nsr("train", "--conf", conf, "--data_dir", scene, "--exps_folder", tmp_path, "--nepoch", 2, "--seed", seed)
    first, second, third = runs_in(tmp_path)
    assert_same_state(first, second)
    weights = [checkpoint(run).tensors["run.model.implicit_network.lin0.weight"] for run in (first, third)]
    assert not torch.equal(*weights)


def test_the_budget_bounds_the_time_and_alone_the_run(scene, conf, tmp_path):
    options = [
        "--conf",
        conf,
        "--data_dir",
        scene,
        "--exps_folder",
        tmp_path,
        "start.type=hull",
    ]  # the quickest, on a busy machine
    nsr("train", *options, "--budget", 2.5)
    nsr("train", *options, "--budget", 100, "--nepoch", 1)
    nsr("train", *options, "--budget", 100, "train.nepoch=1")  # the override is asked for just as well
    timed, stepped, both = (checkpoint(run).meta for run in runs_in(tmp_path))
    assert 2.5 <= timed["state"]["clock"]["seconds"] < 8.0
    assert timed["step"] > 0
    assert stepped["step"] == VIEWS
    assert timed["config"]["train"]["nepoch"] == 0
    assert both["step"] == VIEWS
    nsr("train", "--is_continue", "--expname", "tiny_ball", "--exps_folder", tmp_path, "--timestamp", runs_in(tmp_path)[1].name,
        "--nepoch", 2)  # fmt: skip
    longer = checkpoint(runs_in(tmp_path)[1]).meta
    assert (longer["step"], longer["config"]["train"]["budget"]) == (2 * VIEWS, 0.0)


def test_weights_of_another_run_are_a_start(scene, conf, run, tmp_path, capsys):
    options = ["--conf", conf, "--data_dir", scene, "--exps_folder", tmp_path, "--budget", 1e-6]  # not one step
    nsr("train", *options, "--init_weights", run)
    assert "warning: not one step was trained" in capsys.readouterr().err
    nsr("train", *options, "--init_weights", run / "checkpoints" / "latest.safetensors", "--seed", 5)
    weights = {name: tensor for name, tensor in checkpoint(run).tensors.items() if name.startswith("run.model.")}
    for copy in map(checkpoint, runs_in(tmp_path)):
        assert copy.meta["step"] == 0
        assert all(torch.equal(copy.tensors[name], tensor) for name, tensor in weights.items())


# ---------------------------------------------------------------------------------------------- interruptions


@pytest.fixture(scope="module")
def straight(tiny_files, tmp_path_factory) -> Path:
    """A run that nothing interrupts."""
    exps = tmp_path_factory.mktemp("straight")
    nsr(*command(tiny_files, exps))
    return runs_in(exps)[0]


def command(tiny_files: Path, exps: Path) -> list:
    return [
        *("train", "--conf", tiny_files / "tiny.conf", "--data_dir", tiny_files / "ball", "--exps_folder", exps),
        *("--nepoch", EPOCHS, "--seed", 3, "--train_cameras", "train.checkpoint_seconds=0.05"),
    ]


def interrupt(arguments: list, when: Callable[[], bool], number: signal.Signals) -> tuple[int, str]:
    """Run in a process of its own and send it a signal a moment after `when` has come true; exit code and stderr."""
    line, environment = nsr_command(*arguments)
    process = subprocess.Popen(line, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    while not when() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.002)
    time.sleep(random.uniform(0, 0.1))
    os.kill(process.pid, number)
    stderr = process.communicate(timeout=60)[1]
    return process.returncode, stderr


def test_a_run_that_is_killed_and_then_terminated_ends_as_if_nothing_had_happened(straight, tiny_files, tmp_path):
    start = command(tiny_files, tmp_path)
    moment = random.randint(0, VIEWS * EPOCHS // 3)

    def reached_moment() -> bool:
        files = tmp_path.glob("tiny_ball/*/checkpoints/latest.safetensors")
        return any(load_checkpoint(file).meta["step"] >= moment for file in files)

    code, _ = interrupt(start, reached_moment, signal.SIGKILL)
    assert code == -signal.SIGKILL
    (run,) = runs_in(tmp_path)
    survived = checkpoint(run).meta["step"]
    assert moment <= survived < EPOCHS * VIEWS

    file = run / "checkpoints" / "latest.safetensors"
    number = file.stat().st_ino  # a run that continues begins by writing its checkpoint anew
    seldom = "train.checkpoint_seconds=1000"  # what is found after SIGTERM was saved because of it
    code, stderr = interrupt([*start, "--is_continue", seldom], lambda: file.stat().st_ino != number, signal.SIGTERM)
    assert code == 75
    step = checkpoint(run).meta["step"]
    assert survived < step < EPOCHS * VIEWS
    (line,) = [line for line in stderr.splitlines() if line.startswith("nsr: error:")]
    assert all(words in line for words in (f"stopped by SIGTERM at step {step}", str(run), "--is_continue"))

    nsr(*start, "--is_continue")
    assert_same_state(run, straight)


# ---------------------------------------------------------------------------------------------- the original IDR


def legacy_weights() -> dict[str, torch.Tensor]:
    """Random weights of the published sizes under the names of the original IDR, whose weight norm keeps g and v."""
    inputs = [39, *[512] * 8]
    outputs = [512, 512, 512, 512 - 39, 512, 512, 512, 512, 257]
    layers = [(f"implicit_network.lin{i}", *shape) for i, shape in enumerate(zip(inputs, outputs, strict=True))]
    inputs, outputs = [3 + 27 + 3 + 256, *[512] * 4], [*[512] * 4, 3]
    layers += [(f"rendering_network.lin{i}", *shape) for i, shape in enumerate(zip(inputs, outputs, strict=True))]
    generator = torch.Generator().manual_seed(0)
    state = {}
    for name, n_in, n_out in layers:
        state[f"{name}.bias"] = 0.1 * torch.randn(n_out, generator=generator)
        state[f"{name}.weight_g"] = 1.0 + 0.2 * torch.rand(n_out, 1, generator=generator)
        state[f"{name}.weight_v"] = torch.randn(n_out, n_in, generator=generator)
    return state


def legacy_layer(state: dict, name: str, x: torch.Tensor) -> torch.Tensor:
    v = state[f"{name}.weight_v"].double()
    weight = state[f"{name}.weight_g"].double() * v / v.norm(dim=1, keepdim=True)
    return x @ weight.T + state[f"{name}.bias"].double()


def octaves(x: torch.Tensor, count: int) -> torch.Tensor:
    return torch.cat([x, *(f(2.0**k * x) for k in range(count) for f in (torch.sin, torch.cos))], dim=1)


def legacy_model(state: dict, points: torch.Tensor, view_dirs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """sdf [N] and rgb [N, 3] in [0, 1], in double, as the IDR paper (secs. 3 and B.2) and its weights' layout have it.

    The colour network is told the direction to the camera, the SDF's gradient as it is, and answers in [-1, 1].
    """
    points = points.double().requires_grad_()
    encoded = octaves(points, 6)
    value = encoded
    for i in range(9):
        value = torch.cat([value, encoded], dim=1) / math.sqrt(2) if i == 4 else value
        value = legacy_layer(state, f"implicit_network.lin{i}", value)
        value = F.softplus(value, beta=100) if i < 8 else value
    (gradient,) = torch.autograd.grad(value[:, 0].sum(), points, retain_graph=True)
    color = torch.cat([points, octaves(-view_dirs.double(), 4), gradient, value[:, 1:]], dim=1)
    for i in range(5):
        color = legacy_layer(state, f"rendering_network.lin{i}", color)
        color = color.relu() if i < 4 else color.tanh()
    return value[:, 0].detach(), (0.5 * (color + 1)).detach()


@pytest.mark.parametrize("prefix", ["", "module."])
def test_weights_of_the_original_idr(prefix, scene, tmp_path):
    weights, state = tmp_path / "latest.pth", legacy_weights()
    torch.save({"epoch": 2000, "model_state_dict": {prefix + name: value for name, value in state.items()}}, weights)
    exps = tmp_path / "exps"
    options = ["--conf", "base/dtu_fixed_cameras", "--data_dir", scene, "--exps_folder", exps]
    nsr("train", *options, "--init_weights", weights, "--budget", 1e-6)  # not one step
    model = load_run(runs_in(exps, "dtu_fixed_cameras_ball")[0]).model
    generator = torch.Generator().manual_seed(1)
    points, directions = (torch.randn(64, 3, generator=generator) for _ in range(2))
    directions = F.normalize(directions, dim=1)
    sdf, color = legacy_model(state, points, directions)
    assert sdf.std() > 1e-3
    assert color.std(dim=0).min() > 1e-3
    with torch.no_grad():
        assert torch.allclose(model.sdf(points).double(), sdf, rtol=1e-5, atol=1e-5)
        assert torch.allclose(model.color(points, directions).double(), color, rtol=1e-4, atol=1e-5)
        assert not torch.allclose(model.color(points, -directions).double(), color, rtol=1e-4, atol=1e-5)
