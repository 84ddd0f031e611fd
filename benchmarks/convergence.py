"""Time to equal quality: what a baseline reaches in a long run, and the least budget in which the instant configuration does.

    python benchmarks/convergence.py bust dents --baseline base/idr --seconds 1200 --budgets 15 30 60 --out /tmp/convergence

Quality is the Chamfer distance in percent (nsr/evaluation/chamfer.py states the protocol) of meshes of --resolution cells:
renderings of the published network would take longer than its training. Times are those of training (train_seconds of
metrics.json), which for instant holds its start. Each run is looked at when it ends: instant may have been as good before its
budget was over, and the baseline, whose error is still falling then, a little before its own. Runs that exist in --out are not
repeated. Nothing else should run on the machine meanwhile.
"""

from __future__ import annotations

import argparse
import math
import sys
from pathlib import Path

from reconstruction import cpu_name, reconstruct


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scenes", nargs="+", help="scene folders with ground truth, or built-in names")
    parser.add_argument("--baseline", default="base/idr", metavar="CONF", help="configuration (default base/idr, as published)")
    parser.add_argument("--seconds", type=float, default=1200.0, help="budget of the baseline (default 1200)")
    parser.add_argument("--budgets", nargs="+", type=float, default=[15.0, 30.0, 60.0, 120.0], metavar="SECONDS")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--resolution", type=int, default=128, help="of the meshes that are measured (default 128)")
    parser.add_argument("--options", default="", help="further options of nsr reconstruct for both, in one string")
    parser.add_argument("--out", type=Path, required=True, help="where the runs go")
    args = parser.parse_args()
    options = ["--mesh-only", "--resolution", str(args.resolution), *args.options.split()]

    print(f"{cpu_name()}, seed {args.seed}, options: {' '.join(options)}\n")
    print(f"| scene | {args.baseline} after {args.seconds:g} s | instant | ratio of times |")
    print("|---|---|---|---|")
    for scene in args.scenes:
        budgets = sorted(args.budgets)
        chamfer(scene, reconstruct(scene, budgets[0], args.seed, args.out / "instant", options))  # before the long run
        slow = ["--conf", args.baseline, *options]
        baseline = reconstruct(scene, args.seconds, args.seed, args.out / args.baseline.replace("/", "_"), slow)
        instant, ratio = "not reached", "-"
        for budget in budgets:
            run = reconstruct(scene, budget, args.seed, args.out / "instant", options)
            if math.isfinite(chamfer(scene, run)) and chamfer(scene, run) <= chamfer(scene, baseline):
                instant = f"{chamfer(scene, run):.3g} % in {run['train_seconds']:.3g} s"
                ratio = f"{baseline['train_seconds'] / run['train_seconds']:.3g}"
                break
        reached = f"{chamfer(scene, baseline):.3g} %, {baseline['steps']} steps"
        print(f"| {Path(scene).name} | {reached} | {instant} | {ratio} |", flush=True)
    return 0


def chamfer(scene: str, run: dict) -> float:
    """In percent; infinite for a mesh of which no two views see anything. Ends the program for a scene without ground truth."""
    if "chamfer_percent" not in run:
        sys.exit(f"convergence.py: {scene}: has no ground truth; expected a built-in one, mesh_gt.ply or --options '--gt MESH'")
    return math.inf if run["chamfer_percent"] is None else run["chamfer_percent"]


if __name__ == "__main__":
    sys.exit(main())
