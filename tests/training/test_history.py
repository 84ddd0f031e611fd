"""What is read of a run folder, whole, unfinished or damaged."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from nsr.training.history import read_history
from nsr.training.log import MetricsLog
from nsr.training.step_times import StepTimes
from nsr.utils.errors import DataError


def write(folder: Path, text: str | bytes) -> Path:
    (folder / "metrics.csv").write_bytes(text if isinstance(text, bytes) else text.encode())
    return folder


def test_reads_what_a_run_logs(tmp_path):
    with MetricsLog(tmp_path, show=False) as log:
        for step in range(1, 41):
            losses = {"rgb": 1 / step} if step < 30 else {"rgb": 1 / step, "mask": float("nan")}
            log.step(step, losses, rays=step, seconds=step / 4, progress=0, times=StepTimes(torch.device("cpu")))
        found = read_history(tmp_path, "ball")  # which still goes on
    assert found.steps.tolist() == [10, 20, 30, 40]
    np.testing.assert_allclose(found.columns["rgb"], [0.1, 0.05, 1 / 30, 0.025])
    assert np.isnan(found.columns["mask"]).all()
    np.testing.assert_allclose(found.minutes, np.array([10, 20, 30, 40]) / 240)
    assert (found.name, found.epoch_steps, found.figures) == ("ball", None, {})


def test_a_line_that_is_being_written_does_not_count(tmp_path):
    assert read_history(write(tmp_path, "step,rgb\n10,0.5\n20,0.2"), "a").steps.tolist() == [10]


def test_a_run_that_has_only_begun(tmp_path):
    found = read_history(write(tmp_path, "step,rgb\n"), "a")
    assert found.steps.shape == found.columns["rgb"].shape == found.minutes.shape == (0,)


def test_of_repeated_steps_the_later_ones_count(tmp_path):
    rows = "10,1\n20,2\n30,3\n40,4\n20,2.5\n30,3.5\n"
    found = read_history(write(tmp_path, f"step,rgb\n{rows}"), "a")
    assert found.steps.tolist() == [10, 20, 30]
    assert found.columns["rgb"].tolist() == [1, 2.5, 3.5]


def test_what_is_not_finite_is_not_there(tmp_path):
    found = read_history(write(tmp_path, "step,rgb,mask\n10,nan,\n20,inf,0.5\n"), "a")
    np.testing.assert_array_equal(found.columns["rgb"], [np.nan, np.nan])
    np.testing.assert_array_equal(found.columns["mask"], [np.nan, 0.5])


@pytest.mark.parametrize(
    ("text", "line", "words"),
    [
        ("", 1, "empty"),
        ("step,rgb", 1, "empty"),
        ("rgb,step\n1,10\n", 1, "expected different names, step first"),
        ("step,rgb,rgb\n1,10,3\n", 1, "expected different names"),
        ("step,rgb\n10,0.5\n20\n30,0.1\n", 3, "expected 2 values, as names, got 1"),
        ("step,rgb\n10,0.5\n20,0.3,7\n", 3, "got 3"),
        ("step,rgb\n10,0.5\n20,0.3x\n", 3, "expected numbers"),
        ("step,rgb\n10,0.5\n2.5,0.3\n", 3, "expected a step, got '2.5'"),
        ("step,rgb\n-10,0.5\n", 2, "expected a step"),
        ("step,rgb\n,0.5\n", 2, "expected a step"),
        (b"step,rgb\n10,0.5\n\x00\x00\x00\n30,1\n", 3, "damaged"),
        (b"step,rgb\n10,\xff\xfe\n", 2, "damaged"),
    ],
)
def test_damage_is_named_by_file_and_line(tmp_path, text, line, words):
    with pytest.raises(DataError) as error:
        read_history(write(tmp_path, text), "a")
    assert str(error.value).startswith(f"{tmp_path / 'metrics.csv'}, line {line}: ")
    assert words in str(error.value)


def test_no_file(tmp_path):
    with pytest.raises(DataError, match=r"metrics\.csv: no such file"):
        read_history(tmp_path, "a")


def test_figures_of_an_evaluation(tmp_path):
    write(tmp_path, "step,rgb\n10,0.5\n")
    file = tmp_path / "metrics.json"
    file.write_text(json.dumps({"psnr": 25.5, "iou": None, "steps": 10, "train_seconds": 90, "seed": 3, "per_view": {"a": 1}}))
    found = read_history(tmp_path, "a")
    assert (found.figures, found.figures_at) == ({"psnr": 25.5}, (10, 90))
    file.write_text('{\n"psnr": 25.5\n"iou"}')
    with pytest.raises(DataError, match=r"metrics\.json, line 3: damaged"):
        read_history(tmp_path, "a")
    file.write_text("[1, 2]")
    with pytest.raises(DataError, match=r"metrics\.json, line 1: expected an object"):
        read_history(tmp_path, "a")


def test_reading_and_drawing_need_no_torch():
    code = "import sys, nsr.training.history, nsr.evaluation.curve_plots, nsr.apps.plot; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"
