"""Time to quality: trains encoders and recipes on the same scenes, with the same rays, seeds and budget; compares the curves.

    python benchmarks/convergence.py --scenes bust dents --budget 15 60 --vanilla-budget 1200 --seeds 3 --out runs/convergence

Two comparisons, which no table mixes. Like for like: the same losses, start, rays and schedule, so that only the encoder and
the network behind it differ; the yardstick is IDR's 8 x 512 network behind positional encoding. Complete recipes: IDR as
published (the yardstick) against the instant configurations as shipped.

At 1, 2, 4, 8, 15, 30, 60, 120, ... s of training, and at the end, a run is measured: Chamfer distance where the scene has
ground truth (nsr/evaluation/chamfer.py; DTU's own protocol with --dtu-gt), PSNR inside the masks and overlap of silhouettes in
held-out views, training loss, steps, rays per second, peak of memory. The clock stands still meanwhile, and counts the start.
With several budgets each is a run with a schedule of its own.

OUT receives results.json, curves.csv, curves_*.png and report.html (one file, no network), and a folder for each run.
Interrupt it at any time: --resume goes on where it was, and adds what else is asked for. What was made by another command or by
other code is refused. Nothing else should run on the machine meanwhile.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import os
import platform
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import NoReturn

import torch
from convergence_plan import (
    RECIPES,
    Job,
    Measuring,
    Place,
    Variant,
    evaluation_times,
    find_scenes,
    find_variants,
    is_yardstick,
)
from convergence_report import markdown, run_name, write_all
from convergence_tables import METRICS
from reconstruction import CODE, RECORD, claim, commit, cpu_name

import nsr
from nsr.apps.options import check_folder, check_resolution, seconds, whole_number
from nsr.config import to_tree
from nsr.evaluation.plots import require
from nsr.training.experiments import EXPERIMENTS
from nsr.training.launch import check_device, read_config
from nsr.utils.errors import NsrError, RetriableError, UsageError
from nsr.utils.files import LOCK_NAME, file_lock

WORKER = Path(__file__).with_name("convergence_run.py")
# Configurations count by the values that a run has of them: another encoder's may change between the runs of a benchmark.
CODE_OF_RUNS = tuple(part for part in CODE if part != "confs")
STOP_SECONDS = 120.0  # that a run has to finish its step and save


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    what = parser.add_argument_group("what to compare")
    what.add_argument(
        "--dataset", default="synthetic", metavar="NAME|DIR", help="synthetic (default), dtu, h3ds, or a folder of scenes"
    )
    what.add_argument("--data", type=Path, metavar="DIR", help="where dtu or h3ds is (default data/DTU, data/H3DS)")
    what.add_argument("--scenes", nargs="+", default=[], metavar="NAME|DIR", help="of the data set, or folders (default all)")
    what.add_argument(
        "--encoders", nargs="+", metavar="EXP", help=f"of {', '.join(EXPERIMENTS)} (default all that can run here)"
    )
    recipes = "; ".join(f"{name}: {text}" for name, text in RECIPES.items())
    what.add_argument("--recipes", nargs="+", choices=RECIPES, default=list(RECIPES), metavar="RECIPE", help=recipes)
    what.add_argument("--seeds", type=whole_number(1, "seeds"), default=1, metavar="N", help="how many (default 1)")
    what.add_argument(
        "--full-seeds",
        type=whole_number(1, "seeds"),
        metavar="N",
        help="of the 8 x 512 networks (full, published; default --seeds)",
    )
    what.add_argument("--set", nargs="+", default=[], metavar="key=value", help="configuration values to change in all runs")
    how_long = parser.add_argument_group("how long")
    how_long.add_argument(
        "--budget", nargs="+", type=seconds, default=[120.0], metavar="SECONDS", help="of each run (default 120)"
    )
    how_long.add_argument("--full-budget", nargs="+", type=seconds, metavar="SECONDS", help="of the 8 x 512 networks instead")
    how_long.add_argument("--vanilla-budget", nargs="+", type=seconds, metavar="SECONDS", help="of the yardsticks instead")
    how_long.add_argument("--times", nargs="+", type=seconds, metavar="SECONDS", help="when to measure, beside the end")
    measured = parser.add_argument_group("what is measured")
    measured.add_argument(
        "--holdout", type=whole_number(1, "views"), default=6, metavar="K", help="views kept from training (default 6)"
    )
    measured.add_argument(
        "--h3ds-views", type=whole_number(1, "views"), default=32, metavar="N",
        help="of h3ds: train on the N views that it publishes, measure on others (default 32)",
    )  # fmt: skip
    usual = Measuring()
    measured.add_argument("--eval-views", type=whole_number(1, "views"), default=usual.views, metavar="N",
                          help="of the held-out views to render (default %(default)s)")  # fmt: skip
    measured.add_argument("--eval-rays", type=whole_number(64, "rays"), default=usual.rays, metavar="N",
                          help="for all of them together, at every so manieth pixel (default %(default)s)")  # fmt: skip
    measured.add_argument("--eval-samples", type=whole_number(1, "rays"), default=usual.samples, metavar="N",
                          help="N x N rays per pixel (default %(default)s, as nsr eval)")  # fmt: skip
    measured.add_argument("--resolution", type=int, default=usual.resolution, help="of the meshes (default %(default)s)")
    measured.add_argument(
        "--dtu-gt", type=Path, metavar="DIR", help="folder of DTU's Points/ and ObsMask/: measure as DTU does"
    )
    measured.add_argument("--thresholds", nargs="+", type=_thresholds, default=[], metavar="METRIC=VALUE,...",
                          help=f"fixed thresholds instead of the usual ones, of {', '.join(METRICS)}")  # fmt: skip
    parser.add_argument("--device", default="auto", help="auto (a GPU where there is one), cpu, cuda, cuda:1")
    parser.add_argument("--out", type=Path, default=Path("runs/convergence"), help="default %(default)s")
    parser.add_argument("--resume", action="store_true", help="go on with what is in OUT")
    parser.add_argument("--accept", nargs="+", default=[], metavar="COMMIT",
                        help="with --resume: finished runs of these commits count as well, where what has changed since does "
                        "not concern them; the report names the commits")  # fmt: skip
    return parser


def _thresholds(text: str) -> tuple[str, list[float]]:
    metric, _, values = text.partition("=")
    try:
        parsed = [float(value) for value in values.split(",")]
    except ValueError:
        parsed = []
    if metric not in METRICS or not parsed or not all(map(math.isfinite, parsed)):
        raise argparse.ArgumentTypeError(f"expected METRIC=VALUE,... with METRIC one of {', '.join(METRICS)}; got {text!r}")
    return metric, parsed


def main() -> int:
    args = build_parser().parse_args()
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        return benchmark(args)
    except NsrError as error:
        print(f"convergence.py: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print(f"convergence.py: interrupted; the same command with --resume goes on in {args.out}", file=sys.stderr)
        return RetriableError.exit_code


def _interrupt(number: int, frame: object) -> NoReturn:
    raise KeyboardInterrupt


def benchmark(args: argparse.Namespace) -> int:
    check_resolution(args.resolution)
    args.device = ("cuda" if torch.cuda.is_available() else "cpu") if args.device == "auto" else args.device
    check_device(args.device)
    check_folder(args.out, "--out")
    for package in ("matplotlib", "plotly"):  # now, and not after hours of training
        require(package)
    if not args.resume and args.out.is_dir() and any(path.name != LOCK_NAME for path in args.out.iterdir()):
        raise UsageError(f"--out {args.out}: holds something already; --resume goes on with it, another --out keeps it")
    places = find_scenes(args.dataset, args.scenes, args.data, args.h3ds_views, args.dtu_gt)
    variants, left_out = find_variants(args.recipes, args.encoders, args.set, args.device)
    jobs = plan(args, places, variants)
    earlier = earlier_runs(args.out, jobs, args.accept)
    results = {
        "about": about(args),
        "scenes": list(dict.fromkeys([run["job"]["scene"] for run in earlier] + [place.name for place in places])),
        "left_out": left_out,
        "thresholds": dict(args.thresholds),
        "runs": earlier,
    }
    if earlier:
        print(f"{len(earlier)} finished runs of earlier commands are in the tables as well")
    for name, why in left_out.items():
        print(f"left out: {name}: {why}")
    with file_lock(args.out):
        try:
            for number, job in enumerate(jobs, start=1):
                print(f"[{number}/{len(jobs)}] {run_name(job.to_dict())}: ", end="", flush=True)
                results["runs"].append(run_job(job, args.out, args.accept))
                print(summary(results["runs"][-1]), flush=True)
                results["about"] |= made_by(results["runs"])
                write_all(args.out, results, pictures=False)
        finally:  # what there is of an interrupted one can be looked at
            if results["runs"]:
                write_all(args.out, results)
        print("\n" + markdown(results))
        print(args.out / "report.html")
    return int(any("error" in run for run in results["runs"]))


def plan(args: argparse.Namespace, places: list[Place], variants: list[Variant]) -> list[Job]:
    """All runs, in an order in which an early end leaves something to compare: scene by scene, seed by seed."""
    measuring = Measuring(args.resolution, args.eval_views, args.eval_rays, args.eval_samples)
    jobs = []
    for place in places:
        for seed in range(max(args.seeds, args.full_seeds or 0)):
            for variant in variants:
                large = variant.recipe in ("full", "published")
                if seed >= (args.full_seeds or args.seeds if large else args.seeds):
                    continue
                budgets = args.full_budget if large and args.full_budget else args.budget
                if is_yardstick(variant.recipe, variant.encoder) and args.vanilla_budget:
                    budgets = args.vanilla_budget
                for budget in sorted(set(budgets)):
                    times = evaluation_times(budget, args.times)
                    jobs.append(Job(
                        place.name, place.data, place.views, args.holdout, place.dtu, variant.recipe, variant.encoder,
                        variant.conf, tuple(args.set), budget, times, seed, args.device, measuring,
                    ))  # fmt: skip
    return jobs


def earlier_runs(out: Path, jobs: Sequence[Job], accept: Collection[str] = ()) -> list[dict]:
    """The finished runs in OUT that these jobs do not have, where they can stand in one table with these: of the same code, or
    of a commit in `accept`; measured in the same way on the same device; in a scene of theirs, of the same data and views."""
    planned, runs = {job.name for job in jobs}, []
    ways = {_way(job) for job in jobs}
    scenes = {job.scene: (job.data, job.views, job.dtu) for job in jobs}
    for result in sorted(out.glob("*/*/result.json")):
        folder = result.parent.relative_to(out).as_posix()
        if folder in planned:
            continue
        run = finished_run(result.parent, folder)
        job = Job.from_dict(run["job"])
        of_now = run["commit"] == commit(CODE_OF_RUNS) and run["measured_by"] == _digest(WORKER)
        if run["commit"] not in accept and not of_now:
            why = f"made or measured by other code, of commit {run['commit']}; --accept takes it in"
        elif _way(job) not in ways:
            why = "measured or trained in another way"
        elif scenes.get(job.scene, (job.data, job.views, job.dtu)) != (job.data, job.views, job.dtu):
            why = f"of other data or views of {job.scene}"
        else:
            runs.append(run)
            continue
        print(f"left out of the tables: {folder}: {why}")
    return runs


def _way(job: Job) -> tuple:
    """What two runs must have in common to stand in one table, beside code and data."""
    return json.dumps(asdict(job.measuring)), job.holdout, job.overrides, job.device


def finished_run(place: Path, folder: str) -> dict:
    """What a run's folder says of it: its result, where it is, and what made it."""
    made = json.loads((place / RECORD).read_text(encoding="utf-8"))
    result = json.loads((place / "result.json").read_text(encoding="utf-8"))
    return {**result, "folder": folder, "commit": made["commit"], "measured_by": made["arguments"]["measured_by"]}


