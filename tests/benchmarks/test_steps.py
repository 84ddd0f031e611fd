"""benchmarks/steps.py runs, and says of every part of both kinds of steps what it takes."""

import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SMALL = ["sampling.rays=128", "sampling.color_rays=128", "sampling.neighbours=32", "photometric.rays=64", "start.resolution=32"]
SHAPE = ["tracing", "SDF and normal", "SDF and normal, backward", "patches", "patches, backward"]
BOTH = ["tracing", "SDF and normal", "colour", "colour, backward", "Adam over tables", "Adam over networks", "all else"]


def run_benchmark(*options: str) -> subprocess.CompletedProcess:
    command = [sys.executable, str(ROOT / "benchmarks" / "steps.py"), "bust", *SMALL, "--quick", "--threads", "1", *options]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600)


def test_both_stages_have_a_table_whose_parts_make_up_the_step():
    run = run_benchmark("--views", "0,4,8,12,16,20", "--steps", "48", "--profile", "4")
    assert run.returncode == 0, run.stderr
    start, *tables = run.stdout.split("Steps of ")
    seconds = {part: float(took) for part, took in re.findall(r"\| ([a-z][^|]*|PatchMatch) \| ([\d.]+) \|", start)}
    parts = "visual hull", "plane sweep", "PatchMatch", "settling of planes", "exact hull", "teaching the network"
    assert all(seconds[part] > 0 for part in parts)
    # A part that is counted twice would eat up the rest. How large that is depends on what else the machine does.
    assert 0 <= seconds["all else"] < float(re.search(r"Start: ([\d.]+) s", start)[1])
    assert [table.split(":")[0] for table in tables] == ["shape and colours", "colours alone"]
    for table, expected in zip(tables, (BOTH + SHAPE, BOTH), strict=True):
        whole = float(re.search(r": ([\d.]+) ms", table)[1])
        lines = [re.split(r" *\| *", line.strip("| ")) for line in table.splitlines()[4:] if line]
        rows = {part: numbers for part, *numbers in lines}
        assert set(rows) == set(expected)
        assert abs(sum(float(cells[0]) for cells in rows.values()) - whole) < 0.01 * whole + 0.05
        # The rest: a part that is counted twice would eat it up. The parts are timed in other steps than the whole, so on a
        # machine that does something else meanwhile a few milliseconds may be missing.
        assert -0.5 * whole < float(rows["all else"][0]) < whole
        for part in set(expected) - {"all else", "Adam over networks"}:
            took, _, floor, limit, _ = rows[part]
            assert float(took) > 0, part
            assert float(floor) > 0, part
            assert limit in ("flops", "bytes", "reads"), part


def test_more_steps_than_a_stage_has_are_refused():
    run = run_benchmark("--views", "0,4,8,12", "--steps", "16", "--profile", "4")
    assert run.returncode == 2
    assert "colours alone: of 16 steps 3; expected at least 8" in run.stderr
