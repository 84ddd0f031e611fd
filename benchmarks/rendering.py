"""How long a picture of a trained model takes: `python benchmarks/rendering.py RUN --device cuda --json FILE`.

One ray per pixel and one chunk; the median over pictures of the training views in turn. Nothing else should run meanwhile.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
from pathlib import Path

from nsr.utils.memory import keep_freed_memory
from nsr.utils.threads import set_thread_policy

set_thread_policy()  # before torch is imported
keep_freed_memory()

from floors import median_time  # noqa: E402

from nsr.training.launch import check_device  # noqa: E402
from nsr.training.results import render_view  # noqa: E402
from nsr.training.run import load_run  # noqa: E402
from nsr.utils.errors import NsrError  # noqa: E402


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, metavar="RUN")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--width", type=int, default=1600)
    parser.add_argument("--height", type=int, default=1200)
    parser.add_argument("--seconds", type=float, default=2.0, help="to measure for (default: %(default)s)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures here")
    args = parser.parse_args()
    try:
        run = load_run(args.folder, check_device(args.device))
    except NsrError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    cameras = run.cameras
    scale = max(args.width / cameras.width, args.height / cameras.height)
    views, hits = itertools.cycle(range(len(cameras))), []

    def render() -> None:
        shown = render_view(run.model, cameras, next(views), scale, samples=1, chunk=args.width * args.height * 2)
        hits.append(shown.silhouette.sum())

    figures = {
        "width": round(cameras.width * scale),
        "height": round(cameras.height * scale),
        "seconds": median_time(render, args.device, args.seconds),
        "rays_that_hit": int(hits[-1]),
    }
    print("{width}x{height}: {seconds:.4f} s, {rays_that_hit} rays hit".format(**figures))
    if args.json:
        args.json.write_text(json.dumps(figures) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
