"""`nsr failsafe eval`: which run it measures, by which programs, and what it refuses."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from PIL import Image
from support.failsafe_run import EPOCHS, EXPERIMENT, attempts, garble, parsed
from support.run_folders import checkpoint
from support.tiny_run import HEIGHT, VIEWS, WIDTH

from nsr.apps import failsafe
from nsr.apps.main import main
from nsr.training.checkpoint import save_checkpoint
from nsr.training.folders import PREVIOUS, checkpoint_path

pytestmark = pytest.mark.usefixtures("in_workplace")
STEPS = EPOCHS * VIEWS


def nsr(*arguments: object) -> int:
    return main([str(argument) for argument in arguments])


def test_evaluation_of_the_newest_finished_run(peaceful, tmp_path, refused):
    exps, asked = tmp_path / "exps", ["--exp", "HashGrid", "--scan_id", 7, "--exps_folder", tmp_path / "exps"]
    refused(["failsafe", "eval", *asked], 5, "no finished run to evaluate", exps / EXPERIMENT, "none")
    unfinished, older, newer = (Path(shutil.copytree(peaceful, exps / EXPERIMENT / name)) for name in ("3", "1", "2"))
    whole = checkpoint(unfinished)
    whole.meta["state"]["progress"] = 0.5
    save_checkpoint(checkpoint_path(unfinished), whole.tensors, whole.meta)
    few = ["--views", "0,2", "--samples", 1, "--scale", 0.5]
    assert nsr("failsafe", "eval", *asked, "--resolution", 24, "--eval_rendering", *few) == 0
    for run in (unfinished, older):
        assert not (run / "mesh.ply").exists()
    assert (newer / "mesh.ply").stat().st_size > 1000
    figures = json.loads((newer / "metrics.json").read_text())
    assert figures["steps"] == STEPS
    assert figures["psnr"] > 5
    assert (figures["psnr_views"], figures["samples_per_pixel"]) == ("views 0,2", 1)
    sizes = [Image.open(path).size for path in (newer / "renders").iterdir()]
    assert sizes == [(WIDTH // 2, HEIGHT // 2)] * 2
    assert [(row["run"], row["program"], row["exit_code"]) for row in attempts(exps)] == [
        ("2", program, "0") for program in ("mesh", "eval", "eval", "render")
    ]
    # Of another folder of scans with a scan of the same name: not what was asked for.
    elsewhere = ["failsafe", "eval", *asked, "--data_dir", tmp_path / "elsewhere"]
    refused(elsewhere, 5, "no finished run on", "elsewhere", "2 of ", "scan7")
    shutil.copy(checkpoint_path(newer), checkpoint_path(newer, PREVIOUS))
    checkpoint_path(newer).write_bytes(b"garbled")
    before = (newer / "metrics.json").read_bytes()
    refused(["failsafe", "eval", *asked], 5, "2: its newest checkpoint cannot be read", "--is_continue")  # not the older one
    assert (newer / "metrics.json").read_bytes() == before
    assert not (older / "mesh.ply").exists()
    for run in (older, newer):
        shutil.rmtree(run)
    refused(["failsafe", "eval", *asked], 5, "no finished run to evaluate", "3 at 50%", "--is_continue")


def test_how_to_render_is_checked_before_anything_is_measured(tmp_path, refused):
    command = ["failsafe", "eval", "--exp", "HashGrid", "--scan_id", 7, "--exps_folder", tmp_path]
    for option, value in (("--views", 3), ("--samples", 1), ("--scale", 0.5)):
        refused([*command, option, value], 2, f"{option}: expected --eval_rendering beside it")
    refused([*command, "--eval_rendering", "--samples", 9], 2, "--samples 9", "1 to 8")
    refused([*command, "--eval_rendering", "--scale", 0], 2, "--scale 0", "0.01 to 16")


def test_a_finished_run_whose_checkpoint_is_damaged_is_not_evaluated_on_an_older_one(peaceful, tmp_path, refused):
    """What was trained last counts; the message says what there is."""
    run = Path(shutil.copytree(peaceful, tmp_path / "exps" / EXPERIMENT / "1"))
    shutil.copy(checkpoint_path(run), checkpoint_path(run, PREVIOUS))
    garble(checkpoint_path(run))
    command = ["mesh", run, "--resolution", 24]
    refused(command, 5, "latest.safetensors", "previous.safetensors, the one before it, can be given instead", "--is_continue")
    assert nsr("mesh", checkpoint_path(run, PREVIOUS), "--resolution", 24) == 0


def test_what_is_measured(tmp_path):
    def programs(*options: object) -> list[str]:
        commands = failsafe.evaluation_commands(parsed("eval", "--exp", "NFFB", "--scan_id", 7, *options), Path("run"))
        return [
            " ".join(map(str, command)).replace(" --device auto", "").replace(" --resolution 384", "") for command in commands
        ]

    assert programs() == ["mesh run", "eval run --mesh-only"]
    assert programs("--eval_rendering") == ["mesh run", "eval run", "render run"]
    assert programs("--trainable_cameras") == ["mesh run", "eval run --mesh-only", "eval run --eval_cameras"]
    few = ["--eval_rendering", "--views", "0,5", "--samples", 1, "--scale", 0.5]
    assert programs(*few) == [
        "mesh run",
        "eval run --mesh-only",
        "eval run --eval_rendering --views 0,5 --samples 1",
        "render run --views 0,5 --samples 1 --scale 0.5",
    ]
    assert programs("--eval_rendering", "--scale", 0.5) == ["mesh run", "eval run", "render run --scale 0.5"]
    gt = ["--gt", "cup.ply"]
    assert programs(*gt, *few)[1:] == ["eval run --gt cup.ply --eval_rendering --views 0,5 --samples 1", programs(*few)[3]]
    assert programs(*gt) == ["mesh run", "eval run --gt cup.ply"]
    assert programs(*gt, "--eval_rendering") == ["mesh run", "eval run --gt cup.ply --eval_rendering", "render run"]
    assert programs("--dtu_gt", "MVS") == ["mesh run", "eval run --dtu_gt MVS --dtu_scan 7"]
    measured = programs(*gt, "--dtu_gt", "MVS", "--scan_id", "scan7", "--eval_rendering")[1]
    assert measured == "eval run --gt cup.ply --dtu_gt MVS --eval_rendering"
