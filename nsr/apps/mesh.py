"""`nsr mesh`: the surface of a trained run as a triangle mesh in world units, coloured by its rendering network."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from nsr.apps.options import add_device, add_resolution, add_unseen_options, check_resolution, check_suffix
from nsr.utils.errors import DataError, UsageError

if TYPE_CHECKING:
    from torch import Tensor

    from nsr.training.run import Run

EXAMPLES = """examples:
  nsr mesh runs/bust                                       writes runs/bust/mesh.ply
  nsr mesh exps/cup/2026_01_31_12_00_00 --resolution 512 --out cup.glb
  nsr mesh runs/bust/checkpoints/latest.safetensors --out bust.obj --no-color --all-components
  nsr mesh runs/bust --color-view mean                     colours as the training cameras saw them, on average
  nsr mesh runs/bust --unseen mark --min-views 2           grey where fewer than two training views have seen it
  nsr mesh runs/bust --unseen trim --out open.ply          only what was seen

What a view sees: it lies in its image, faces the camera, and nothing of the mesh is in front of it; and, while the data are
where they were when the run began, the mask shows object there."""


def build_parser(prog: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=prog, description=__doc__, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", metavar="RUN", type=Path, help="run folder, or a checkpoint file in one")
    parser.add_argument("--out", type=Path, metavar="FILE", help="a .ply, .obj or .glb file (default RUN/mesh.ply)")
    add_resolution(parser, default=512)
    parser.add_argument(
        "--all-components",
        action="store_true",
        help="keep every piece (default: those that two views see and that are large or stand clear of the large ones)",
    )
    add_unseen_options(parser)
    parser.add_argument("--no-color", dest="color", action="store_false", help="leave the vertices without colours")
    parser.add_argument(
        "--color-view",
        choices=("normal", "mean"),
        default="normal",
        help="see each vertex along its normal, or average over the training cameras that face it (default normal)",
    )
    add_device(parser)
    parser.set_defaults(run=run_mesh_app)
    return parser


def run_mesh_app(args: argparse.Namespace) -> None:
    check_resolution(args.resolution)
    if args.out is not None:
        check_suffix(args.out, (".ply", ".obj", ".glb"))

    if args.unseen == "mark" and not args.color and args.out is not None and args.out.suffix.lower() != ".ply":
        raise UsageError(f"--unseen mark --no-color: only .ply can tell without colours what is seen, {args.out} cannot")

    from nsr.geometry.meshes import save_mesh
    from nsr.geometry.unseen import treat_unseen
    from nsr.training.launch import check_device
    from nsr.training.results import check_min_views, run_mesh, training_views
    from nsr.training.run import load_run

    run = load_run(args.folder, check_device(args.device))
    check_min_views(args.min_views, len(run.cameras), args.unseen)
    masks = None if args.all_components and args.unseen == "keep" else training_masks(run)
    mesh = run_mesh(
        run.model,
        run.world_from_scene,
        resolution=args.resolution,
        all_components=args.all_components,
        color=args.color,
        color_view=args.color_view,
        cameras=run.cameras,
        masks=masks,
    )
    mesh, figures = treat_unseen(mesh, training_views(run, masks), args.unseen, args.min_views)
    out = args.out or run.folder / "mesh.ply"
    save_mesh(mesh, out)
    low, high = mesh.bounds
    size = " x ".join(f"{side:.4g}" for side in high - low)
    print(f"{out}: {len(mesh.vertices)} vertices, {len(mesh.faces)} triangles, {size} world units")
    if figures:
        print(f"seen by {args.min_views} or more training views: {figures['seen_area_percent']:.1f} % of the whole surface")


def training_masks(run: Run) -> Tensor | None:
    """The masks of the training views, as training believed them; None, and a line that says so, when they are not where they
    were."""
    from nsr.training.results import trusted_masks

    try:
        return trusted_masks(run, run.load_scene())
    except DataError as error:
        print(f"without masks, by the cameras alone: {error}")
        return None
