"""Bad input through the command line: a typed exit code, one line of what, where and what to do, nothing half-written."""

from __future__ import annotations

import resource
import shutil
import subprocess

import numpy as np
import pytest
import torch
from PIL import Image
from support.refusals import CHECKPOINT, CONFIG, DATA, EXTENSION, USAGE, check_refusal, files_in
from support.spoiled_scene import array_of_another_kind, cut, drop, new_cameras, new_mask, overwrite, turned_round, with_nan
from support.tiny_run import VIEWS, nsr_command

from nsr import _ext

# ---------------------------------------------------------------------------------------------- scenes


SPOILED_SCENES = {
    "missing folder": (shutil.rmtree, ["ball", "no such folder", "bust"]),
    "empty folder": (drop("image", "mask", "cameras.npz"), ["ball", "not a scene", "it holds nothing"]),
    "one mask missing": (drop("mask/004.png"), ["6 images and 5 masks", "000004.png", "give each image a mask"]),
    "one image missing": (drop("image/000001.png"), ["5 images and 6 masks", "001.png"]),
    "masks missing, nothing to see": (drop("mask"), ["silhouettes of ball", "--sphere", "own_photos.md"]),
    "cameras missing": (drop("cameras.npz"), ["no camera file", "cameras_sphere.npz", "own_photos.md"]),
    "wrong-sized mask": (new_mask("mask/003.png", (31, 24), 255), ["003.png", "31x24", "32x24", "export the mask"]),
    "empty mask": (new_mask("mask/005.png", (32, 24), 0), ["005.png", "empty mask", "remove"]),
    "truncated image": (cut("image/000002.png"), ["000002.png", "truncated", "copy or export it again"]),
    "truncated mask": (cut("mask/002.png"), ["002.png", "truncated", "copy or export it again"]),
    "no image at all": (overwrite("image/000002.png", b"<html>"), ["000002.png", "no image"]),
    "truncated cameras": (cut("cameras.npz"), ["cameras.npz", "not a readable npz archive", "write the cameras again"]),
    "cameras of another kind": (array_of_another_kind, ["cameras.npz", "not a readable npz archive"]),
    "camera with NaN": (new_cameras(with_nan), ["cameras.npz", "world_mat_2", "NaN", "solve its camera again"]),
    "camera missing": (new_cameras(lambda m: m.pop("world_mat_3")), ["cameras.npz", "5 cameras for 6 images"]),
    "one camera looks away": (new_cameras(turned_round(4)), ["look away from the object", "000004", "remove these views"]),
    "all cameras look away": (new_cameras(turned_round(*range(VIEWS))), ["6 of 6 cameras look away", "do not fit together"]),
}


@pytest.mark.parametrize("command", ["train", "reconstruct"])
@pytest.mark.parametrize("case", SPOILED_SCENES)
def test_a_spoiled_scene(case, command, scene, conf, tmp_path, refused):
    spoil, words = SPOILED_SCENES[case]
    spoil(scene)
    before = files_in(tmp_path)
    out = tmp_path / "out"
    where = ["--data_dir", scene, "--exps_folder", out] if command == "train" else [scene, "--out", out]
    refused([command, *where, "--conf", conf, "--budget", 1], DATA, *words)
    assert files_in(tmp_path) == before
    assert not out.exists()


@pytest.mark.parametrize("command", ["train", "reconstruct"])
def test_a_spoiled_view_that_is_held_out(command, scene, conf, tmp_path, refused):
    new_cameras(turned_round(3))(scene)
    out = tmp_path / "out"
    where = ["--data_dir", scene, "--exps_folder", out] if command == "train" else [scene, "--out", out]
    refused([command, *where, "--conf", conf, "--budget", 1, "--holdout", 1], DATA, "look away from the object", "000003")
    assert not out.exists()


