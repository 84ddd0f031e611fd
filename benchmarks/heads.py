"""Heads from few views: face and head error in mm, over scenes, numbers of views and priors.

    python benchmarks/heads.py ../shared/data/heads --views 3 4 8 16 32 --out runs/heads \\
        --prior deepsdf=runs/priors/family.safetensors --prior pretrained=runs/priors/head \\
        --prior averaged=runs/priors/mean.safetensors

Each cell is a run of `nsr reconstruct SCENE --views N [--prior PRIOR]` with confs/h3ds/<N>_views, measured by the protocol of
H3DS (nsr/evaluation/h3ds.py; no landmarks). The column without a prior is always there. A prior that was made from a scene is
not used on it: `--leave-out pretrained=ict_000` says which. Prints two Markdown tables (means over the scenes of each group,
and each scene), and writes heads.json. A group are scenes whose names begin alike up to "_": heads of a morphable model and
scans of real heads are never averaged together.

Runs that exist in --out are not repeated, and those of another command or other code are refused. Nothing else should run on
the machine meanwhile: runs are as long as their budgets.
"""

from __future__ import annotations

import argparse
import platform
import statistics
from collections.abc import Sequence
from pathlib import Path

from reconstruction import cpu_name, reconstruct, run_main

from nsr.apps.options import seconds, whole_number
from nsr.evaluation.report import write_metrics
from nsr.utils.errors import DataError, UsageError

NONE = "no prior"
FIGURES = ("face_mm", "head_mm", "wall_seconds")


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("heads", type=Path, metavar="HEADS", help="folder of heads in H3DS layout, with config.toml")
    parser.add_argument("--scenes", nargs="+", default=[], metavar="NAME", help="of these heads (default all)")
    parser.add_argument(
        "--views", nargs="+", type=whole_number(1, "views"), default=[3, 4, 8, 16, 32], metavar="N", help="default 3 4 8 16 32"
    )
    parser.add_argument(
        "--prior", action="append", default=[], type=_named, metavar="NAME=PATH", help="a column; may be repeated"
    )
    parser.add_argument(
        "--leave-out",
        action="append",
        default=[],
        type=_named,
        metavar="NAME=SCENE",
        help="do not measure a prior on this scene",
    )
    parser.add_argument("--budget", type=seconds, default=60.0, metavar="SECONDS", help="of each run (default 60)")
    parser.add_argument(
        "--conf", default="h3ds/{views}_views", help="configuration, {views} for the number (default %(default)s)"
    )
    parser.add_argument("--seeds", nargs="+", type=whole_number(0, "a seed"), default=[0], metavar="N")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="where the runs go")
    parser.add_argument("--set", nargs="+", default=[], metavar="key=value", help="configuration values to change in all runs")
    return parser


def _named(text: str) -> tuple[str, str]:
    name, _, value = text.partition("=")
    if not name or not value or name == NONE:
        raise argparse.ArgumentTypeError(f"expected NAME=VALUE, got {text!r}")
    return name, value


def main() -> int:
    args = build_parser().parse_args()
    scenes = find_heads(args.heads, args.scenes)
    priors = {NONE: None, **dict(args.prior)}
    left_out = set(args.leave_out)
    for name, scene in left_out:
        if name not in priors or scene not in scenes:
            raise UsageError(f"--leave-out {name}={scene}: expected a --prior of {list(priors)[1:]} and a scene of {scenes}")
    runs = []
    for views in args.views:
        for scene in scenes:
            for name, path in priors.items():
                if (name, scene) in left_out:
                    continue
                for seed in args.seeds:
                    options = ["--views", str(views), "--conf", args.conf.format(views=views), "--mesh-only", *args.set]
                    options += ["--prior", path] if path else []
                    place = args.out / f"{views}_views" / name.replace(" ", "_")
                    metrics = reconstruct(str(args.heads / scene), args.budget, seed, place, options)
                    if "face_mm" not in metrics:
                        raise DataError(f"{place}: nsr reconstruct measured no face_mm; expected a scene in H3DS layout")
                    run = {"scene": scene, "views": views, "prior": name, "seed": seed}
                    runs.append({**run, **{figure: metrics.get(figure) for figure in FIGURES}, "steps": metrics["steps"]})
                    print(f"{scene}, {views} views, {name}: face {metrics['face_mm']:.2f} mm", flush=True)
    about = {"device": cpu_name(), "python": platform.python_version(), "budget": args.budget, "priors": priors}
    write_metrics(args.out / "heads.json", {"about": about, "runs": runs})
    print("\n" + markdown(runs, list(priors)))
    return 0


def find_heads(folder: Path, names: Sequence[str]) -> list[str]:
    """The scenes of a folder of heads that are named, or all of them. Raises DataError where one is missing."""
    known = sorted(path.parent.name for path in folder.glob("*/full_head.obj")) if folder.is_dir() else []
    if not known:
        raise DataError(f"{folder}: no heads; expected folders with full_head.obj, in H3DS layout (docs/heads.md)")
    if missing := [name for name in names if name not in known]:
        raise DataError(f"--scenes {missing[0]}: not in {folder}, which has {', '.join(known)}")
    return list(names) or known


def group_of(scene: str) -> str:
    """What a scene is averaged with: those whose names begin alike."""
    return scene.partition("_")[0]


def markdown(runs: Sequence[dict], priors: Sequence[str]) -> str:
    """Means over the scenes of each group and number of views, then every scene; face / head error in mm."""
    lines = []
    for title, key in (("mean over", lambda run: group_of(run["scene"])), ("scene", lambda run: run["scene"])):
        lines += [f"| {title} | views | {' | '.join(priors)} |", "|---|---|" + "---|" * len(priors)]
        rows = sorted({(key(run), run["views"]) for run in runs})
        for row in rows:
            cells = []
            for prior in priors:
                chosen = [run for run in runs if (key(run), run["views"], run["prior"]) == (*row, prior)]
                cells.append(cell(chosen))
            lines.append(f"| {row[0]} | {row[1]} | {' | '.join(cells)} |")
        lines.append("")
    slowest = max((run["wall_seconds"] for run in runs if run["wall_seconds"] is not None), default=None)
    if slowest is not None:
        lines.append(f"Face / head error in mm. The longest run took {slowest:.0f} s, from its start to the written mesh.")
    return "\n".join(lines)


def cell(runs: Sequence[dict]) -> str:
    """Means over runs, and over how many scenes where these are several."""
    if not runs:
        return "-"
    face, head = (statistics.fmean(run[figure] for run in runs) for figure in ("face_mm", "head_mm"))
    scenes = len({run["scene"] for run in runs})
    return f"{face:.2f} / {head:.2f}" + (f" ({scenes})" if scenes > 1 else "")


if __name__ == "__main__":
    run_main("heads.py", main)
