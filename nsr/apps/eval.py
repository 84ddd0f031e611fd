"""`nsr eval`: how good a run is: its renderings, its cameras, its distance to a known mesh. Writes metrics.json.

Heads of H3DS, also as mesh files, are measured as the data set does: see nsr.apps.eval_h3ds.
"""

from __future__ import annotations

import argparse
import json
import re
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from nsr.apps import eval_h3ds
from nsr.apps.options import add_device, add_resolution, check_resolution, check_suffix, whole_number
from nsr.utils.errors import DataError, UsageError

if TYPE_CHECKING:
    from trimesh import Trimesh

    from nsr.training.run import Run
    from nsr.types import Scene

EXAMPLES = """examples:
  nsr eval runs/bust                                       all that the run's data allow
  nsr eval runs/bust --eval_rendering --views 0,5,9
  nsr eval exps/scan65/2026_01_31_12_00_00 --eval_cameras --reference data/DTU/scan65
  nsr eval runs/cup --gt cup_scan.ply --resolution 512 --out cup.json
  nsr eval exps/scan65/2026_01_31_12_00_00 --dtu_gt data/DTU_reference
  nsr eval runs/1b2a8613401e42a8 --h3ds                    a head in mm, against the scan of its scene
  nsr eval head.ply --h3ds --reference data/H3DS/1b2a8613401e42a8 --landmarks head_landmarks.txt

Renderings: PSNR, SSIM (LPIPS when installed) inside the photograph's mask, and IoU of silhouettes; by default over the
held-out views, or the training views when none was held out. Runs that learned the exposures of their photographs
(exposure.type=affine) also have psnr_affine: PSNR after the affine map of colours that fits each measured photograph best.
Cameras: rotation and translation errors after the best
similarity. Mesh: 100k area-weighted samples per surface, exact point-to-triangle distances, no alignment to the mesh, in
percent of the object radius; over the surface that two training views see, and over all of it (_all).
DTU: the data set's own protocol against its scans, in mm (nsr/evaluation/dtu.py states it).
H3DS: that data set's protocol (nsr/evaluation/h3ds.py): face_mm and head_mm, and what else docs/heads.md explains; beside FILE
h3ds_head.ply and h3ds_face.ply, the scan coloured by its distance to the mesh (property error_mm), and h3ds.png, with what the
colours mean. The scan is that of the run's scene, or of --reference, which then is about cameras only with --eval_cameras.
After --train_cameras renderings and mesh are first aligned by the similarity that carries the refined training cameras onto
the scene's ("aligned" in metrics.json says so).
An option that is about one of the five measures that one, and those that others are about; --mesh-only all but
renderings.
Figures in an existing metrics.json that are not measured again are kept when they are of the same checkpoint."""

# What each measurement may have written; a new one leaves nothing of an earlier one.
RENDERING = re.compile(r"psnr|samples_per_pixel|psnr_affine|ssim|lpips|iou|psnr_views|per_view")
CAMERAS = re.compile(r"(rotation|translation)_error_.*|alignment_scale")
MESH = re.compile(
    r"((chamfer|accuracy|completeness|median)_percent|chamfer_world|f_score_1percent|normal_consistency)(_all)?"
    "|object_radius_world|seen_percent|trimmed"
)
DTU = re.compile(r"dtu_.*")


