"""`nsr transfer`: the surface of one run in the colours of another, seen along a closed path around it."""

from __future__ import annotations

import argparse
import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING

from nsr.apps.options import (
    add_device,
    add_resolution,
    check_folder,
    check_resolution,
    full_run_name,
    is_run,
    newest_run,
    run_name,
    whole_number,
)
from nsr.apps.render import add_pictures, check_pictures, remove_frames, render_frames, write_animation, write_png
from nsr.apps.train import experiment_name
from nsr.training.experiments import VARIANTS, experiment_folder, variant_of
from nsr.utils.errors import CheckpointError, UsageError

if TYPE_CHECKING:
    from nsr.training.run import Run
    from nsr.types import Cameras

EXAMPLES = """examples:
  nsr transfer --geometry_id runs/bust --appearance_id runs/dents
  nsr transfer --geometry_id 65 --appearance_id 106 --exp idr        exps/idr_65 and exps/idr_106, the newest run of each
  nsr transfer --geometry_id 65 --appearance_id 106 --conf transfer  exps/transfer_65 and exps/transfer_106
  nsr transfer --geometry_id runs/a --appearance_id runs/b --frames 120 --scale 0.5 --mesh --out a_like_b

Written: frames/0000.png ..., transfer.gif (and transfer.mp4 where the extra `video` is installed), sheet.png with surface and
colours of both runs and what became of them, transfer.json with what it was made from; with --mesh also mesh.ply. The cameras
are those of `nsr render --orbit N` for the run of the surface. docs/transfer.md says what the colours mean."""


def build_parser(prog: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=prog, description=__doc__, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--geometry_id", required=True, metavar="A",
        help="run whose surface it is: run folder, checkpoint file, folder of an experiment (its newest run), or a scan ID",
    )  # fmt: skip
    parser.add_argument("--appearance_id", required=True, metavar="B", help="run whose colours it gets, likewise")
    parser.add_argument("--exp", metavar="NAME", help="of scan IDs: what nsr train had as --expname, nsr failsafe as --exp")
    parser.add_argument("--conf", help="of scan IDs: the configuration that the runs were trained with (default instant)")
    parser.add_argument("--exps_folder", default="exps", type=Path, help="where experiments are kept (default exps)")
    parser.add_argument(
        "--frames", type=whole_number(1, "views"), default=60, metavar="N", help="views on the path (default 60)"
    )
    parser.add_argument(
        "--sheet", type=whole_number(1, "views"), default=4, metavar="N", help="of them in sheet.png (default 4)"
    )
    parser.add_argument("--out", type=Path, metavar="DIR", help="folder to write to (default A/transfer/B)")
    add_pictures(parser)
    parser.add_argument("--mesh", action="store_true", help="write the recoloured mesh as well")
    add_resolution(parser)
    add_device(parser)
    parser.set_defaults(run=run_transfer)
    return parser


def run_transfer(args: argparse.Namespace) -> None:
    check_pictures(args)
    check_resolution(args.resolution)
    if args.out is not None:
        check_folder(args.out, "--out")
    places = {
        option: find_run(getattr(args, option), f"--{option}", args.exp, args.conf, args.exps_folder)
        for option in ("geometry_id", "appearance_id")
    }

    from nsr.geometry.camera_paths import orbit_cameras
    from nsr.training.launch import check_device
    from nsr.training.run import load_run
    from nsr.training.transfer import transfer_appearance

    device = check_device(args.device)
    geometry, appearance = (load_run(place, device) for place in places.values())
    run = transfer_appearance(geometry, appearance)
    out = args.out or geometry.folder / "transfer" / full_run_name(appearance.folder)
    cameras = orbit_cameras(geometry.cameras, args.frames)
    columns = {f"A: {run_name(geometry.folder)}": geometry, f"B: {run_name(appearance.folder)}": appearance, "A like B": run}
    write_sheet(out / "sheet.png", columns, cameras, args)
    frames = []
    for i, frame in enumerate(render_frames(run, cameras, args.scale, args.samples)):
        write_png(out / "frames" / f"{i:04d}.png", frame)
        frames.append(frame)
    remove_frames(out / "frames", len(frames))
    write_animations(out, frames, args.fps)
    if args.mesh:
        write_mesh(out / "mesh.ply", run, args.resolution)
    write_record(out / "transfer.json", geometry, appearance, args)
    print(f"{out}: surface of {geometry.folder}, colours of {appearance.folder}, {len(cameras)} views")


