"""`nsr render`: pictures of a trained run: its views, or new ones along a smooth path, an orbit or a turntable."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from nsr.apps.options import add_device
from nsr.utils.errors import ExtensionError, UsageError

if TYPE_CHECKING:
    import numpy as np

    from nsr.training.run import Run
    from nsr.types import Cameras

EXAMPLES = """examples:
  nsr render runs/bust                                     all training views, to RUN/renders/*.png
  nsr render runs/bust --views 0,5,9 --what rgb normal     some views of the scene, colour beside normals
  nsr render runs/cup --own_exposure                       each training view in the exposure of its photograph
  nsr render runs/bust --turntable 60 --out bust.gif --scale 0.5
  nsr render runs/bust --spline 120 --out flight.mp4       a flight along the training cameras
  nsr render runs/bust --orbit 60 --out orbit.gif          one calm round where the training cameras have been

Views that were trained on are rendered from where training has put their cameras, others from the scene's cameras; after
--train_cameras these are first aligned to the refined ones, by the similarity of the training cameras."""

ANIMATIONS = (".gif", ".mp4")
NEW_VIEWS = ("spline", "orbit", "turntable")  # options, and functions NAME_cameras of nsr.geometry.camera_paths


def build_parser(prog: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=prog, description=__doc__, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", metavar="RUN", type=Path, help="run folder, or a checkpoint file in one")
    path = parser.add_mutually_exclusive_group()
    path.add_argument("--views", metavar="N|LIST", help="views of the scene: how many, or which, such as 0,3,5-9")
    path.add_argument("--spline", type=int, metavar="N", help="N new views along a smooth path by the training cameras")
    path.add_argument(
        "--orbit", type=int, metavar="N",
        help="N new views on one round: a full circle where the training cameras stand all round, else an ellipse among them",
    )  # fmt: skip
    path.add_argument("--turntable", type=int, metavar="N", help="N new views on a circle around the object")
    parser.add_argument("--out", type=Path, help="a .gif or .mp4 file, or a folder for numbered PNGs (default RUN/renders)")
    add_pictures(parser)
    parser.add_argument(
        "--what", nargs="+", choices=("rgb", "normal"), default=["rgb"], help="what to show, side by side (default rgb)"
    )
    parser.add_argument(
        "--own_exposure", action="store_true",
        help="colours as each training photograph has them, where training has learned that (exposure.type=affine), instead of "
        "those of an average photograph, which all other views have",
    )  # fmt: skip
    add_device(parser)
    parser.set_defaults(run=run_render)
    return parser


def add_pictures(parser: argparse.ArgumentParser) -> None:
    """Size, quality and speed of rendered pictures; see check_pictures."""
    parser.add_argument("--scale", type=float, default=1.0, help="picture size relative to the photographs (default 1)")
    parser.add_argument(
        "--samples", type=int, default=2, metavar="N", help="N x N rays per pixel, of which it shows the mean (default 2)"
    )
    parser.add_argument("--fps", type=float, default=15.0, help="pictures per second of an animation (default 15)")


def check_pictures(args: argparse.Namespace) -> None:
    check_quality(args.scale, args.samples)
    if not 0.1 <= args.fps <= 120:
        raise UsageError(f"--fps {args.fps}: expected 0.1 to 120 pictures per second")


def check_quality(scale: float, samples: int) -> None:
    if not 0.01 <= scale <= 16:
        raise UsageError(f"--scale {scale}: expected 0.01 to 16")
    if not 1 <= samples <= 8:
        raise UsageError(f"--samples {samples}: expected 1 to 8 rays per side of a pixel")


def run_render(args: argparse.Namespace) -> None:
    from nsr.apps.options import check_suffix

    check_pictures(args)
    if (new := new_views(args)) is not None and new[1] < 1:
        raise UsageError(f"--{new[0]} {new[1]}: expected at least one view")
    if args.out is not None and args.out.suffix:
        check_suffix(args.out, ANIMATIONS)
    if args.out is not None and args.out.suffix.lower() == ".mp4":
        require_ffmpeg()

    from nsr.training.launch import check_device
    from nsr.training.run import load_run

    run = load_run(args.folder, check_device(args.device))
    if args.own_exposure:
        _check_own_exposure(run, args)
    cameras, names, views = choose_cameras(run, args)
    out = args.out or run.folder / "renders"
    exposed = views if args.own_exposure else ()
    frames = render_frames(run, cameras, args.scale, args.samples, args.what, exposed)
    if out.suffix:
        write_animation(out, list(frames), args.fps)
        print(f"{out}: {len(cameras)} views")
    else:
        for name, frame in zip(names, frames, strict=True):
            write_png(out / f"{name}.png", frame)
        if new is not None:
            remove_frames(out, len(cameras))
        print(f"{out}: {len(cameras)} pictures")


def remove_frames(folder: Path, count: int) -> None:
    """Those of a longer path that an earlier command left behind the numbered pictures 0000.png, ... of this one."""
    for path in folder.glob("[0-9][0-9][0-9][0-9].png"):
        if int(path.stem) >= count:
            path.unlink()


def _check_own_exposure(run: Run, args: argparse.Namespace) -> None:
    if (new := new_views(args)) is not None:
        raise UsageError(f"--own_exposure: new views have no photograph; leave it out, or --{new[0]}")
    if run.exposure is None:
        raise UsageError(
            f"--own_exposure: {run.folder} has learned no exposures; expected a run trained with exposure.type=affine, got "
            "exposure.type=none; leave the option out or train again"
        )


def choose_cameras(run: Run, args: argparse.Namespace) -> tuple[Cameras, list[str], list[int]]:
    """The scene-frame cameras that the options ask for, a file name for each, and which of the scene's views they are."""
    if (new := new_views(args)) is not None:
        from nsr.geometry import camera_paths

        path, count = new
        return getattr(camera_paths, f"{path}_cameras")(run.cameras, count), [f"{i:04d}" for i in range(count)], []
    if args.views is None:
        return run.cameras, [f"view_{view:04d}" for view in run.train_views], run.train_views

    from nsr.datasets.detect import parse_views
    from nsr.training.results import refined_scene

    scene = refined_scene(run, run.load_scene())
    views = parse_views(args.views, len(scene))
    return scene.cameras[views], [f"view_{view:04d}" for view in views], views


def new_views(args: argparse.Namespace) -> tuple[str, int] | None:
    """The path of new views that the options ask for, and how many; None where they are the scene's."""
    counts = {name: getattr(args, name) for name in NEW_VIEWS}
    return next(((name, count) for name, count in counts.items() if count is not None), None)


def render_frames(
    run: Run, cameras: Cameras, scale: float, samples: int, what: Sequence[str] = ("rgb",), exposed: Sequence[int] = ()
) -> Iterator[np.ndarray]:
    """One picture [H, W * panels, 3] uint8 per camera, with a bar on a terminal.

    scale, samples: see render_view; what: the panels, rgb or normal; exposed: the scene's views that the cameras are, where
    training views are to have the exposures of their photographs.
    """
    import torch
    from rich.console import Console
    from rich.progress import track

    from nsr.training.results import render_view

    console = Console(stderr=True)
    silent = not console.is_terminal
    for view in track(range(len(cameras)), "rendering", console=console, transient=True, disable=silent):
        shown = render_view(run.model, cameras, view, scale, samples=samples)
        rgb, hit = shown.rgb, shown.coverage > 0
        if exposed and exposed[view] in run.train_views:
            photograph = run.train_views.index(exposed[view])
            rgb[hit] = run.exposure(rgb[hit], torch.full_like(hit[hit], photograph, dtype=torch.long))
        panels = {"rgb": rgb, "normal": 0.5 + 0.5 * shown.normal}
        picture = torch.cat([shown.on_white(panels[name]) for name in what], dim=1)
        yield (picture.clamp(0, 1) * 255).round().to(torch.uint8).cpu().numpy()


def write_png(path: Path, picture: np.ndarray) -> None:
    from PIL import Image

    from nsr.utils.files import atomic_write

    with atomic_write(path, "wb") as file:
        Image.fromarray(picture).save(file, format="png")


def write_animation(path: Path, frames: list[np.ndarray], fps: float) -> None:
    """An endless GIF or an H.264 MP4, by the ending of the file name."""
    from nsr.utils.files import atomic_write

    with atomic_write(path, "wb") as file:
        if path.suffix.lower() == ".gif":
            from PIL import Image

            first, *rest = [Image.fromarray(frame) for frame in frames]
            first.save(file, format="gif", save_all=True, append_images=rest, duration=round(1000 / fps), loop=0)
        else:
            import imageio

            # The encoder wants even sides, and opens the (temporary) file by its name.
            even = [frame[: frame.shape[0] // 2 * 2, : frame.shape[1] // 2 * 2] for frame in frames]
            imageio.mimwrite(file.name, even, fps=fps, macro_block_size=2, quality=8)


def require_ffmpeg() -> None:
    try:
        import imageio_ffmpeg  # noqa: F401
    except ImportError as error:
        raise ExtensionError(
            "writing .mp4 needs imageio-ffmpeg: pip install 'nsr[video]', or choose a .gif or a folder"
        ) from error