def build_parser(prog: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=prog, description=__doc__, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", metavar="RUN", type=Path, help="run folder, or a checkpoint file in one; or a mesh (--h3ds)")
    parser.add_argument("--eval_rendering", action="store_true", help="compare renderings with photographs")
    parser.add_argument("--views", metavar="N|LIST", help="views to render: how many, or which, such as 0,3,5-9")
    parser.add_argument(
        "--samples",
        type=whole_number(1, "rays"),
        metavar="N",
        help="renderings with N x N rays per pixel, whose colour is the mean over those that hit (default 2)",
    )
    parser.add_argument("--eval_cameras", action="store_true", help="compare the trained cameras with the scene's")
    parser.add_argument(
        "--reference", metavar="SCENE", help="scene with the true cameras, or with --h3ds the scan (default: the run's own)"
    )
    parser.add_argument("--gt", type=Path, metavar="MESH", help="true mesh, in world units")
    parser.add_argument("--dtu_gt", type=Path, metavar="DIR", help="measure as DTU does: folder of its Points/ and ObsMask/")
    parser.add_argument(
        "--dtu_scan", type=whole_number(1, "a scan"), metavar="N", help="which scan (default: as the scene says)"
    )
    eval_h3ds.add_options(parser)
    parser.add_argument(
        "--mesh-only", action="store_true", help="no renderings and their figures: large networks take minutes for each"
    )
    add_resolution(parser)
    parser.add_argument("--out", type=Path, metavar="FILE", help="where to write (default RUN/metrics.json)")
    add_device(parser)
    parser.set_defaults(run=run_eval)
    return parser


def run_eval(args: argparse.Namespace) -> None:
    _check_options(args)
    if eval_h3ds.is_mesh(args.folder):
        eval_h3ds.eval_mesh_file(args)
        return

    from nsr.datasets.h3ds import is_h3ds_scene
    from nsr.training.launch import check_device
    from nsr.training.run import load_run

    run = load_run(args.folder, check_device(args.device))
    out = args.out or run.folder / "metrics.json"
    earlier = _read_json(out)
    scene = run.load_scene()
    # Without a choice: everything for which the run's data have something to compare with.
    of_renderings = args.eval_rendering or args.views or args.samples
    of_cameras = args.eval_cameras or (args.reference and not args.h3ds)
    everything = not (of_renderings or of_cameras or args.gt or args.dtu_gt or args.h3ds)
    of_head = args.h3ds or (everything and is_h3ds_scene(scene.source))
    if of_head:  # before what takes longer
        marked = partial(eval_h3ds.marked_mesh, run.folder, args.landmarks)
        truth = eval_h3ds.Truth.read((args.h3ds and args.reference) or scene.source, args.landmarks, marked)
    measured: dict = {}
    replaced: list[re.Pattern] = []
    if of_renderings or (everything and not args.mesh_only):
        measured |= rendering_metrics(run, scene, args.views, args.samples or 2)
        replaced.append(RENDERING)
    if of_cameras:
        measured |= camera_metrics(run, scene, args.reference)
        replaced.append(CAMERAS)
    mesh_file = args.gt or (scene.ground_truth if everything else None)
    if mesh_file is not None or args.dtu_gt is not None or of_head:
        mesh = run_shape(run, scene, args.resolution)
    if mesh_file is not None:
        measured |= mesh_metrics(run, scene, mesh, Path(mesh_file))
        replaced.append(MESH)
    if args.dtu_gt is not None:
        measured |= dtu_metrics(scene, mesh, args.dtu_gt, args.dtu_scan)
        replaced.append(DTU)
    if of_head:
        measured |= truth.measure(mesh, out)
        replaced.append(eval_h3ds.FIGURES)

    from nsr.evaluation.report import write_metrics
    from nsr.training.results import run_figures

    kept = {name: value for name, value in earlier.items() if not any(kind.fullmatch(name) for kind in replaced)}
    if earlier.get("checkpoint") != run.checkpoint:
        if kept:
            print(f"{out}: dropped what was not measured on this checkpoint: {', '.join(kept)}")
        kept = {}
    write_metrics(out, {**kept, **run_figures(run), **measured})
    for name, value in measured.items():
        if not isinstance(value, dict):
            print(f"{name:<24} {value:.5g}" if isinstance(value, float) else f"{name:<24} {value}")
    print(out)


def _check_options(args: argparse.Namespace) -> None:
    """Raises UsageError for options that do not go together, DataError for files that are not there."""
    check_resolution(args.resolution)
    if args.out is not None:
        check_suffix(args.out, (".json",))
    if args.mesh_only and (args.eval_rendering or args.views or args.samples):
        raise UsageError(
            "--mesh-only: leaves out what --eval_rendering, --views and --samples are about; give one or the other"
        )
    if args.gt is not None and not args.gt.is_file():
        raise DataError(f"--gt {args.gt}: no such file; expected a mesh in world units (.ply, .obj, .stl)")
    if args.dtu_scan is not None and args.dtu_gt is None:
        raise UsageError("--dtu_scan: expected --dtu_gt DIR beside it, the folder of the data set's scans")

    eval_h3ds.check_options(args)


def rendering_metrics(run: Run, scene: Scene, views: str | None, samples: int) -> dict:
    """PSNR, SSIM and IoU over the views asked for, else the held-out ones, else the training ones; samples: see render_view."""
    from nsr.datasets.detect import parse_views
    from nsr.training.results import evaluate_rendering, refined_scene

    chosen = parse_views(views, len(scene)) if views else run.holdout_views or run.train_views
    unseen = not set(chosen) & set(run.train_views)
    views_shown = refined_scene(run, scene).select(chosen)
    scores = evaluate_rendering(run.model, views_shown, per_view=True, affine=run.exposure is not None, samples=samples)
    measured_on = "held out" if unseen else "training" if not views else f"views {views}"
    return {**scores, "samples_per_pixel": samples**2, "psnr_views": measured_on}


def camera_metrics(run: Run, scene: Scene, reference: str | None) -> dict:
    """Errors of the trained cameras against those of the reference scene, both in the world frame."""
    from nsr.datasets.detect import load_scene
    from nsr.evaluation.poses import evaluate_cameras
    from nsr.geometry.poses import transform_cameras
    from nsr.training.run import reference_cameras

    true_scene = load_scene(reference) if reference else scene
    if len(true_scene) != len(scene):
        raise DataError(f"--reference {reference}: expected the {len(scene)} views of {run.data_dir}, found {len(true_scene)}")
    estimated = transform_cameras(run.cameras.to("cpu"), scene.world_from_scene)
    return evaluate_cameras(estimated, reference_cameras(true_scene)[run.train_views])


def run_shape(run: Run, scene: Scene, resolution: int) -> Trimesh:
    """The run's mesh in world units, without colours."""
    from nsr.training.results import run_mesh, trusted_masks

    views = {"cameras": run.cameras, "masks": trusted_masks(run, scene)}
    return run_mesh(run.model, run.world_from_scene, resolution=resolution, color=False, **views)


def mesh_metrics(run: Run, scene: Scene, mesh: Trimesh, mesh_file: Path) -> dict:
    """Distances between the run's mesh and the true one, seen by the training cameras."""
    from nsr.evaluation.chamfer import evaluate_mesh
    from nsr.geometry.meshes import load_mesh
    from nsr.training.run import reference_cameras

    return evaluate_mesh(mesh, load_mesh(mesh_file), reference_cameras(scene)[run.train_views], seed=0)


def dtu_metrics(scene: Scene, mesh: Trimesh, folder: Path, scan: int | None) -> dict:
    """Distances between a mesh and DTU's scan of the scene's number, or of the one given, by the data set's protocol."""
    from nsr.evaluation.dtu import evaluate_dtu, load_dtu_reference, scan_number

    return evaluate_dtu(mesh, load_dtu_reference(folder, scan_number(scene.name) if scan is None else scan))


def _read_json(path: Path) -> dict:
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise DataError(f"{path}: not JSON ({error}); remove it or choose another --out") from error
    if not isinstance(content, dict):
        raise DataError(f"{path}: expected a JSON object, got a {type(content).__name__}; choose another --out")
    return content
