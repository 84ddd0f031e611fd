"""What each part of the instant recipe is worth: the same run without it, part by part, as a table.

    python benchmarks/ablation.py bust dents --seeds 0 1 2 --epochs 12 --out /tmp/ablation
    python benchmarks/ablation.py bust dents --study filter-banks --epochs 8 --out /tmp/filter_banks

The second asks of the Neural Fourier Filter Bank what of it matters in front of a surface, beside the plain grid. Runs are
bounded by epochs, so that the machine's load does not matter; --budget SECONDS bounds them by time instead, where what a part
costs counts too (nothing else should run meanwhile). Each cell is the median over the seeds of the Chamfer distance in percent
(nsr/evaluation/chamfer.py states the protocol), or, of scenes without ground truth, of the PSNR in dB on views held out
(--holdout). Runs that exist in --out are not repeated; --only names the parts to run. Where runs fail the cell says how many,
and the exit status is 1.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from pathlib import Path

from reconstruction import FailedRun, cpu_name, reconstruct, run_main

FROM_COARSE = ["photometric.levels=0", "photometric.matched=0.5"]  # what a start that is far away needs

# part: the options that switch it off, or exchange it for what it replaced
RECIPE = {
    "everything": [],
    "start: hull, without stereo": ["start.type=hull", *FROM_COARSE],
    "start: sphere": ["start.type=sphere", "train.shape_rate=0.3", *FROM_COARSE],
    "no colour term": ["loss.rgb_weight=0"],
    "colour: IDR's weight": ["loss.rgb_weight=1"],
    "colour: L1": ["loss.rgb_quadratic_below=0"],
    "no mask term": ["loss.mask_weight=0"],
    "missing rays count once": ["loss.mask_missing_factor=1"],
    "no term for empty space": ["loss.free_weight=0"],
    "no eikonal term": ["loss.eikonal_weight=0"],
    "no smoothness": ["loss.smoothness_weight=0"],
    "no photometric term": ["loss.photometric_weight=0"],
    "photometric: 3 x 3 pixels": ["photometric.patches=[3]"],
    "photometric: 7 x 7 pixels": ["photometric.patches=[7]"],
    "photometric: coarse levels": FROM_COARSE,
    "photometric: occlusion traced": ["photometric.occlusion=true"],
    "all levels from the beginning": ["train.geometry_full_at=0", "train.appearance_full_at=0"],
    "shape at three times the rate": ["train.shape_rate=0.15"],
    "colours at a third of the rate": ["train.learning_rate=3e-3", "train.table_learning_rate=1e-2", "train.shape_rate=0.15"],
    "no stage of colours alone": ["train.color_from=1"],
    "no warm-up": ["train.warmup_steps=0"],
    "constant learning rate": ["train.lr_final=1"],
    "rays: none along outlines": ["sampling.outline_fraction=0"],
    "rays: a wide band": ["sampling.band_fraction=0.0625"],
    "rays: a third": ["sampling.rays=1024", "photometric.rays=512"],
    "masks: soft at first": ["loss.alpha=50", "loss.alpha_milestones=[0.125,0.25,0.375,0.5,0.625]"],
    "photometric: bare patches left out": ["photometric.min_std=0.01"],
    "tables of the colours: 2^17 to 512": [
        "model.rendering_network.point_encoder.hashgrid.log2_table_size=17",
        "model.rendering_network.point_encoder.hashgrid.max_resolution=614",
    ],
    "grid of the shape: 8 levels of 2^16": [
        "model.implicit_network.encoder.hashgrid.levels=8",
        "model.implicit_network.encoder.hashgrid.log2_table_size=16",
    ],
}


def _bank(encoder: str, values: dict[str, float]) -> list[str]:
    """The options of an encoder's instant configuration with other values: its own ones, or with dots of the recipe."""
    own = f"model.implicit_network.encoder.{encoder}."
    changes = [f"{name if '.' in name else own + name}={value:g}" for name, value in values.items()]
    return ["--conf", f"encoders/{encoder}/instant", *changes]


