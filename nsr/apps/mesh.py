"""`nsr mesh`: the surface of a trained run as a triangle mesh in world units, coloured by its rendering network."""

from __future__ import annotations

import argparse
from pathlib import Path

EXAMPLES = """examples:
  nsr mesh runs/bust                                       writes runs/bust/mesh.ply
  nsr mesh exps/cup/2026_01_31_12_00_00 --resolution 512 --out cup.glb
  nsr mesh runs/bust/checkpoints/latest.safetensors --out bust.obj --no-color --all-components
  nsr mesh runs/bust --color-view mean                     colours as the training cameras saw them, on average"""


def build_parser(prog: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=prog, description=__doc__, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", metavar="RUN", type=Path, help="run folder, or a checkpoint file in one")
    parser.add_argument("--out", type=Path, metavar="FILE", help="a .ply, .obj or .glb file (default RUN/mesh.ply)")
    parser.add_argument("--resolution", type=int, default=512, help="marching-cubes cells per axis (default 512)")
    parser.add_argument("--all-components", action="store_true", help="keep every piece (default: the largest alone)")
    parser.add_argument("--no-color", dest="color", action="store_false", help="leave the vertices without colours")
    parser.add_argument(
        "--color-view",
        choices=("normal", "mean"),
        default="normal",
        help="see each vertex along its normal, or average over the training cameras that face it (default normal)",
    )
    parser.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1 (default cpu)")
    parser.set_defaults(run=run_mesh_app)
    return parser


def run_mesh_app(args: argparse.Namespace) -> None:
    from nsr.apps.options import check_resolution, check_suffix

    check_resolution(args.resolution)
    if args.out is not None:
        check_suffix(args.out, (".ply", ".obj", ".glb"))

    from nsr.geometry.meshes import save_mesh
    from nsr.training.launch import check_device
    from nsr.training.results import run_mesh
    from nsr.training.run import load_run

    run = load_run(args.folder, check_device(args.device))
    mesh = run_mesh(
        run.model,
        run.world_from_scene,
        resolution=args.resolution,
        all_components=args.all_components,
        color=args.color,
        color_view=args.color_view,
        cameras=run.cameras,
    )
    out = args.out or run.folder / "mesh.ply"
    save_mesh(mesh, out)
    low, high = mesh.bounds
    size = " x ".join(f"{side:.4g}" for side in high - low)
    print(f"{out}: {len(mesh.vertices)} vertices, {len(mesh.faces)} triangles, {size} world units")
