"""`nsr failsafe`: training and evaluation that run unattended, and survive what another try may survive."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from nsr.apps.options import (
    TRAIN_CAMERAS,
    add_device,
    add_resolution,
    add_sphere,
    check_folder,
    check_resolution,
    seconds,
    the_sphere,
    whole_number,
)
from nsr.apps.render import check_quality
from nsr.utils.errors import CheckpointError, DataError, RetriableError, UsageError
from nsr.utils.files import is_locked, lock_holder
from nsr.utils.supervisor import Supervisor, persistently, say

DTU, H3DS = Path("data/DTU"), Path("data/H3DS")  # where `nsr data download` and the H3DS archive put scans
# The trainer of a supervisor that was killed ends after its start or its step, and with IDR's networks a start takes minutes.
ORPHAN_ENDS_WITHIN = 1800.0
_RAW = argparse.RawDescriptionHelpFormatter

WHAT_IT_SURVIVES = """Tried again: exit code 75 (out of memory, a full disk, a file system that is away, SIGTERM to the program
alone) and death by a signal; from the last whole checkpoint, after 2, 4, 8 ... up to 60 seconds, until --max_retries tries in a
row got no further. Not tried again: anything else, such as a mistake in the command or in the data. The exit code is that of
the last try, 128 + n where signal n ended it. EXPS_FOLDER/EXPERIMENT/failsafe.csv has a row for every try. More:
docs/failsafe.md."""


def build_parser(prog: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=prog,
        description="Train and evaluate unattended: run again after kills, lack of memory, full disks.",
        epilog=f"examples:\n  {prog} train --exp NFFB --scan_id 65 --budget 600\n"
        f"  {prog} train --exp Posenc --scan_id 65 --trainable_cameras --is_continue\n"
        f"  {prog} train --exp HashGrid --data_dir bust --conf instant --budget 60\n"
        f"  {prog} eval --exp NFFB --scan_id 65 --eval_rendering\n\n{WHAT_IT_SURVIVES}",
        formatter_class=_RAW,
    )
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    _add_train(commands)
    _add_eval(commands)
    return parser


def _add_train(commands) -> None:
    parser = commands.add_parser(
        "train",
        help="train, again and again if need be",
        description="Train one of the encoder experiments to its end, through kills, lack of memory and full disks.",
        epilog="examples:\n  nsr failsafe train --exp NFFB --scan_id 65\n  nsr failsafe train --exp Posenc --scan_id 65 "
        "--trainable_cameras --budget 3600 --device cuda\n  nsr failsafe train --exp HashGrid --data_dir photos/cup --conf "
        f"instant sampling.rays=2048\n\n{WHAT_IT_SURVIVES}",
        formatter_class=_RAW,
    )
    _add_experiment(parser)
    parser.add_argument(
        "--is_continue", action="store_true", help="continue the newest run of this experiment; where there is none, begin one"
    )
    parser.add_argument(
        "--nepoch", type=whole_number(1, "epochs"), metavar="N", help="epochs to train for, from the run's beginning"
    )
    parser.add_argument("--budget", type=seconds, metavar="SECONDS", help="seconds to train for, from the run's beginning")
    parser.add_argument("--views", metavar="N|LIST", help="how many views to use, or which (default all)")
    parser.add_argument("--holdout", type=whole_number(0, "views"), metavar="K", help="views to keep from training (default 0)")
    parser.add_argument("--seed", type=whole_number(0, "a seed"), metavar="N", help="seed of every random draw (default 0)")
    parser.add_argument("--no-check", action="store_true", help="train even where `nsr data check` finds errors")
    parser.add_argument("--tensorboard", action="store_true", help="also write TensorBoard event files")
    add_sphere(parser)
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="configuration values to change")
    parser.set_defaults(run=run_train)


def _add_eval(commands) -> None:
    parser = commands.add_parser(
        "eval",
        help="mesh and figures of the newest finished run",
        description="Extract the mesh of an experiment's newest finished run and measure it: mesh.ply and metrics.json in the\n"
        "run's folder. With refined cameras these are measured too.",
        epilog="examples:\n  nsr failsafe eval --exp NFFB --scan_id 65\n  nsr failsafe eval --exp NFFB --scan_id 65 "
        "--trainable_cameras --eval_rendering --dtu_gt data/DTU_reference\n"
        "  nsr failsafe eval --exp Posenc --scan_id 65 --eval_rendering --views 5 --samples 1 --scale 0.5\n"
        "  nsr failsafe eval --exp HashGrid --data_dir bust --conf instant\n\n"
        f"{WHAT_IT_SURVIVES}",
        formatter_class=_RAW,
    )
    _add_experiment(parser)
    parser.add_argument(
        "--eval_rendering", action="store_true",
        help="also render the training views, and compare renderings with photographs; large networks take minutes for each of "
        "DTU's, which --views, --samples and --scale shorten",
    )  # fmt: skip
    parser.add_argument(
        "--views",
        metavar="N|LIST",
        help="views to compare and to render: how many, or which (default those of nsr eval and render)",
    )
    parser.add_argument(
        "--samples", type=whole_number(1, "rays"), metavar="N", help="N x N rays per pixel of renderings (default 2)"
    )
    parser.add_argument("--scale", type=float, help="size of the pictures in renders/, relative to the photographs (default 1)")
    parser.add_argument("--gt", type=Path, metavar="MESH", help="true mesh, in world units (default: the scene's own, if any)")
    parser.add_argument("--dtu_gt", type=Path, metavar="DIR", help="measure as DTU does: folder of its Points/ and ObsMask/")
    add_resolution(parser)
    parser.set_defaults(run=run_eval)


def _add_experiment(parser: argparse.ArgumentParser) -> None:
    """Which experiment it is about, and how much is borne."""
    parser.add_argument("--exp", required=True, metavar="NAME", help="which encoder, such as Posenc, HashGrid or NFFB")
    parser.add_argument("--scan_id", metavar="ID", help="scan of DATA_DIR: its folder scan<ID>, else <ID>")
    parser.add_argument("--trainable_cameras", action="store_true", help=TRAIN_CAMERAS)
    parser.add_argument(
        "--data_dir",
        metavar="DIR",
        help=f"folder of scans (default {DTU}, or {H3DS} with --conf h3ds_...); without --scan_id a scene folder, or a "
        "built-in scene (bust, dents)",
    )
    parser.add_argument(
        "--conf",
        default="dtu",
        metavar="VARIANT",
        help="configuration of the encoder: dtu (dtu_trained_cameras with --trainable_cameras, else dtu_fixed_cameras), "
        "h3ds_3_views, instant, ... (default dtu)",
    )
    parser.add_argument(
        "--exps_folder", default="exps", type=Path, metavar="DIR", help="where experiments are kept (default exps)"
    )
    add_device(parser, default="auto")  # half of the encoders run on a GPU alone, and nobody looks on
    parser.add_argument(
        "--max_retries", type=whole_number(0, "tries"), default=5, metavar="K",
        help="how many tries in a row may get no further before it gives up (default 5)",
    )  # fmt: skip
    parser.add_argument(
        "--backoff",
        type=seconds,
        default=2.0,
        metavar="SECONDS",
        help="wait before the first retry, doubled by each (default 2)",
    )


def run_train(args: argparse.Namespace) -> int:
    conf, experiment = the_experiment(args)
    check_folder(args.exps_folder / experiment, "--exps_folder")

    from nsr.training.folders import LATEST, PREVIOUS, has_checkpoint, new_run_folder, reached, run_folders

    earlier = persistently(lambda: run_folders(args.exps_folder, experiment), **patience(args)) if args.is_continue else []
    if args.is_continue and not earlier:
        say(f"failsafe: no run to continue in {args.exps_folder / experiment}: one begins")
    folder = earlier[-1] if earlier else persistently(lambda: new_run_folder(args.exps_folder, experiment), **patience(args))
    begun = False  # whether there has ever been a checkpoint

    def command() -> list[str]:
        nonlocal begun
        why = f"{folder} is still being written by another process (pid {lock_holder(folder)})"
        supervisor.wait_while(lambda: is_locked(folder), ORPHAN_ENDS_WITHIN, why)
        there = has_checkpoint(folder)
        if begun and not there:  # to begin anew would train on a bare mount point
            raise RetriableError(f"{folder} had a checkpoint and has none now; is its file system away?")
        begun = there
        return train_command(args, conf, experiment, folder.name, again=there)

    def step() -> int | None:
        nonlocal begun
        farthest = max((state.step for name in (LATEST, PREVIOUS) if (state := reached(folder, name))), default=None)
        begun |= farthest is not None
        return farthest

    with the_supervisor(args, folder) as supervisor:
        code = supervisor.run("train", command, step)
    with suppress(OSError):
        folder.rmdir()  # only where nothing came to be in it
    return code


def run_eval(args: argparse.Namespace) -> int:
    check_resolution(args.resolution)
    check_quality(1.0 if args.scale is None else args.scale, 2 if args.samples is None else args.samples)
    for option in ("views", "samples", "scale"):
        if getattr(args, option) is not None and not args.eval_rendering:
            raise UsageError(f"--{option}: expected --eval_rendering beside it, without which nothing is rendered")
    if args.gt is not None and not args.gt.is_file():
        raise DataError(f"--gt {args.gt}: no such file; expected a mesh in world units (.ply, .obj, .stl)")
    _, experiment = the_experiment(args)
    data = scene_folder(args) if args.data_dir is not None else None
    folder = persistently(lambda: newest_finished(args.exps_folder, experiment, data), **patience(args))
    with the_supervisor(args, folder) as supervisor:
        for arguments in evaluation_commands(args, folder):
            code = supervisor.run(arguments[0], lambda arguments=arguments: nsr_command(*arguments))
            if code != 0:
                return code
    return 0


def the_supervisor(args: argparse.Namespace, folder: Path) -> Supervisor:
    return Supervisor(folder.parent, folder.name, **patience(args))


def patience(args: argparse.Namespace) -> dict[str, float]:
    return {"max_retries": args.max_retries, "backoff": args.backoff}


def the_experiment(args: argparse.Namespace) -> tuple[str, str]:
    """The configuration's name, and the name under which runs are kept: NFFB_dtu_fixed_cameras_65, HashGrid_instant_bust.

    Raises UsageError for an unknown name or variant, and when nothing names the scene.
    """
    from nsr.training.experiments import experiment_conf, experiment_folder, variant_of

    if args.scan_id is None and args.data_dir is None:
        raise UsageError("which scene? Expected --scan_id ID, or --data_dir DIR with a scene folder, or bust or dents")
    if args.scan_id is not None and Path(args.scan_id).name != args.scan_id:
        raise UsageError(f"--scan_id {args.scan_id}: expected the number or name of a scan; --data_dir has the path to it")
    variant = variant_of(args.conf, args.trainable_cameras)
    if variant == "dtu_trained_cameras" and not args.trainable_cameras:
        raise UsageError(
            f"--conf {variant}: expected --trainable_cameras beside it, without which the cameras stay as they are"
        )
    conf = experiment_conf(args.exp, variant)
    return conf, experiment_folder(
        args.exp, variant, args.trainable_cameras, args.scan_id or Path(args.data_dir).resolve().name
    )


def scene_folder(args: argparse.Namespace) -> str:
    """What to give `nsr train` as --data_dir."""
    if args.scan_id is None:
        return args.data_dir
    scans = Path(args.data_dir or (H3DS if args.conf.startswith("h3ds") else DTU))
    plain = scans / args.scan_id  # as H3DS has it
    return str(plain if plain.is_dir() else scans / f"scan{args.scan_id}")


def train_command(args: argparse.Namespace, conf: str, experiment: str, stamp: str, again: bool) -> list[str]:
    """The command line of `nsr train` for a run folder; again: there is a checkpoint in it to continue from.

    What is continued keeps its configuration, even if the file has changed since, and its data, unless others are named.
    """
    options = {
        "--exps_folder": args.exps_folder,
        "--expname": experiment,
        "--timestamp": stamp,
        "--conf": None if again else conf,
        "--data_dir": None if again and args.data_dir is None else scene_folder(args),
        "--nepoch": args.nepoch,
        "--budget": args.budget,
        "--views": args.views,
        "--holdout": args.holdout,
        "--seed": args.seed,
        "--device": args.device,
    }
    flags = {
        "--is_continue": again,
        "--train_cameras": args.trainable_cameras,
        "--no-check": args.no_check,
        "--tensorboard": args.tensorboard,
    }
    given = _given(options)
    given += [name for name, on in flags.items() if on]
    given += ["--sphere", *the_sphere(args.sphere)] if args.sphere is not None else []
    return nsr_command("train", *given, *args.overrides)


def newest_finished(experiments: Path, experiment: str, data: str | None) -> Path:
    """The folder of the newest run that came to its end; data: on this alone. Raises CheckpointError where there is none, or a
    newer one cannot be read."""
    from nsr.training.folders import has_checkpoint, reached, run_folders

    found = []
    for run in reversed(run_folders(experiments, experiment)):
        state = reached(run)
        if state is None and has_checkpoint(run):  # it may be the one that was meant
            raise CheckpointError(
                f"{run}: its newest checkpoint cannot be read; `nsr failsafe train` with the same options and --is_continue "
                "goes on from the one before; evaluate an older run by its folder, with nsr mesh and nsr eval"
            )
        if state is None:
            found.append(f"{run.name} without a checkpoint")
        elif state.progress < 1:
            found.append(f"{run.name} at {state.progress:.0%}")
        elif data is not None and state.data not in (data, str(Path(data).resolve())):
            found.append(f"{run.name} of {state.data}")
        else:
            return run
    of_data = f" on {data}" if data is not None else ""
    raise CheckpointError(
        f"no finished run{of_data} to evaluate in {experiments / experiment}, found {', '.join(found) or 'none'}; train one "
        "with `nsr failsafe train` and the same options, with --is_continue where one was begun"
    )


def evaluation_commands(args: argparse.Namespace, folder: Path) -> list[Sequence[object]]:
    """The arguments of the nsr programs that evaluate a run, in order."""
    device = ("--device", args.device)
    quality = _given({"--views": args.views, "--samples": args.samples})
    renderings = ["--eval_rendering", *quality] if args.eval_rendering else []
    measure = ["eval", folder, "--resolution", args.resolution, *device]
    scan = args.scan_id if args.dtu_gt is not None and args.scan_id is not None and args.scan_id.isdecimal() else None
    truth = _given({"--gt": args.gt, "--dtu_gt": args.dtu_gt, "--dtu_scan": scan})
    commands = [["mesh", folder, "--resolution", args.resolution, *device]]
    if truth:
        commands.append([*measure, *truth, *renderings])
    elif not renderings:
        commands.append([*measure, "--mesh-only"])
    elif not quality:
        commands.append(measure)
    else:  # what is said about renderings measures these alone, and the scene may have a mesh to measure against
        commands += [[*measure, "--mesh-only"], ["eval", folder, *renderings, *device]]
    if args.trainable_cameras:
        commands.append(["eval", folder, "--eval_cameras", *device])
    if args.eval_rendering:
        commands.append(["render", folder, *quality, *_given({"--scale": args.scale}), *device])
    return commands


def _given(options: dict[str, object]) -> list[object]:
    """The parts of a command line with those options that have a value."""
    return [part for name, value in options.items() if value is not None for part in (name, value)]


def nsr_command(*arguments: object) -> list[str]:
    """The command line of an nsr program, by this very Python."""
    return [sys.executable, "-m", "nsr.apps.main", *map(str, arguments)]
