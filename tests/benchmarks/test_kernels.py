"""benchmarks/kernels.py runs, and has a row with sensible numbers for every op."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
OPS = {
    "hash_grid",
    "hash_grid backward",
    "hash_grid_with_jacobian",
    "hash_grid_with_jacobian backward",
    "hash_grid second order",
    "sdf_network",
    "sdf_and_normal",
    "sdf_and_normal backward",
    "trace_sdf_network",
    "sphere_trace wavefront",
    "color_network",
    "color_network backward",
    "patch_ncc",
    "patch_ncc backward",
    "adam_touched_",
    "visual_hull",
}
for bank in ("with a filter bank", "with a modulated bank"):
    OPS |= {f"sdf_network {bank}", f"sdf_and_normal {bank}", f"sdf_and_normal {bank} backward", f"trace_sdf_network {bank}"}


def run_benchmark(*options: object) -> subprocess.CompletedProcess:
    command = [sys.executable, str(ROOT / "benchmarks" / "kernels.py"), "--quick", *map(str, options)]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600)


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> tuple[str, dict]:
    """What a run prints, and what it writes."""
    path = tmp_path_factory.mktemp("kernels") / "out.json"
    run = run_benchmark("--threads", 1, "--json", path)
    assert run.returncode == 0, run.stderr
    return run.stdout, json.loads(path.read_text())


def test_every_op_has_a_row_of_positive_numbers(finished):
    rows = finished[1]["rows"]
    assert sorted(row["op"] for row in rows) == sorted(OPS)
    for row in rows:
        numbers = [row[key] for key in ("native", "reference", "ratio", "items_per_second", "bytes", "floor", "of_peak")]
        assert all(math.isfinite(number) and number > 0 for number in numbers), row
        assert row["flops"] > 0 or row["op"] == "visual_hull"  # where only bytes are counted
        assert row["limit"] in ("flops", "bytes", "reads")
        assert row["memory"]["native"] >= 0
    memory = {row["op"]: row["memory"] for row in rows}
    points, features = 64, 4 * 2  # those of kernel_inputs.SIZES["quick"]
    assert memory["hash_grid"]["native"] == points * features * 4  # what it returns
    assert memory["hash_grid"]["reference"] > memory["hash_grid"]["native"]
    assert memory["adam_touched_"]["native"] < 1000


def test_the_table_has_the_rows_and_says_where_it_was_measured(finished):
    out, written = finished
    table = [line for line in out.splitlines() if line.startswith("|")]
    assert len(table) == 2 + len(OPS)
    assert len({line.count("|") for line in table}) == 1
    assert written["machine"]["threads"] == "1"
    assert all(f"{key}: " in out for key in written["machine"])


def test_only_some_and_none():
    assert run_benchmark("--only", "no such op").returncode == 2
    out = run_benchmark("--only", "adam").stdout
    assert [line.split("|")[1].strip() for line in out.splitlines()[-1:]] == ["adam_touched_"]
