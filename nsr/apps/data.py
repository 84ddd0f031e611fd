"""`nsr data`: check a scene, estimate its masks, download the DTU scans, look through H3DS, write a built-in scene as files."""

from __future__ import annotations

import argparse
from pathlib import Path

from nsr.apps import data_h3ds
from nsr.apps.options import add_sphere, the_sphere

_RAW = argparse.RawDescriptionHelpFormatter


def build_parser(prog: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=prog,
        description="Check, mask, download, arrange and make scenes.",
        epilog=f"examples:\n  {prog} check photos/cup --out cup_check.png\n"
        f"  {prog} masks photos/cup --out photos/cup/mask\n  {prog} download dtu --out data\n"
        f"  {prog} h3ds data/H3DS\n  {prog} synthetic bust data/bust --views 24",
        formatter_class=_RAW,
    )
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    _add_check(commands)
    _add_masks(commands)
    _add_download(commands)
    data_h3ds.add_parser(commands)
    _add_synthetic(commands)
    return parser


def _add_check(commands) -> None:
    parser = commands.add_parser(
        "check",
        help="find what is wrong with a scene",
        description="Look for what makes a reconstruction fail: images, masks and cameras that do not belong together,\n"
        "wrong camera conventions, an object outside the unit sphere. Says how to mend it.\n"
        "Ends with 0 when the scene can be trained on, with 3 when there are errors.",
        epilog="examples:\n  nsr data check photos/cup\n  nsr data check photos/cup --out cup_check.png   also a picture of "
        "the visual hull\n  nsr data check data/DTU/scan65 --views 8",
        formatter_class=_RAW,
    )
    parser.add_argument("scene", metavar="DIR", help="scene folder (or bust, dents)")
    parser.add_argument("--out", metavar="PNG", type=Path, help="write the visual hull over the images here")
    parser.add_argument("--views", metavar="N|LIST", help="only these views: 8, or 0,3,5, or 0-20:2")
    parser.set_defaults(run=run_check)


def _add_masks(commands) -> None:
    parser = commands.add_parser(
        "masks",
        help="estimate the masks of a scene without any",
        description="Estimate silhouettes from the photographs and cameras alone, as `nsr reconstruct` does without masks,\n"
        "and write them as pictures to look at, to correct, and to use: what lies in the scene's sphere is the object.\n"
        "A scene that has masks is not changed; how far these agree with the estimate is printed.",
        epilog="examples:\n  nsr data masks photos/cup --out photos/cup/mask\n  nsr data masks photos/cup --out cup_masks "
        "--sphere 0 0 90 60   the object lies in this sphere (world units)",
        formatter_class=_RAW,
    )
    parser.add_argument("scene", metavar="DIR", help="scene folder (or bust, dents)")
    parser.add_argument("--out", metavar="DIR", type=Path, required=True, help="folder to write, one PNG per photograph")
    add_sphere(parser)
    parser.set_defaults(run=run_masks)


def _add_download(commands) -> None:
    from nsr.datasets.download import DTU_URL

    parser = commands.add_parser(
        "download",
        help="fetch public data",
        description="Fetch the 15 DTU scans in IDR layout (about 2 GB) from the address IDR's authors publish.\n"
        "An interrupted download continues when the same command is run again.",
        epilog="examples:\n  nsr data download dtu --out data\n  nsr data download dtu --url https://mirror/DTU.zip\n"
        "  nsr data download dtu --scan 24 65     unpack these scans only",
        formatter_class=_RAW,
    )
    parser.add_argument("name", choices=["dtu"], help="what to fetch")
    parser.add_argument("--out", metavar="DIR", type=Path, default=Path("data"), help="folder for DTU/ (default: data)")
    parser.add_argument("--url", default=DTU_URL, help="address of the archive (default: %(default)s)")
    parser.add_argument("--scan", metavar="ID", type=int, nargs="+", help="unpack only these scans (default: all 15)")
    parser.add_argument("--keep-zip", action="store_true", help="do not delete the archive afterwards")
    parser.set_defaults(run=run_download)