def run_job(job: Job, out: Path, accept: Collection[str] = ()) -> dict:
    """The result of a run, which is made unless it is there; {"job", "error"} where it fails. accept: see claim."""
    folder = out / job.name
    config = to_tree(read_config(job.request()))
    identity = {"job": job.to_dict(), "config": config, "measured_by": _digest(WORKER)}
    result, record = folder / "result.json", folder / RECORD
    accept = accept if result.is_file() else ()  # what goes on goes on with the code that began it
    if accept and (made := json.loads(record.read_text(encoding="utf-8")))["commit"] in accept:
        identity["measured_by"] = made["arguments"]["measured_by"]
    claim(folder, json.loads(json.dumps(identity)), CODE_OF_RUNS, accept)
    if not result.is_file():
        code = supervise([sys.executable, str(WORKER), str(folder)], folder / "log.txt")
        if code:
            last = (folder / "log.txt").read_text(encoding="utf-8").strip().splitlines()[-1:]
            return {"job": job.to_dict(), "error": f"exit {code}: {' '.join(last)}"}
    return finished_run(folder, job.name)


def made_by(runs: list[dict]) -> dict[str, str]:
    """Which commits made, and which versions of convergence_run.py measured, how many of the runs."""
    kinds = {"commits of the runs": "commit", "measured by convergence_run.py of digest": "measured_by"}
    counts = {name: Counter(run[key] or "not a checkout" for run in runs if key in run) for name, key in kinds.items()}
    return {name: ", ".join(f"{value} ({count})" for value, count in of.items()) for name, of in counts.items()}