def find_run(name: str, option: str, exp: str | None, conf: str | None, experiments: Path) -> Path:
    """The run that an option's value means: itself where it is one, else the newest run of a scan's experiment, which nsr train
    names EXPNAME_SCAN or CONF_SCAN, and nsr failsafe EXP_CONF_SCAN."""
    path = Path(name)
    if path.is_file() or is_run(path):
        return path
    named = [experiment_name(exp, conf, None, name)]
    if exp is not None:
        variants = VARIANTS if conf is None else {variant_of(Path(conf).stem, trained) for trained in (False, True)}
        named += [experiment_folder(exp, variant, trained, name) for variant in sorted(variants) for trained in (False, True)]
    found = [experiments / experiment for experiment in dict.fromkeys(named) if (experiments / experiment).is_dir()]
    if len(found) > 1:
        raise UsageError(
            f"{option} {name}: several experiments fit, {', '.join(folder.name for folder in found)}; choose one with "
            "--conf, or give its folder"
        )
    if not found and path.is_dir():
        return newest_run(path)
    if not found:
        raise CheckpointError(
            f"{option} {name}: no such run; expected a run folder, or a scan with an experiment {experiments / named[0]}"
            f"{f' or {exp}_VARIANT_{name} beside it' if exp else ''}; give --exp or --conf as in training, and --exps_folder"
        )
    return newest_run(found[0])


def write_sheet(path: Path, runs: dict[str, Run], cameras: Cameras, args: argparse.Namespace) -> None:
    """A few of the views: a row for each, a column for each run."""
    from nsr.evaluation.report import preview_picture

    count = min(args.sheet, len(cameras))
    chosen = cameras[[i * len(cameras) // count for i in range(count)]]
    pictures = zip(*(render_frames(run, chosen, args.scale, args.samples) for run in runs.values()), strict=True)
    preview_picture(path, [("", row) for row in pictures], columns=list(runs))


def write_animations(out: Path, frames: list, fps: float) -> None:
    write_animation(out / "transfer.gif", frames, fps)
    if importlib.util.find_spec("imageio_ffmpeg") is not None:
        write_animation(out / "transfer.mp4", frames, fps)
    else:
        (out / "transfer.mp4").unlink(missing_ok=True)  # of an earlier transfer
        print("no transfer.mp4, which needs imageio-ffmpeg: pip install 'nsr[video]'")


def write_mesh(path: Path, run: Run, resolution: int) -> None:
    """The surface in world units, its vertices in the colours of the rendering network."""
    from nsr.apps.mesh import training_masks
    from nsr.geometry.meshes import save_mesh
    from nsr.training.results import run_mesh

    views = {"cameras": run.cameras, "masks": training_masks(run)}
    save_mesh(run_mesh(run.model, run.world_from_scene, resolution=resolution, **views), path)


def write_record(path: Path, geometry: Run, appearance: Run, args: argparse.Namespace) -> None:
    from nsr.evaluation.report import write_metrics

    runs = {"geometry": geometry, "appearance": appearance}
    sources = {
        name: {"run": str(run.folder.resolve()), "data": run.data_dir, "checkpoint": run.checkpoint, "steps": run.step}
        for name, run in runs.items()
    }
    write_metrics(path, {**sources, "frames": args.frames, "scale": args.scale, "samples": args.samples})
