"""`nsr data h3ds`: what there is of H3DS in a folder, and its view splits as folders in IDR's layout."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from nsr.apps.options import whole_number

if TYPE_CHECKING:
    from nsr.datasets.h3ds import H3ds, H3dsScene

EXAMPLES = """examples:
  nsr data h3ds data/H3DS                                  which scenes and view splits there are, and what is missing
  nsr data h3ds data/H3DS --out data/H3DS_idr              view3/scan0, view4/scan0, ... and scan_list.txt, in IDR's layout
  nsr data h3ds data/H3DS --views 3 --scenes 1b2a8613401e42a8 --out one
  nsr data h3ds heads --config heads.toml                  scenes and views from a configuration of your own

nsr reads the data set as it is: nsr reconstruct data/H3DS/1b2a8613401e42a8 --views 3. --out is for programs that do not.
Which views a split has is read from --config, else from config.toml in PATH, else from the installed h3ds package (pip install
--no-deps h3ds), by the version in PATH/version.txt. docs/heads.md says how access to the data is obtained."""


def add_parser(commands: argparse._SubParsersAction) -> None:
    parser = commands.add_parser(
        "h3ds",
        help="list the heads of H3DS and their view splits, or arrange them in IDR's layout",
        description="Look through a folder in the layout of H3DS: its scenes, their view splits, and what is missing of each.\n"
        "Ends with 0 when all of it is there, with 3 when something is missing.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("path", metavar="PATH", type=Path, help="the data set: version.txt, and one folder per head")
    parser.add_argument(
        "--views",
        type=whole_number(1, "views"),
        nargs="+",
        metavar="N",
        help="only these splits, by their number of views (default: all; with --out those of 3, 4, 8, 16 and 32)",
    )
    parser.add_argument("--config", type=Path, metavar="FILE", help="its scenes and views (default: see below)")
    parser.add_argument("--scenes", nargs="+", metavar="NAME", help="only these scenes (default: all of the configuration)")
    parser.add_argument("--out", type=Path, metavar="DIR", help="write view3/scan0, ... and scan_list.txt to this new folder")
    parser.set_defaults(run=run_h3ds)


def run_h3ds(args: argparse.Namespace) -> int:
    from nsr.datasets.h3ds import VIEW_COUNTS, H3ds
    from nsr.utils.errors import DataError

    data = H3ds.open(args.path, args.config)
    scenes = _chosen(data, args.scenes)
    if data.version is not None and data.config_version and data.version != data.config_version:
        print(f"warning: the data are of version {data.version}, {data.config} is for version {data.config_version}")
    missing = {scene.name: _missing(scene, args.views) for scene in scenes}
    if args.out is None:
        _print_table(data, scenes, args.views, missing)
    if broken := [name for name, what in missing.items() if what]:
        raise DataError(
            f"{data.root}: {len(broken)} of {len(scenes)} scenes are not whole; missing of {broken[0]}: "
            f"{', '.join(missing[broken[0]])}; get the data again, or leave out with --scenes what you do not need"
        )
    if args.out is not None:
        from nsr.datasets.h3ds_arrangement import SCAN_LIST, write_arrangement

        lines = write_arrangement(scenes, sorted(set(args.views or VIEW_COUNTS)), args.out)
        example = args.out / lines[0].split()[0]
        print(f"{args.out}: {len(lines)} scans, listed in {SCAN_LIST}; for example: nsr reconstruct {example}")
    return 0


def _print_table(data: H3ds, scenes: list[H3dsScene], counts: list[int] | None, missing: dict[str, list[str]]) -> None:
    print(f"{data.root}: version {data.version or 'unknown'}, {len(data.scenes)} scenes by {data.config}")
    rows = [("scene", "views", "splits", "tags", "missing")]
    for scene in scenes:
        splits = " ".join(str(count) for count in scene.splits if counts is None or count in counts)
        rows.append((scene.name, str(scene.views), splits, " ".join(scene.tags), ", ".join(missing[scene.name]) or "nothing"))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)][:-1]
    for *cells, last in rows:
        print("  ".join([*(cell.ljust(width) for cell, width in zip(cells, widths, strict=True)), last]))


def _chosen(data: H3ds, names: list[str] | None) -> list[H3dsScene]:
    from nsr.utils.errors import UsageError
    from nsr.utils.hocon import did_you_mean

    for name in names or ():
        if name not in data.scenes:
            known = f"the {len(data.scenes)} of {data.config}"
            raise UsageError(f"--scenes {name}: not one of {known}.{did_you_mean(name, data.scenes)}")
    return [data.scenes[name] for name in dict.fromkeys(names or data.scenes)]


def _missing(scene: H3dsScene, counts: list[int] | None) -> list[str]:
    """What a scene lacks of its files, and of the splits asked for."""
    return [*scene.missing(), *(f"a split of {count} views" for count in counts or () if count not in scene.splits)]
