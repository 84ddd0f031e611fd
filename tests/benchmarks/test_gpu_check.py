"""benchmarks/gpu_check.py goes through its steps, on a CPU and with tiny sizes: what a GPU machine is then asked to do."""

import argparse
import json
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def check(out, *options):
    command = [sys.executable, str(ROOT / "benchmarks" / "gpu_check.py"), "--quick", "--out", str(out), *options]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600)


def test_steps_pass_and_their_figures_are_written(tmp_path):
    done = check(tmp_path, "--device", "cpu", "--only", "convergence|rendering|kernels")
    logs = {path.name: path.read_text()[-2000:] for path in tmp_path.glob("*.log")}
    assert done.returncode == 0, logs
    report = json.loads((tmp_path / "gpu_check.json").read_text())
    assert [step["state"] for step in report["steps"]] == ["passed"] * 3
    assert report["convergence"]["bust_5s"]["chamfer_percent"] > 0
    assert report["rendering"]["seconds"] > 0
    assert {"hash_grid", "trace_sdf_network"} <= {row["op"] for row in report["kernels"]["rows"]}
    table = (tmp_path / "gpu_check.md").read_text()
    assert "| convergence bust 5 s | passed |" in table
    assert set(report["convergence"]["bust_5s"]["step_ms"]) == {"draw", "forward", "losses", "backward", "optimisers"}
    assert "A step of bust_5s, in ms: draw " in table
    assert "a trial of the check itself" in table


def test_what_fails_or_finds_no_time_is_said(tmp_path):
    (tmp_path / "bust_5s").mkdir()
    (tmp_path / "bust_5s" / "mesh.ply").write_text("no run")
    done = check(tmp_path, "--device", "cpu", "--only", "rendering")
    assert done.returncode == 1
    assert "rendering: failed" in done.stdout
    done = check(tmp_path, "--device", "cpu", "--only", "kernels", "--seconds", "4")
    assert done.returncode == 1
    assert "kernels: left out" in done.stdout


def test_tests_that_were_skipped_are_named(tmp_path, program):
    """A check on a machine without tiny-cuda-nn has not shown that the encoders on it work."""
    gpu_check = program("gpu_check")
    (tmp_path / "test_some.py").write_text(
        "import pytest\n"
        "def test_here(): pass\n"
        "@pytest.mark.parametrize('name', ['a', 'b'])\n"
        "def test_there(name): pytest.importorskip('nowhere_to_be_found', reason='nowhere is not installed')\n"
    )
    args = argparse.Namespace(out=tmp_path, device="cpu", quick=True)
    step = next(step for step in gpu_check.steps(args) if step.name == "tests")
    outcome = gpu_check.run(replace(step, command=[*step.command[:-1], str(tmp_path / "test_some.py")]), tmp_path, 100)
    assert outcome.state == "passed", (tmp_path / "tests.log").read_text()
    report = {"device": {}, "steps": []} | gpu_check.figures(tmp_path, [outcome])
    (skip,) = report["skipped"]
    assert (skip["count"], skip["reason"]) == (2, "nowhere is not installed")
    table = gpu_check.markdown(report)
    assert "* tests: 1 passed, 2 skipped" in table
    assert re.search(r"\* not run: `\S*test_some.py::test_there`, 2 times \(nowhere is not installed\)", table)


def test_without_a_gpu_there_is_nothing_to_check(tmp_path):
    done = subprocess.run(
        ["bash", str(ROOT / "scripts" / "gpu_check.sh"), str(tmp_path)],
        env=os.environ | {"PYTHON": sys.executable, "CUDA_VISIBLE_DEVICES": "", "NSR_WHEELS": ""},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 2
    assert "no CUDA device" in done.stderr
