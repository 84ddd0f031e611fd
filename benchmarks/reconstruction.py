"""Error against training time: runs `nsr reconstruct` over scenes, budgets and seeds, one after the other, and prints a table.

    python benchmarks/reconstruction.py bust dents --budgets 15 30 60 --seeds 0 1 2 --out /tmp/bench

Each cell is the median over the seeds with the range behind it. Chamfer is symmetric, without alignment, in percent of the
object radius, over the surface that at least two training views see (nsr/evaluation/chamfer.py states the protocol). Runs
that exist in --out are not repeated, and those of another command or other code are refused. Nothing else should run on
the machine meanwhile.
"""

from __future__ import annotations

import argparse
import functools
import hashlib
import json
import platform
import shutil
import statistics
import subprocess
import sys
from collections.abc import Callable, Collection
from pathlib import Path
from typing import NoReturn

from nsr.utils.errors import NsrError, UsageError
from nsr.utils.files import atomic_write

ROOT = Path(__file__).resolve().parents[1]
CODE = ("nsr", "csrc", "confs", "setup.py")  # what a run's figures depend on, and not where they are written
RECORD = "benchmark.json"  # in a run's folder: what made it
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


def run_main(name: str, main: Callable[[], int]) -> NoReturn:
    """End the program as `main` does; errors of nsr are a line and their exit code."""
    try:
        sys.exit(main())
    except NsrError as error:
        print(f"{name}: {error}", file=sys.stderr)
        sys.exit(error.exit_code)


class FailedRun(SystemExit):
    """A run ended with an error; whoever does not catch it ends with its message."""


def reconstruct(scene: str, budget: float | None, seed: int, out: Path, options: list[str]) -> dict:
    """The metrics of one run. Raises FailedRun. budget: None where the options say when it ends."""
    length = f"_{budget:g}s" if budget is not None else ""
    folder = out / f"{Path(scene).name}{length}_seed{seed}"
    end = ["--budget", str(budget)] if budget is not None else []
    arguments = ["reconstruct", scene, *end, "--seed", str(seed), *options]
    record = claim(folder, arguments)
    metrics = folder / "metrics.json"
    if not metrics.is_file():
        command = [sys.executable, "-m", "nsr.apps.main", *arguments, "--out", str(folder)]
        ended = subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        if ended.returncode:
            if list(folder.iterdir()) == [record]:  # it has not begun
                shutil.rmtree(folder)
            raise FailedRun(f"nsr {' '.join(arguments)}: exit {ended.returncode}: {ended.stderr.strip()[-500:]}")
    return json.loads(metrics.read_text())


def claim(folder: Path, arguments: list | dict, code: tuple[str, ...] = CODE, accept: Collection[str] = ()) -> Path:
    """Take a folder for the run that `arguments` describe, by the code of now; returns the file that says so.

    code: files and folders that a run depends on beside its arguments; accept: commits whose runs count as well. Raises
    UsageError where the folder holds another run, or one that other code began, and where the code has changed since the
    program first asked.
    """
    identity = {"arguments": arguments, "commit": commit(code)}
    if identity["commit"] != first_commit(code):
        raise UsageError(
            f"the code has changed since this began, from {first_commit(code)} to {identity['commit']}; run it in a clone"
        )
    record = folder / RECORD
    # Written before the run: one that was interrupted is continued, by the code that began it only.
    folder.mkdir(parents=True, exist_ok=True)
    if not any(folder.iterdir()):
        with atomic_write(record) as file:
            json.dump(identity, file)
    found = json.loads(record.read_text()) if record.is_file() else None
    if found not in [{**identity, "commit": made_by} for made_by in (identity["commit"], *accept)]:
        raise UsageError(f"{folder}: holds a run of {found}; expected {identity}; name another --out")
    return record


def commit(code: tuple[str, ...] = CODE) -> str:
    """The last commit that changed the code, with a digest of what differs from it; nothing outside of a checkout."""
    try:
        head = _git("log", "-1", "--format=%h", "--abbrev=12", "--", *code)
        changes = _git("diff", "HEAD", "--", *code)
        new = _git("ls-files", "--others", "--exclude-standard", "--", *code)
    except (FileNotFoundError, subprocess.CalledProcessError):
        return ""
    contents = [changes.encode(), *((ROOT / name).read_bytes() for name in new.splitlines())]
    different = hashlib.sha256(b"".join(contents)).hexdigest()[:8] if any(contents) else ""
    return f"{head.strip()}-{different}" if different else head.strip()


@functools.cache
def first_commit(code: tuple[str, ...]) -> str:
    """The commit when a program first asked."""
    return commit(code)


def _git(*command: str) -> str:
    return subprocess.run(["git", "-C", str(ROOT), *command], capture_output=True, text=True, check=True).stdout


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
    run_main("reconstruction.py", main)
