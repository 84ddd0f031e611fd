"""`nsr reconstruct`: from posed photographs, masked or not, to a mesh, pictures and figures, in one command."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path

from nsr.apps.options import (
    TRAIN_CAMERAS,
    add_device,
    add_prior,
    add_resolution,
    add_sphere,
    add_unseen_options,
    check_folder,
    check_resolution,
    seconds,
    the_sphere,
    whole_number,
)
from nsr.utils.errors import ConfigError, DataError, UsageError

EXAMPLES = """examples:
  nsr reconstruct bust --budget 60                         the built-in scene, scored against its exact geometry
  nsr reconstruct photos/cup --out results/cup             a scene folder (IDR, NeuS or H3DS layout)
  nsr reconstruct data/DTU/scan65 --budget 300 --holdout 8 keep eight views to measure the rendering with
  nsr reconstruct photos/cup --views 0,4,8-12 --gt cup.ply few views, scored against a mesh in world units
  nsr reconstruct data/H3DS/HEAD --views 3                 its published three views, face and head scored in mm
  nsr reconstruct photos/relief --unseen trim              leave the back open, which no photograph shows
  nsr reconstruct photos/cup --sphere 0 0 90 60            no masks: what lies in this sphere (world units) is the object
  nsr reconstruct bust --encoder vanilla                   the same recipe with another encoder

DIR receives mesh.ply and mesh.glb (world units), preview.png, turntable.png, report.html, metrics.json, and the run itself
(runconf.conf, metrics.csv, checkpoints/, and estimated_masks/ where the scene has no masks), which nsr mesh, render, eval and
train --is_continue read. A run that was interrupted (exit code 75) is continued by the same command; results of an
earlier one are kept unless --overwrite."""


def build_parser(prog: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=prog, description=__doc__, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", metavar="DATA", help="scene folder, or the name of a built-in scene (bust, dents)")
    parser.add_argument("--out", type=Path, metavar="DIR", help="where results go (default runs/<scene>)")
    parser.add_argument("--overwrite", action="store_true", help="remove the results of an earlier run in DIR")
    parser.add_argument("--budget", type=seconds, metavar="SECONDS", help="training time (default: the configuration's, 60)")
    parser.add_argument("--encoder", metavar="NAME", help="use confs/encoders/NAME/instant.conf")
    parser.add_argument("--conf", help="use this configuration instead (default instant)")
    parser.add_argument(
        "--views",
        metavar="N|LIST",
        help="which views to use, or how many: those H3DS publishes, else evenly spread (default all)",
    )
    parser.add_argument(
        "--holdout", type=whole_number(0, "views"), default=0, metavar="K", help="views kept from training to measure PSNR on"
    )
    parser.add_argument("--gt", type=Path, metavar="MESH", help="ground-truth mesh in world units (default: the scene's own)")
    parser.add_argument(
        "--seed", type=whole_number(0, "a seed"), default=0, metavar="N", help="seed of every random draw (default 0)"
    )
    add_resolution(parser)
    add_unseen_options(parser)
    parser.add_argument("--train_cameras", action="store_true", help=TRAIN_CAMERAS)
    add_sphere(parser)
    add_prior(parser)
    add_device(parser)
    parser.add_argument(
        "--mesh-only", action="store_true", help="no renderings and their figures: large networks take minutes for each"
    )
    parser.add_argument("--no-check", action="store_true", help="train even where `nsr data check` finds errors")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="configuration values to change")
    parser.set_defaults(run=run_reconstruct)
    return parser


def run_reconstruct(args: argparse.Namespace) -> int:
    out = args.out or Path("runs") / Path(args.data).resolve().name
    check_folder(out, "--out")
    check_resolution(args.resolution)
    if args.gt is not None and not args.gt.is_file():
        raise DataError(f"--gt {args.gt}: no such file; expected a mesh in world units (.ply, .obj, .stl)")

    from nsr.training.launch import RunRequest
    from nsr.training.pipeline import RESULTS, reconstruct

    request = RunRequest(
        data=args.data,
        conf=choose_conf(args.conf, args.encoder),
        overrides=tuple(args.overrides),
        views=args.views,
        holdout=args.holdout,
        budget=args.budget,
        train_cameras=args.train_cameras,
        seed=args.seed,
        device=args.device,
        sphere=the_sphere(args.sphere),
        prior=args.prior,
    )
    metrics = reconstruct(
        request,
        out,
        ground_truth=args.gt,
        resolution=args.resolution,
        unseen=args.unseen,
        min_views=args.min_views,
        check=not args.no_check,
        overwrite=args.overwrite,
        renderings=not args.mesh_only,
        say=print,
    )
    print_figures(metrics)
    for name, what in RESULTS.items():
        if (out / name).is_file():
            print(f"{what:10} {out / name}")
    return 0


def print_figures(metrics: Mapping, indent: str = "  ") -> None:
    for name, value in metrics.items():
        if isinstance(value, Mapping):
            print(f"{indent}{name}")
            print_figures(value, indent + "  ")
        else:
            print(f"{indent}{name:24} {value:.4g}" if isinstance(value, float) else f"{indent}{name:24} {value}")


def choose_conf(conf: str | None, encoder: str | None) -> str:
    """The configuration's name from --conf or --encoder. Raises UsageError for both, ConfigError for an unknown encoder."""
    if encoder is None:
        return conf or "instant"
    if conf is not None:
        raise UsageError("--encoder and --conf exclude each other: --encoder NAME stands for --conf encoders/NAME/instant")
    from nsr.config import find_conf

    try:
        find_conf(f"encoders/{encoder}/instant")
    except ConfigError as error:
        raise ConfigError(f"--encoder {encoder}: unknown encoder: {error}") from error
    return f"encoders/{encoder}/instant"
