"""Checkpoints and run folders that cannot be used, through every command that opens one: refused, and left as they are."""

from __future__ import annotations

import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from support.refusals import CHECKPOINT, CONFIG, DATA, USAGE, files_in
from support.spoiled_scene import cut, new_cameras

from nsr.apps.main import main
from nsr.training.checkpoint import load_checkpoint, save_checkpoint
from nsr.training.folders import LATEST, PREVIOUS, checkpoint_path, reached
from nsr.utils.errors import RetriableError
from nsr.utils.files import file_lock


class Trap:
    """A pickle of this writes a file when it is loaded."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return (Path.touch, (self.path,))


def test_the_trap_works(tmp_path):
    pickle.loads(pickle.dumps(Trap(tmp_path / "sprung")))
    assert (tmp_path / "sprung").exists()


@pytest.fixture
def exps(run, tmp_path) -> Path:
    """A folder of experiments with the finished run as tiny/run."""
    (tmp_path / "exps" / "tiny").mkdir(parents=True)
    run.rename(tmp_path / "exps" / "tiny" / "run")
    return tmp_path / "exps"


@pytest.fixture
def refused_by_all(exps, scene, conf, tmp_path, refused):
    """A function that damages the run's checkpoint; every command that opens it has to refuse it, and write nothing."""
    run, other = exps / "tiny" / "run", tmp_path / "other"
    file = run / "checkpoints" / "latest.safetensors"

    def check(damage: Callable[[Path], None], *words: str) -> None:
        checkpoint_path(run, PREVIOUS).unlink()  # with it, training goes on
        damage(file)
        before = {path: path.read_bytes() for path in files_in(run)}
        for command in (
            ["mesh", run],
            ["mesh", file],
            ["render", run],
            ["eval", run],
            ["train", "--is_continue", "--exps_folder", exps, "--expname", "tiny"],
            ["train", "--conf", conf, "--data_dir", scene, "--exps_folder", other, "--init_weights", file],
        ):
            refused(command, CHECKPOINT, file.name, *words)
        assert {path: path.read_bytes() for path in files_in(run)} == before
        assert not other.exists()

    return check


@pytest.mark.parametrize("share", [0.0, 0.5, 0.999])
def test_a_truncated_checkpoint(share, refused_by_all):
    refused_by_all(lambda file: cut(file.name, share)(file.parent), "truncated", "use an earlier one")


def test_a_checkpoint_with_a_flipped_bit(refused_by_all):
    def flip(file: Path) -> None:
        data = bytearray(file.read_bytes())
        data[-1000] ^= 1
        file.write_bytes(data)

    refused_by_all(flip, "damaged (wrong checksum)")


@pytest.mark.parametrize("disguise", ["bare pickle", "torch.save", "torch.save of old"])
def test_a_pickle_that_poses_as_a_checkpoint(disguise, tmp_path, refused_by_all):
    sprung = tmp_path / "sprung"

    def replace(file: Path) -> None:
        if disguise == "bare pickle":
            file.write_bytes(pickle.dumps(Trap(sprung)))
        else:
            torch.save({"model": Trap(sprung)}, file, _use_new_zipfile_serialization=disguise == "torch.save")

    refused_by_all(replace, "a pickle", "not opened")
    assert not sprung.exists()


def test_a_checkpoint_of_another_program(refused_by_all):
    def replace(file: Path) -> None:
        save_checkpoint(file, {"weight": torch.ones(3)}, {"step": 3})

    refused_by_all(replace, "lacks", "expected one that `nsr train` wrote")


def test_weights_of_idr_that_would_run_code(scene, conf, tmp_path, refused):
    weights, sprung, exps = tmp_path / "latest.pth", tmp_path / "sprung", tmp_path / "exps"
    torch.save({"epoch": 1, "model_state_dict": Trap(sprung)}, weights)
    command = ["train", "--conf", conf, "--data_dir", scene, "--exps_folder", exps, "--init_weights", weights]
    refused(command, CHECKPOINT, weights, "not readable as weights of the original IDR")
    torch.save({"epoch": 1, "model_state_dict": {"implicit_network.lin0.bias": torch.ones(3)}}, weights)
    refused(command, CHECKPOINT, weights, "do not fit the model of this configuration")
    refused([*command[:-1], tmp_path / "none.safetensors"], CHECKPOINT, "none.safetensors does not exist")
    assert not sprung.exists()
    assert not exps.exists()