def _add_synthetic(commands) -> None:
    parser = commands.add_parser(
        "synthetic",
        help="write a built-in scene as files",
        description="Render a built-in scene from its exact geometry and write it in IDR layout, with mesh_gt.ply.",
        epilog="examples:\n  nsr data synthetic bust data/bust\n  nsr data synthetic dents data/dents --views 60 --width 800 "
        "--height 600 --arrangement around",
        formatter_class=_RAW,
    )
    parser.add_argument("name", choices=["bust", "dents"], help="which scene")
    parser.add_argument("out", metavar="DIR", type=Path, help="folder to write")
    parser.add_argument("--views", type=int, default=40, help="number of views (default: %(default)s)")
    parser.add_argument("--width", type=int, default=400, help="image width (default: %(default)s)")
    parser.add_argument("--height", type=int, default=300, help="image height (default: %(default)s)")
    parser.add_argument("--arrangement", choices=["frontal", "around"], default="frontal", help="where cameras stand")
    parser.add_argument(
        "--background", choices=["plain", "room"], default="plain", help="what is behind the object: grey, or a textured room"
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of texture, light and camera jitter")
    parser.set_defaults(run=run_synthetic)


def run_check(args: argparse.Namespace) -> int:
    from rich.console import Console
    from rich.markup import escape

    from nsr.datasets.check import check_scene
    from nsr.datasets.detect import load_scene, parse_views
    from nsr.utils.errors import DataError, UsageError

    scene = load_scene(args.scene)
    if args.views is not None:
        scene = scene.select(parse_views(args.views, len(scene)))
    findings = check_scene(scene)
    console = Console(highlight=False, soft_wrap=True)
    colours = {"error": "bold red", "warning": "yellow", "info": "dim"}
    for finding in findings:
        colour = colours[finding.level]
        console.print(f"[{colour}]{finding.level:>7}[/]  {escape(finding.message)}")
        if finding.advice:
            console.print(f"         [italic]-> {escape(finding.advice)}[/]")
    if args.out is not None and not scene.masked:
        raise UsageError(f"--out {args.out}: {args.scene} has no masks to draw a hull of; `nsr data masks` makes some")
    if args.out is not None:
        from nsr.datasets.hull_picture import hull_picture

        hull_picture(scene, args.out)
        console.print(f"picture  {escape(str(args.out))}")
    errors = sum(finding.level == "error" for finding in findings)
    warnings = sum(finding.level == "warning" for finding in findings)
    verdict = "[bold red]not ready[/]" if errors else "[green]ready to train[/]"
    console.print(f"{escape(scene.name)}: {errors} errors, {warnings} warnings: {verdict}")
    return DataError.exit_code if errors else 0


def run_masks(args: argparse.Namespace) -> int:
    from nsr.datasets.detect import load_scene
    from nsr.evaluation.images import silhouette_iou
    from nsr.training.estimated_masks import with_silhouettes, write_masks
    from nsr.training.launch import RunRequest, read_config
    from nsr.utils.errors import UsageError

    if args.out.exists() and (not args.out.is_dir() or any(args.out.iterdir())):
        raise UsageError(f"--out {args.out}: already exists and is not empty; name a new folder or remove it first")
    sphere = the_sphere(args.sphere)
    scene = load_scene(args.scene, sphere=sphere)
    masked = with_silhouettes(scene, args.scene, read_config(RunRequest(data=args.scene)).photometric, sphere=sphere)
    write_masks(masked, args.out)
    print(f"{args.out}: masks of {len(scene)} views; as {args.scene}/mask they are used instead of being estimated again")
    if scene.masked:
        overlaps = [silhouette_iou(*pair) for pair in zip(masked.masks.numpy(), scene.masks.numpy(), strict=True)]
        mean = sum(overlaps) / len(overlaps)
        print(f"overlap with the scene's own masks: {mean:.3f} on average, {min(overlaps):.3f} at least")
    return 0


def run_download(args: argparse.Namespace) -> int:
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    from nsr.datasets.download import DTU_SCANS, download_dtu
    from nsr.utils.errors import UsageError

    scans = tuple(args.scan) if args.scan else DTU_SCANS
    if unknown := sorted(set(scans) - set(DTU_SCANS)):
        raise UsageError(f"--scan {unknown[0]}: not one of IDR's DTU scans {', '.join(map(str, DTU_SCANS))}")
    columns = (TextColumn("DTU"), BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    console = Console(highlight=False, soft_wrap=True)
    with Progress(*columns, console=console) as bar:
        task = bar.add_task("DTU", total=None)
        folders = download_dtu(
            args.out,
            args.url,
            scans=scans,
            keep_zip=args.keep_zip,
            progress=lambda done, total: bar.update(task, completed=done, total=total),
        )
    console.print(f"{len(folders)} scans in {folders[0].parent}; for example: nsr reconstruct {folders[0]}")
    return 0


def run_synthetic(args: argparse.Namespace) -> int:
    from nsr.datasets.synthetic import make_scene, write_scene
    from nsr.utils.errors import UsageError

    for option, least in (("views", 1), ("width", 16), ("height", 16)):
        if getattr(args, option) < least:
            raise UsageError(f"--{option} {getattr(args, option)}: expected at least {least}")
    scene = make_scene(
        args.name,
        views=args.views,
        width=args.width,
        height=args.height,
        arrangement=args.arrangement,
        background=args.background,
        seed=args.seed,
    )
    write_scene(scene, args.out)
    print(f"{args.out}: {len(scene)} views of {args.name}; for example: nsr reconstruct {args.out}")
    return 0
