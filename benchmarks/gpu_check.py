"""Everything that only a GPU can show, in one go: build, tests, sanitizers, kernels, convergence, rendering.

scripts/gpu_check.sh prepares the environment and calls this. Each step is a process of its own with a limit; one that fails or
runs out of time leaves the others to run. OUT/gpu_check.json has all figures, OUT/gpu_check.md the tables, OUT/<step>.log what
each step printed. `--device cpu --quick` goes through the same steps without a GPU: that the check itself works.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import time
import xml.etree.ElementTree as ElementTree
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
MARKS = {  # the CPU's figures after 60 s, in % of the object's radius (docs/results.md): to be reached within 5 s
    "bust": 0.101,
    "dents": 0.140,
}
WRITTEN = ("gpu_check.json", "gpu_check.md", "kernels.json", "rendering.json", "tests.xml")


@dataclass(frozen=True)
class Step:
    """A command, and the most seconds that it may take."""

    name: str
    command: list[str]
    limit: float


@dataclass
class Outcome:
    name: str
    state: str  # passed, failed, out of time, left out
    seconds: float
    command: str


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, metavar="DIR")
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--seconds", type=float, default=540.0, help="what all steps together may take (default %(default)g)")
    parser.add_argument("--quick", action="store_true", help="tiny sizes: whether the check works, not how fast nsr is")
    parser.add_argument("--only", default="", metavar="REGEX", help="only steps whose name has this in it")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    for path in [args.out / name for name in WRITTEN] + sorted(args.out.glob("*.log")):
        path.unlink(missing_ok=True)  # of an earlier check
    device = describe_device(args.device)
    if device is None:
        print("gpu_check: torch finds no CUDA device, or there is no torch; nothing to check with", file=sys.stderr)
        return 2
    print("\n".join(f"{key}: {value}" for key, value in device.items()), flush=True)
    chosen = [step for step in steps(args) if re.search(args.only, step.name)]
    begun, outcomes = time.monotonic(), []
    report: dict = {}
    for step in chosen:
        outcomes.append(run(step, args.out, args.seconds - (time.monotonic() - begun)))
        print(f"{outcomes[-1].name}: {outcomes[-1].state}, {outcomes[-1].seconds:.0f} s", flush=True)
        # After every step: whoever ends this process from outside still has what was found.
        report = {"device": device | clocks(), "steps": [asdict(outcome) for outcome in outcomes]} | figures(args.out, outcomes)
        (args.out / "gpu_check.json").write_text(json.dumps(report, indent=1) + "\n")
        (args.out / "gpu_check.md").write_text(markdown(report))
    if report:
        print("\n" + markdown(report))
    return int(any(outcome.state != "passed" for outcome in outcomes))


def steps(args: argparse.Namespace) -> list[Step]:
    """In the order of what the next ones need, and of what matters most where time runs out."""
    python, out, gpu = sys.executable, args.out, args.device == "cuda"
    marker, of_devices = "gpu" if gpu else "not gpu and not slow", "tests/ops/test_devices.py"
    tests = [python, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", marker]
    sizes = ["--quick"] if args.quick else ["--seconds", "0.2"]
    kernels = [python, "benchmarks/kernels.py", "--device", args.device, *sizes, "--json", str(out / "kernels.json")]
    reconstruct = [python, "-m", "nsr.apps.main", "reconstruct", "--device", args.device, "--overwrite"]
    small = ["--views", "8", "--resolution", "48", "start.resolution=32", "photometric.rays=64", "sampling.neighbours=32"]
    in_steps = ["train.budget=0", "train.nepoch=4"]  # enough for rows in the log, however busy the machine is
    options = [*small, *in_steps] if args.quick else []
    chosen = []
    if gpu:
        chosen.append(Step("build", [python, "setup.py", "-q", "build_ext", "--inplace"], 200))
    chosen.append(Step("tests", [*tests, f"--junitxml={out / 'tests.xml'}", "tests" if gpu else of_devices], 150))
    for scene, budget in (("bust", 5), ("dents", 5), ("bust", 15)):
        folder = out / f"{scene}_{budget}s"
        end = [] if args.quick else ["--budget", str(budget)]
        command = [*reconstruct, scene, *end, "--out", str(folder), *options]
        chosen.append(Step(f"convergence {scene} {budget} s", command, 20 * budget if not args.quick else 120))
        if args.quick:
            break
    chosen.append(Step("kernels", kernels, 150))
    picture = [python, "benchmarks/rendering.py", str(out / "bust_5s"), "--device", args.device]
    size = ["--width", "64", "--height", "48"] if args.quick else []
    chosen.append(Step("rendering", [*picture, "--json", str(out / "rendering.json"), *size], 60))
    sanitizer = shutil.which("compute-sanitizer")
    if gpu and sanitizer:
        for tool in ("racecheck", "memcheck", "synccheck"):
            few = [*tests, of_devices, "-k", "(exact or tracers or halves) and 33 or adam", "-x"]
            chosen.append(Step(tool, [sanitizer, "--tool", tool, "--error-exitcode", "9", *few], 100))
    return chosen


def run(step: Step, out: Path, left: float) -> Outcome:
    command = " ".join(step.command)
    if left < 5:
        return Outcome(step.name, "left out", 0.0, command)
    begun = time.monotonic()
    environment = os.environ | {"PYTHONUNBUFFERED": "1"}
    if step.name != "build":
        environment["NSR_BACKEND"] = "native"  # a build that failed must not give PyTorch's figures
    if step.name == "memcheck":
        environment["PYTORCH_NO_CUDA_MEMORY_CACHING"] = "1"  # so that tensors have bounds of their own
    if step.name == "build":
        environment |= {"NSR_CUDA": "1", "NSR_CUDA_ARCHS": os.environ.get("NSR_CUDA_ARCHS") or own_architecture()}
    with open(out / f"{step.name.replace(' ', '_')}.log", "w") as log:
        process = subprocess.Popen(
            step.command, cwd=ROOT, env=environment, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
        )
        try:
            state = "passed" if process.wait(min(step.limit, left)) == 0 else "failed"
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)  # with all that it has started, which would disturb the next step
            process.wait()
            state = "out of time"
    return Outcome(step.name, state, time.monotonic() - begun, command)


def describe_device(kind: str) -> dict[str, str] | None:
    """What the figures depend on; None where there is no such device."""
    try:
        import torch
    except ImportError:
        return None
    about = {"python": platform.python_version(), "torch": torch.__version__, "commit": commit()}
    if kind == "cpu":
        return {"device": "cpu (no GPU: a trial of the check itself)", **about}
    if not torch.cuda.is_available():
        return None
    properties = torch.cuda.get_device_properties(0)
    memory = f"{properties.total_memory / 2**30:.0f} GiB"
    parts = f"{properties.multi_processor_count} multiprocessors, sm_{properties.major}{properties.minor}"
    name = f"{properties.name}, {memory}, {parts}"
    return {"device": name, "cuda": str(torch.version.cuda), **about}


def own_architecture() -> str:
    import torch

    return "".join(map(str, torch.cuda.get_device_capability(0)))


def clocks() -> dict[str, str]:
    """Right after the last step, as nvidia-smi gives them."""
    query = "driver_version,clocks.sm,clocks.mem,clocks.max.sm,temperature.gpu"
    try:
        done = subprocess.run(["nvidia-smi", f"--query-gpu={query}", "--format=csv,noheader"], capture_output=True, text=True)
    except FileNotFoundError:
        return {}
    return {query: done.stdout.strip()} if done.returncode == 0 else {}


def commit() -> str:
    try:
        done = subprocess.run(["git", "describe", "--always", "--dirty"], cwd=ROOT, capture_output=True, text=True)
    except FileNotFoundError:
        return "unknown"
    return done.stdout.strip() or "unknown"


def figures(out: Path, outcomes: list[Outcome]) -> dict:
    """What the steps of this check have written."""
    found: dict = {"convergence": {}}
    for name in [outcome.name for outcome in outcomes if outcome.state == "passed" and "convergence" in outcome.name]:
        _, scene, seconds, _ = name.split()
        path = out / f"{scene}_{seconds}s" / "metrics.json"
        metrics = json.loads(path.read_text())
        keys = ("chamfer_percent", "steps", "train_seconds", "wall_seconds", "psnr", "iou", "recorded_graphs")
        found["convergence"][path.parent.name] = {key: metrics.get(key) for key in keys} | {"step_ms": step_times(path.parent)}
    for name in ("kernels", "rendering"):
        path = out / f"{name}.json"
        found[name] = json.loads(path.read_text()) if path.is_file() else None
    log = out / "tests.log"
    summary = re.findall(r"^.*(?:passed|failed|error).* in .*$", log.read_text(), re.MULTILINE) if log.is_file() else []
    return found | {"tests": summary[-1] if summary else None, "skipped": skipped_tests(out / "tests.xml")}


def skipped_tests(path: Path) -> list[dict]:
    """What the tests step has not shown: each skipped test, how often it was (by parameters), and why."""
    if not path.is_file():
        return []
    skips = Counter()
    for case in ElementTree.parse(path).iter("testcase"):
        if (skip := case.find("skipped")) is not None:
            name = f"{case.get('classname').replace('.', '/')}.py::{case.get('name').partition('[')[0]}"
            skips[name, skip.get("message")] += 1
    return [{"test": test, "count": count, "reason": reason} for (test, reason), count in skips.items()]


def step_times(run: Path) -> dict[str, float]:
    """Milliseconds of a step's parts, as the run's log has them: means over its rows."""
    with open(run / "metrics.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    parts = [name for name in (rows[0] if rows else {}) if name.startswith("ms_")]
    timed = {part: [float(row[part]) for row in rows if row[part]] for part in parts}
    return {part.removeprefix("ms_"): sum(values) / len(values) for part, values in timed.items() if values}


def markdown(report: dict) -> str:
    lines = ["# GPU check", "", *(f"* {key}: {value}" for key, value in report["device"].items())]
    if report["tests"]:
        lines.append(f"* tests: {report['tests']}")
    for skip in report["skipped"]:
        times = f", {skip['count']} times" if skip["count"] > 1 else ""
        lines.append(f"* not run: `{skip['test']}`{times} ({skip['reason']})")
    lines += ["", "| step | | seconds |", "|---|---|---|"]
    lines += [f"| {step['name']} | {step['state']} | {step['seconds']:.0f} |" for step in report["steps"]]
    lines += ["", "| scene | Chamfer % | the CPU's after 60 s | steps | training s | all s |", "|---|---|---|---|---|---|"]
    for name, row in report["convergence"].items():
        cells = [f"{row['chamfer_percent']:.3f}", f"{MARKS.get(name.split('_')[0], float('nan')):.3f}", str(row["steps"])]
        cells += [f"{row['train_seconds']:.1f}", f"{row['wall_seconds']:.1f}"]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    for name, row in report["convergence"].items():
        parts = ", ".join(f"{part} {milliseconds:.3g}" for part, milliseconds in row["step_ms"].items())
        graphs = f"{row['recorded_graphs']} recorded graphs" if row["recorded_graphs"] else "no recorded graph"
        lines += ["", f"A step of {name}, in ms: {parts}; {graphs}."]
    if report["rendering"]:
        row = report["rendering"]
        lines += [
            "",
            f"Rendering {row['width']}x{row['height']}: {1e3 * row['seconds']:.1f} ms, {row['rays_that_hit']} rays hit.",
        ]
    if report["kernels"]:
        lines += [
            "",
            "| op | size | ms | times as fast as PyTorch | M/s | of peak | tiny-cuda-nn ms |",
            "|---|---|---|---|---|---|---|",
        ]
        for row in report["kernels"]["rows"]:
            peer = f"{1e3 * row['tiny_cuda_nn']:.3g}" if "tiny_cuda_nn" in row else ""
            cells = [row["op"], row["size"], f"{1e3 * row['native']:.3g}", f"{row['ratio']:.3g}"]
            cells += [f"{row['items_per_second'] / 1e6:.3g}", f"{100 * row['of_peak']:.0f} %", peer]
            lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(main())