# ---------------------------------------------------------------------------------------------- continuing


def test_nothing_to_continue(conf, tmp_path, refused):
    exps = tmp_path / "exps"
    command = ["train", "--is_continue", "--exps_folder", exps, "--expname", "cup"]
    refused(command, CHECKPOINT, "no run to continue", exps / "cup", "start without --is_continue")
    (exps / "cup" / "2026_01_01").mkdir(parents=True)
    refused(command, CHECKPOINT, "2026_01_01", "no checkpoint 'latest'", "started again")
    refused([*command, "--timestamp", "2025"], CHECKPOINT, "expected 2025", "found 2026_01_01")


@pytest.fixture
def earlier(exps) -> list:
    """The command that continues the finished run."""
    return ["train", "--is_continue", "--exps_folder", exps, "--expname", "tiny"]


def garble(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-2000] + b"\0" * 2000)


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda file: cut(file.name, 0.5)(file.parent), "truncated"),
        (lambda file: file.write_bytes(b"\0" * 5000), "truncated"),
        (garble, "wrong checksum"),
        (Path.unlink, "does not exist"),
    ],
    ids=["cut", "zeros", "garbled", "lost"],
)
def test_where_the_latest_is_damaged_the_one_before_is_continued(damage, words, earlier, exps, capsys):
    run = exps / "tiny" / "run"
    whole = load_checkpoint(checkpoint_path(run))
    damage(checkpoint_path(run))
    assert main([str(argument) for argument in earlier]) == 0
    (warning,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("warning: ")]
    assert words in warning
    assert "continuing from previous.safetensors" in warning
    again = load_checkpoint(checkpoint_path(run))  # trained anew from the first step on
    assert again.meta["step"] == whole.meta["step"]
    assert all(torch.equal(again.tensors[name], tensor) for name, tensor in whole.tensors.items())
    assert reached(run, PREVIOUS).step == 0  # never the damaged one


def test_a_damaged_checkpoint_never_takes_the_place_of_the_one_before(earlier, exps, refused, monkeypatch):
    run = exps / "tiny" / "run"
    garble(checkpoint_path(run))

    def stopped(*_, **__):
        raise RetriableError("stopped before another checkpoint")

    monkeypatch.setattr("nsr.training.trainer.Trainer.fit", stopped)
    refused(earlier, 75, "stopped before another checkpoint")
    assert [load_checkpoint(checkpoint_path(run, name)).meta["step"] for name in (LATEST, PREVIOUS)] == [0, 0]


def test_where_both_are_damaged_nothing_is_continued(earlier, exps, refused):
    run = exps / "tiny" / "run"
    for name in (LATEST, PREVIOUS):
        garble(checkpoint_path(run, name))
    before = {path: path.read_bytes() for path in files_in(run)}
    refused(earlier, CHECKPOINT, "latest.safetensors", "nor can the one before it be used", "previous.safetensors")
    assert {path: path.read_bytes() for path in files_in(run)} == before


def test_a_continued_run_keeps_its_configuration(earlier, exps, refused):
    run = exps / "tiny" / "run"
    before = {path: path.read_bytes() for path in files_in(run)}
    refused([*earlier, "loss.rgb_weight=7"], USAGE, "loss.rgb_weight=7", "configuration it began with", "start a new run")
    refused([*earlier, "train.learning_rate=3"], USAGE, "only train.nepoch, train.budget")
    refused([*earlier, "loss.rgb_wieght=3"], CONFIG, "loss.rgb_wieght: unknown key")
    refused([*earlier, "--train_cameras"], USAGE, "--train_cameras", "fixed cameras")
    refused([*earlier, "--checkpoint", "7"], CHECKPOINT, "no checkpoint '7', found latest")
    assert {path: path.read_bytes() for path in files_in(run)} == before


@pytest.mark.parametrize("change", ["fewer", "smaller", "gone"])
def test_the_data_of_a_run_have_changed(change, earlier, exps, scene, refused):
    if change == "gone":
        shutil.rmtree(scene)
    elif change == "fewer":
        for name in ("image/000005.png", "mask/005.png"):
            (scene / name).unlink()
        new_cameras(lambda m: m.pop("world_mat_5"))(scene)
    else:
        for file in [*(scene / "image").iterdir(), *(scene / "mask").iterdir()]:
            Image.open(file).crop((0, 0, 30, 20)).save(file)
    words = ["ball", "no such folder"] if change == "gone" else ["ball", "not the data of this run"]
    refused([*earlier, "--data_dir", scene], DATA, *words)
    assert not (exps / "tiny" / "run" / "plots").exists()