def test_an_object_that_no_view_shares_is_refused_even_unchecked(scene, conf, tmp_path, refused):
    for view in range(VIEWS):
        mask = np.zeros((24, 32), np.uint8)
        mask[2 + 10 * (view // 3) :, 2 + 10 * (view % 3) :][:6, :6] = 255
        Image.fromarray(mask).save(scene / "mask" / f"{view:03d}.png")
    exps, out = tmp_path / "exps", tmp_path / "out"
    options = ["--conf", conf, "--budget", 1, "--no-check", "model.ray_tracer.radius=1.0"]
    refused(["train", "--data_dir", scene, "--exps_folder", exps, *options], DATA, "visual hull", "nsr data check")
    refused(["reconstruct", scene, "--out", out, *options], DATA, "visual hull", "nsr data check")
    assert files_in(exps) == []
    assert not out.exists()
    (tmp_path / "photographs").mkdir()
    out.mkdir()
    (out / "mine").symlink_to(tmp_path / "photographs")
    refused(["reconstruct", scene, "--out", out, *options], DATA, "visual hull")
    assert [path.name for path in out.iterdir()] == ["mine"]  # a folder that holds something is left as it was


@pytest.fixture
def full_disk():
    """No file may grow beyond 20 kB, as on a disk that has no more room."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_no_room_for_the_first_checkpoint(scene, conf, tmp_path, full_disk, refused):
    out = tmp_path / "out"
    refused(["train", "--conf", conf, "--data_dir", scene, "--exps_folder", out], CHECKPOINT, "cannot write", "Free some space")
    assert files_in(out) == []


@pytest.mark.parametrize("command", ["train", "reconstruct", "mesh", "render", "eval"])
def test_a_gpu_that_torch_can_use_and_the_extension_cannot(command, scene, conf, run, tmp_path, monkeypatch, refused):
    """A CUDA build of torch beside a library that was built without."""
    monkeypatch.delenv("NSR_BACKEND", raising=False)
    monkeypatch.setattr("nsr.training.launch._torch_device", torch.device)
    report = _ext.build_report()
    monkeypatch.setattr("nsr._ext.build_report", lambda: {**report, "cuda": "no"})
    out = tmp_path / "out"
    where = {
        "train": ["--data_dir", scene, "--conf", conf, "--exps_folder", out],
        "reconstruct": [scene, "--conf", conf, "--out", out],
    }.get(command, [run])
    refused([command, *where, "--device", "cuda"], EXTENSION, "_C", "no kernels for cuda", "built for cpu alone")
    assert not out.exists()


# ---------------------------------------------------------------------------------------------- configurations


@pytest.mark.parametrize("command", ["train", "reconstruct"])
@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("train.learning_rat=0.1", ["override 'train.learning_rat=0.1'", "train.learning_rat: unknown key", "'learning_rate'"]),
        ("sampling.rays=many", ["sampling.rays", "expected an integer", "'many'"]),
        ("sampling.rays=0", ["sampling", "rays is 0", "1 or more"]),
        ("model.implicit_network.encoder.type=hashgird", ["unknown type 'hashgird'", "'hashgrid'", "vanilla"]),
        ("photographs", ["override 'photographs'", "dotted.key=value"]),
    ],
)
def test_a_mistaken_override(override, words, command, scene, conf, tmp_path, refused):
    out = tmp_path / "out"
    where = ["--data_dir", scene, "--exps_folder", out] if command == "train" else [scene, "--out", out]
    refused([command, *where, "--conf", conf, override], CONFIG, *words)
    assert not out.exists()


@pytest.mark.parametrize("command", ["train", "reconstruct"])
def test_a_mistaken_configuration_file(command, scene, conf, tmp_path, refused):
    out, mine = tmp_path / "out", tmp_path / "mine.conf"
    where = ["--data_dir", scene, "--exps_folder", out] if command == "train" else [scene, "--out", out]
    mine.write_text(f'include "{conf}"\nloss {{ eikonal_wieght = 0.2 }}\n')
    refused([command, *where, "--conf", mine], CONFIG, mine, "loss.eikonal_wieght: unknown key", "'eikonal_weight'")
    mine.write_text(f'include "{conf}"\nloss {{\n')
    refused([command, *where, "--conf", mine], CONFIG, mine, "not valid HOCON in line")
    mine.write_text('include "nowhere.conf"\n')
    refused([command, *where, "--conf", mine], CONFIG, "nowhere.conf", f"included by {mine}")
    refused([command, *where, "--conf", "instnat"], CONFIG, "'instnat' not found", "'instant'")
    assert not out.exists()


def test_an_unknown_encoder(scene, tmp_path, refused):
    out = tmp_path / "out"
    refused(["reconstruct", scene, "--out", out, "--encoder", "hashgird"], CONFIG, "--encoder hashgird", "encoders/hashgrid")
    for encoder, code, words in (
        ("hashgrid_cuda", USAGE, ("hashgrid_cuda", "not on cpu", "--device cuda", "--exp HashGrid")),
        ("nffb_tcnn", EXTENSION, ("tiny-cuda-nn", "NVlabs/tiny-cuda-nn", "--exp HashGrid, NFFB")),
    ):  # before the scene is looked for
        refused(["reconstruct", tmp_path / "none", "--out", out, "--encoder", encoder], code, *words)
        conf = ["--conf", f"encoders/{encoder}/dtu_fixed_cameras"]
        refused(["train", "--data_dir", tmp_path / "none", "--exps_folder", out, *conf], code, *words)
        assert not out.exists()
    refused(["reconstruct", scene, "--encoder", "sh", "--conf", "instant"], USAGE, "--encoder and --conf exclude each other")
    assert not out.exists()


def test_mistakes_in_options_are_found_before_photographs_are_read(tmp_path, refused):
    scene = tmp_path / "nowhere"
    refused(["train", "--data_dir", scene, "train.x=1"], CONFIG, "train.x")
    refused(["reconstruct", scene, "--device", "cuda:77"], USAGE, "--device cuda:77", "nsr doctor")


# ---------------------------------------------------------------------------------------------- options


BAD_OPTIONS = [
    (["--holdout", "6"], ["--holdout 6", "cannot hold out 6 of 6 views"]),
    (["--holdout", "2", "--views", "2"], ["--holdout 2", "cannot hold out 2 of 2 views"]),
    (["--holdout", "-1"], ["--holdout", "from 0 up", "'-1'"]),
    (["--views", "7"], ["views '7'", "expected 1 to 6 views"]),
    (["--views", "0,6"], ["view 6 was asked for", "0 to 5"]),
    (["--views", "1,1"], ["named twice"]),
    (["--views", "0,5-3"], ["'5-3' runs backwards", "write 3-5"]),
    (["--views", "some"], ["cannot read 'some'", "a list (0,3,5)"]),
    (["--budget", "0"], ["--budget", "positive number of seconds", "'0'"]),
    (["--budget", "-5"], ["--budget", "positive number of seconds"]),
    (["--budget", "nan"], ["--budget", "positive number of seconds"]),
    (["--budget", "a minute"], ["--budget", "positive number of seconds", "'a minute'"]),
    (["--seed", "-1"], ["--seed", "from 0 up"]),
    (["--seed", str(2**70)], ["--seed", "whole number"]),
    (["--device", "gpu"], ["--device gpu", "nsr doctor"]),
    (["--device", "meta"], ["--device meta", "not usable here"]),
]


@pytest.mark.parametrize("command", ["train", "reconstruct"])
@pytest.mark.parametrize(("options", "words"), BAD_OPTIONS, ids=lambda value: " ".join(value))
def test_bad_options(options, words, command, scene, conf, tmp_path, refused):
    out = tmp_path / "out"
    where = ["--data_dir", scene, "--exps_folder", out] if command == "train" else [scene, "--out", out]
    refused([command, *where, "--conf", conf, *options], USAGE, *words)
    assert not out.exists()


def test_options_of_train_alone(scene, conf, tmp_path, refused):
    refused(["train"], USAGE, "expected --data_dir DIR", "--is_continue")
    refused(["train", "--data_dir", scene, "--nepoch", "0"], USAGE, "--nepoch", "from 1 up")
    refused(["train", "--data_dir", scene, "--scan_id", "65", "--exps_folder", tmp_path / "e"], DATA, "ball/scan65", "no such")
    (tmp_path / "file").write_text("mine")
    refused(["train", "--data_dir", scene, "--exps_folder", tmp_path / "file"], USAGE, "--exps_folder", "is a file")
    assert (tmp_path / "file").read_text() == "mine"


def test_options_of_reconstruct_alone(scene, conf, tmp_path, refused):
    taken = tmp_path / "file"
    taken.write_text("mine")
    refused(["reconstruct", scene, "--conf", conf, "--out", taken], USAGE, f"--out {taken}", "is a file")
    refused(["reconstruct", scene, "--conf", conf, "--out", taken / "below"], USAGE, f"{taken} is a file")
    assert taken.read_text() == "mine"
    out = tmp_path / "out"
    refused(["reconstruct", scene, "--out", out, "--resolution", "4"], USAGE, "--resolution 4", "8 to 2048")
    refused(["reconstruct", scene, "--out", out, "--gt", tmp_path / "none.ply"], DATA, "none.ply", "no such file")
    assert not out.exists()


NOT_MESHES = {
    "noise.ply": b"\x00\x01noise",
    "cut.ply": b"ply\nformat ascii 1.0\nelement vertex 9\n",
    "empty.obj": b"",
    "head.glb": b"glTF",
}


@pytest.mark.parametrize("name", NOT_MESHES)
def test_an_unreadable_ground_truth(name, scene, conf, run, tmp_path, refused):
    truth, out = tmp_path / name, tmp_path / "out"
    truth.write_bytes(NOT_MESHES[name])
    refused(["reconstruct", scene, "--conf", conf, "--budget", 1, "--out", out, "--gt", truth], DATA, truth)
    assert not out.exists()
    before = files_in(run)
    refused(["eval", run, "--gt", truth], DATA, truth)
    assert files_in(run) == before


def test_options_of_mesh_render_and_eval(run, scene, tmp_path, refused):
    before = files_in(run)
    refused(["render", run, "--views", "7"], USAGE, "views '7'", "expected 1 to 6 views")
    refused(["eval", run, "--views", "0,6"], USAGE, "view 6 was asked for", "0 to 5")
    refused(["eval", run, "--eval_cameras", "--reference", tmp_path / "none"], DATA, "none: no such folder")
    for command in ("mesh", "render", "eval"):
        refused([command, run, "--device", "gpu"], USAGE, "--device gpu", "nsr doctor")
    (tmp_path / "a.ply").mkdir()
    refused(["mesh", run, "--resolution", "16", "--out", tmp_path / "a.ply"], 1, "a.ply", "directory")
    assert files_in(run) == before
    assert files_in(tmp_path / "a.ply") == []


def test_as_a_process_of_its_own(scene, tmp_path):
    cut("image/000002.png")(scene)
    command, environment = nsr_command("reconstruct", scene, "--out", tmp_path / "out")
    process = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert process.returncode == DATA
    assert process.stderr.count("\n") == 1
    assert process.stdout == ""
    check_refusal(process.stderr, "000002.png")
    assert not (tmp_path / "out").exists()