BANKS = (("NFFB", "nffb"), ("StylemodNFFB", "stylemod_nffb"))
# The values of a filter bank that its paper leaves to the task, other than in confs/encoders/*/encoder.conf.
OF_BANKS = {
    "as shipped": {},
    "the paper's frequencies": {"omega": 30, "sigma": 5, "sigma_growth": 1.2},
    "omega 5": {"omega": 5},
    "sigma 0.3": {"sigma": 0.3},
    "sigma 3": {"sigma": 3},
    "sigma grows by 1.6": {"sigma_growth": 1.6},
    "sigma does not grow": {"sigma_growth": 1},
    "features begin at 1e-2": {"init_scale": 1e-2},
    "10 levels of 4": {"width": 4},
    "8 levels of 16": {"levels": 8, "width": 16},
    "6 levels of 32": {"levels": 6, "width": 32},
    "all levels from the beginning": {"start_levels": 0},
    "tables at a third of the rate": {"train.table_learning_rate": 1e-2},
    "tables at twice the rate": {"train.table_learning_rate": 6e-2},
}
STUDIES = {
    "recipe": RECIPE,
    "filter-banks": {
        "hash grid": [],
        **{f"{name}: {part}": _bank(encoder, values) for name, encoder in BANKS for part, values in OF_BANKS.items()},
    },
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scenes", nargs="+", help="scene folders or built-in names")
    parser.add_argument("--epochs", type=int, default=12, metavar="N", help="passes over the views (default 12)")
    parser.add_argument("--budget", type=float, metavar="SECONDS", help="length of a run in seconds instead")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0], metavar="N")
    parser.add_argument("--study", choices=STUDIES, default="recipe", help="default %(default)s")
    parser.add_argument("--only", nargs="+", metavar="PART", help="of the study's parts, as its table names them")
    parser.add_argument("--out", type=Path, required=True, help="where the runs go")
    parser.add_argument("--holdout", type=int, metavar="N", help="views kept out of training, for scenes without ground truth")
    parser.add_argument("--options", default="", help="further options of nsr reconstruct, in one string")
    args = parser.parse_args()
    study = STUDIES[args.study]
    if unknown := set(args.only or ()) - set(study):
        parser.error(f"--only {', '.join(sorted(unknown))}: not a part of {args.study}; expected some of: {'; '.join(study)}")

    length = f"{args.budget:g} s" if args.budget else f"{args.epochs} epochs"
    print(f"{cpu_name()}, {length}, seeds {args.seeds}, options: {args.options or 'none'}\n")
    print("| part | " + " | ".join(Path(scene).name for scene in args.scenes) + " |")
    print("|---|" + "---|" * len(args.scenes))
    failed = 0
    for part in args.only or study:
        cells = []
        for scene in args.scenes:
            runs, errors = run_part(scene, part, study[part], args)
            for error in errors:
                print(error, file=sys.stderr)
            failed += len(errors)
            cells.append(cell(runs, len(errors)))
        print(f"| {part} | " + " | ".join(cells) + " |", flush=True)
    return 1 if failed else 0


def run_part(scene: str, part: str, changes: list[str], args: argparse.Namespace) -> tuple[list[dict], list[FailedRun]]:
    """The metrics of the seeds' runs with a part's changes, and the errors of those that failed."""
    overrides = list(changes)
    if args.budget is None:
        overrides += ["train.budget=0", f"train.nepoch={args.epochs}"]
    folder = args.out / part.replace(":", "").replace(",", "").replace(" ", "_")
    held = ["--holdout", str(args.holdout)] if args.holdout else []
    options = [*args.options.split(), *held, *overrides]
    runs, errors = [], []
    for seed in args.seeds:
        try:
            runs.append(reconstruct(scene, args.budget, seed, folder, options))
        except FailedRun as error:
            errors.append(error)
    return runs, errors


def cell(runs: list[dict], failed: int) -> str:
    """Median over the seeds, its range when there are several, and how many of them have none."""
    if runs and "chamfer_percent" in runs[0]:
        name, unit = "chamfer_percent", "%"
    else:
        name, unit = "psnr", "dB" if runs and runs[0].get("psnr_views") == "held out" else "dB, training views"
    # A surface that no two views see has no Chamfer distance, and with --mesh-only nothing has a PSNR.
    values = [run[name] for run in runs if run.get(name) is not None]
    shown = [f"{statistics.median(values):.4g} {unit}"] if values else []
    if len(values) > 1:
        shown.append(f"({min(values):.3g}-{max(values):.3g})")
    if without := len(runs) - len(values):
        shown.append(f"{without} without a figure")
    if failed:
        shown.append(f"{failed} failed")
    return " ".join(shown)


if __name__ == "__main__":
    run_main("ablation.py", main)