def nudged(matrices: dict) -> None:
    matrices["world_mat_2"][0, 3] *= 1.01


def rename(scene: Path) -> Path:
    return scene.rename(scene.with_name("cup"))


def rename_images(scene: Path) -> None:
    for file in (scene / "image").iterdir():
        file.rename(file.with_name(f"1{file.name}"))
    for file in (scene / "mask").iterdir():
        file.rename(file.with_name(f"1000{file.name}"))


def touch_up(name: str):
    """Changes a pixel of a picture; the last view is one that was trained on."""

    def change(scene: Path) -> None:
        pixels = np.array(Image.open(scene / name))
        pixels[0, 0] ^= 255
        Image.fromarray(pixels).save(scene / name)

    return change


OTHER_SCENES = {
    "scene name (cup)": rename,
    "image names": rename_images,
    "cameras": new_cameras(nudged),
    "photographs": touch_up("image/000005.png"),
    "masks": touch_up("mask/005.png"),
}


@pytest.mark.parametrize("difference", OTHER_SCENES)
def test_a_run_is_not_continued_with_another_scene(difference, earlier, exps, scene, refused):
    run = exps / "tiny" / "run"
    before = {path: path.read_bytes() for path in files_in(run)}
    data = OTHER_SCENES[difference](scene) or scene
    refused([*earlier, "--nepoch", 2, "--data_dir", data], DATA, data, "not the data of this run", f"found other {difference}")
    assert {path: path.read_bytes() for path in files_in(run)} == before


def test_a_checkpoint_from_before_pixels_were_told_apart_continues(earlier, exps, scene):
    file = exps / "tiny" / "run" / "checkpoints" / "latest.safetensors"
    saved = load_checkpoint(file)
    assert saved.meta["identity"].pop("images") != saved.meta["identity"].pop("masks")
    save_checkpoint(file, saved.tensors, saved.meta)
    touch_up("image/000005.png")(scene)
    assert main([str(argument) for argument in [*earlier, "--nepoch", 2, "--data_dir", scene]]) == 0


def test_what_a_run_began_with_may_be_repeated_but_not_changed(earlier, exps, conf, refused):
    run = exps / "tiny" / "run"
    before = {path: path.read_bytes() for path in files_in(run)}
    refused([*earlier, "--seed", 1], USAGE, "--seed 1", "began with seed 0", "start a new run")
    refused([*earlier, "--views", "3"], USAGE, "--views 3", "views 0,1,2,3,4,5")
    refused([*earlier, "--holdout", 2], USAGE, "--holdout 2", "holds out 1 views")
    refused([*earlier, "--init_weights", run], USAGE, "--init_weights")
    refused([*earlier, "--conf", "instant"], USAGE, "--conf instant", "not the configuration that the run began with")
    assert {path: path.read_bytes() for path in files_in(run)} == before
    same = [*earlier, "--seed", 0, "--views", "6", "--holdout", 1, "--conf", conf, "--nepoch", 2]
    assert main([str(argument) for argument in same]) == 0


def test_continuing_needs_to_know_which_run(exps, refused):
    refused(["train", "--is_continue", "--exps_folder", exps], USAGE, "--is_continue: which run?", "--expname")


def test_two_processes_in_one_run_folder(earlier, exps, scene, conf, tmp_path, refused):
    run = exps / "tiny" / "run"
    before = {path: path.read_bytes() for path in files_in(run) if path.name != ".lock"}
    with file_lock(run):  # taken twice in one process, it acts as between two
        holder = f"written by another process (pid {os.getpid()})"
        refused([*earlier, "--nepoch", 2], USAGE, run, holder, "choose another output folder")
    assert {path: path.read_bytes() for path in files_in(run) if path.name != ".lock"} == before
    out = tmp_path / "out"
    with file_lock(out):
        refused(["reconstruct", scene, "--conf", conf, "--budget", 1, "--out", out], USAGE, out, "written by another process")
    assert [path.name for path in files_in(out)] == [".lock"]
