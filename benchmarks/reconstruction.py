"""Error against training time: runs `nsr reconstruct` over scenes, budgets and seeds, one after the other, and prints a table.

    python benchmarks/reconstruction.py bust dents --budgets 15 30 60 --seeds 0 1 2 --out /tmp/bench

Each cell is the median over the seeds with the range behind it. Chamfer is symmetric, without alignment, in percent of the
object radius, over the surface that at least two training views see (nsr/evaluation/chamfer.py states the protocol). Runs
that exist in --out are not repeated, and those of another command or commit are refused. Nothing else should run on the machine
meanwhile.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import subprocess
import sys
from pathlib import Path

COLUMNS = {
    "chamfer_percent": "Chamfer %",
    "f_score_1percent": "F at 1 %",
    "psnr": "PSNR dB",
    "iou": "IoU",
    "steps": "steps",
    "peak_memory_mb": "MiB",
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scenes", nargs="+", help="scene folders or built-in names")
    parser.add_argument("--budgets", nargs="+", type=float, default=[60.0], metavar="SECONDS")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0], metavar="N")
    parser.add_argument("--out", type=Path, required=True, help="where the runs go")
    parser.add_argument("--options", default="", help="further options of nsr reconstruct, in one string")
    args = parser.parse_args()

    print(f"{cpu_name()}, {platform.python_version()}, options: {args.options or 'none'}\n")
    print("| scene | budget s | " + " | ".join(COLUMNS.values()) + " |")
    print("|---|---|" + "---|" * len(COLUMNS))
    for scene in args.scenes:
        for budget in args.budgets:
            runs = [reconstruct(scene, budget, seed, args.out, args.options.split()) for seed in args.seeds]
            cells = [summary([run[name] for run in runs if run.get(name) is not None]) for name in COLUMNS]
            print(f"| {Path(scene).name} | {budget:g} | " + " | ".join(cells) + " |", flush=True)
    return 0


def reconstruct(scene: str, budget: float | None, seed: int, out: Path, options: list[str]) -> dict:
    """The metrics of one run; ends the program where it fails. budget: None where the options say when it ends."""
    length = f"_{budget:g}s" if budget is not None else ""
    folder = out / f"{Path(scene).name}{length}_seed{seed}"
    end = ["--budget", str(budget)] if budget is not None else []
    arguments = ["reconstruct", scene, *end, "--seed", str(seed), *options]
    identity = {"arguments": arguments, "commit": commit()}
    metrics, record = folder / "metrics.json", folder / "benchmark.json"
    if not metrics.is_file():
        command = [sys.executable, "-m", "nsr.apps.main", *arguments, "--out", str(folder)]
        ended = subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        if ended.returncode:
            sys.exit(f"nsr {' '.join(arguments)}: exit {ended.returncode}: {ended.stderr.strip()[-500:]}")
        record.write_text(json.dumps(identity))
    found = json.loads(record.read_text()) if record.is_file() else None
    if found != identity:
        sys.exit(f"{folder}: holds a run of {found}; expected {identity}; name another --out")
    return json.loads(metrics.read_text())


def commit() -> str:
    """The commit of the code that runs, "-dirty" where files differ from it; nothing outside of a checkout."""
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        return subprocess.run(command, capture_output=True, text=True).stdout.strip()
    except FileNotFoundError:
        return ""


def summary(values: list[float]) -> str:
    """Median, and the range when there are several."""
    if not values:
        return "-"
    middle = f"{statistics.median(values):.4g}"
    return middle if len(values) == 1 else f"{middle} ({min(values):.3g}-{max(values):.3g})"


def cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    names = (
        [line.split(":")[1].strip() for line in info.read_text().splitlines() if line.startswith("model name")]
        if info.is_file()
        else []
    )
    return f"{len(names)} x {names[0]}" if names else platform.processor()


if __name__ == "__main__":
    sys.exit(main())