def _digest(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()[:8]


def supervise(command: list[str], log: Path) -> int:
    """Run a process with its output in a log; its exit code. An interrupted benchmark lets it save first."""
    with open(log, "a", encoding="utf-8") as file:
        process = subprocess.Popen([*command, str(os.getpid())], stdout=file, stderr=subprocess.STDOUT)
        try:
            return process.wait()
        except KeyboardInterrupt:
            process.terminate()
            try:
                process.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
            raise


def summary(run: dict) -> str:
    """One line of a run."""
    if "error" in run:
        return f"FAILED, {run['error']}"
    last = run["points"][-1]
    figures = [
        f"{name} {metric.shown(last['figures'].get(name))}" for name, metric in METRICS.items() if name in last["figures"]
    ]
    return f"{', '.join(figures)}, {last['step']} steps in {last['seconds']:.1f} s"


def about(args: argparse.Namespace) -> dict[str, str]:
    """What the figures depend on."""
    device = torch.cuda.get_device_name(args.device) if args.device.startswith("cuda") else cpu_name()
    return {
        "device": f"{args.device}: {device}",
        "versions": f"nsr {nsr.__version__}, torch {torch.__version__}, Python {platform.python_version()}",
        "system": platform.platform(),
        "commit": commit() or "not a checkout",
        "command": " ".join(["python", "benchmarks/convergence.py", *sys.argv[1:]]),
    }


if __name__ == "__main__":
    sys.exit(main())
