"""`nsr train`: optimise a surface over one scene, with the flags that users of IDR know."""

from __future__ import annotations

import argparse
import sys
from contextlib import ExitStack
from pathlib import Path

from nsr.apps.options import (
    TRAIN_CAMERAS,
    add_device,
    add_prior,
    add_sphere,
    check_folder,
    seconds,
    the_sphere,
    whole_number,
)
from nsr.utils.errors import UsageError

EXAMPLES = """examples:
  nsr train --data_dir data/DTU --scan_id 65
  nsr train --data_dir photos/cup --budget 120 --expname cup
  nsr train --conf base/dtu_trained_cameras --data_dir data/DTU --scan_id 65 --train_cameras --device cuda
  nsr train --expname cup --is_continue --budget 300
  nsr train --data_dir photos/cup loss.eikonal_weight=0.2 sampling.rays=2048

The run is written to EXPS_FOLDER/EXPNAME[_SCAN_ID]/<time stamp>; EXPNAME is by default the configuration's name, and the
scene folder's where there is no scan ID. --nepoch or --budget alone is the run's only end, whatever the configuration says;
with both, or one of them and train.budget=... or train.nepoch=..., the run ends at the first. A continued run keeps its
configuration, views and seed; only its end may move. Exit codes: 0 done; 75 stopped with its state saved, run again with
--is_continue; anything else is final."""


def build_parser(prog: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=prog, description=__doc__, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    data = parser.add_argument_group("data")
    data.add_argument("--data_dir", help="scene folder, or a folder of scans when --scan_id is given, or a built-in scene")
    data.add_argument("--scan_id", help="scan to train on: DATA_DIR/scan<ID>")
    data.add_argument(
        "--views",
        help="which views to use: a list such as 0,3,5-9, or a number, of those H3DS publishes, else evenly spread (default: "
        "data.views, all)",
    )
    data.add_argument("--holdout", type=whole_number(0, "views"), help="evenly spaced views to keep from training (default 0)")
    data.add_argument("--no-check", action="store_true", help="train even where `nsr data check` finds errors")
    add_sphere(data)
    run = parser.add_argument_group("run")
    run.add_argument("--conf", help="configuration file, or a name below confs/ (default instant)")
    run.add_argument("--expname", help="name of the experiment (default CONF_SCENE, the names of both)")
    run.add_argument("--exps_folder", default="exps", type=Path, help="where experiments are kept (default exps)")
    run.add_argument("--nepoch", type=whole_number(1, "epochs"), help="epochs to train for, from the run's beginning")
    run.add_argument("--budget", type=seconds, metavar="SECONDS", help="seconds to train for, from the run's beginning")
    run.add_argument("--train_cameras", action="store_true", help=TRAIN_CAMERAS)
    run.add_argument("--seed", type=whole_number(0, "a seed"), help="seed of every random draw (default 0)")
    add_device(run)
    run.add_argument("--tensorboard", action="store_true", help="also write TensorBoard event files")
    add_prior(run)
    again = parser.add_argument_group("continuing")
    again.add_argument("--is_continue", action="store_true", help="continue an earlier run of this experiment")
    again.add_argument(
        "--timestamp",
        default="latest",
        metavar="NAME",
        help="which run to continue (default latest); of a new run, the name of its folder (default the time)",
    )
    again.add_argument("--checkpoint", default="latest", help="which of its checkpoints to continue from (default latest)")
    again.add_argument(
        "--init_weights", type=Path, metavar="FILE", help="start from the weights of a checkpoint, or of an IDR .pth file"
    )
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="configuration values to change")
    parser.set_defaults(run=run_train)
    return parser


def run_train(args: argparse.Namespace) -> int:
    if args.data_dir is None and not args.is_continue:
        raise UsageError("nsr train: expected --data_dir DIR (a scene folder, or bust or dents), or --is_continue")
    if args.conf is not None and Path(args.conf).stem.endswith("trained_cameras") and not args.train_cameras:
        raise UsageError(f"--conf {args.conf}: expected --train_cameras beside it, without which the cameras stay as they are")
    experiment = experiment_name(args.expname, args.conf, args.data_dir, args.scan_id)
    check_folder(args.exps_folder / experiment, "--exps_folder")

    from nsr.training.continuation import continue_trainer
    from nsr.training.folders import find_run_folder, new_run_folder
    from nsr.training.launch import AUTO, RunRequest, new_trainer, open_scene, refuse_errors, run_folder, train

    request = RunRequest(
        data=_scene_folder(args.data_dir, args.scan_id),
        conf=args.conf,
        overrides=tuple(args.overrides),
        views=args.views,
        holdout=args.holdout,
        nepoch=args.nepoch,
        budget=args.budget,
        train_cameras=args.train_cameras,
        seed=args.seed,
        device=args.device,
        init_weights=args.init_weights,
        sphere=the_sphere(args.sphere),
        prior=args.prior,
    )
    with ExitStack() as held:
        if args.is_continue:
            folder = find_run_folder(args.exps_folder, experiment, args.timestamp)
            held.enter_context(run_folder(folder))  # before the checkpoint is read: another process may be about to write it
            trainer, estimated = continue_trainer(folder, args.checkpoint, request, say=warn), None
        else:
            scene, train_views, holdout_views, silhouette_seconds = open_scene(request, say=warn)
            estimated = scene if silhouette_seconds else None
            if not args.no_check:
                refuse_errors(scene.select(sorted([*train_views, *holdout_views])), say=warn)
            trainer = new_trainer(request, scene, train_views, holdout_views)
            folder = new_run_folder(args.exps_folder, experiment, args.timestamp)
            held.enter_context(run_folder(folder, new=True))
        if args.device == AUTO:
            warn(f"device: {trainer.device}")
        train(
            trainer,
            folder,
            tensorboard=args.tensorboard,
            estimated=estimated,
            how_to_continue="continue with --is_continue",
            say=warn,
        )
    print(f"{folder}: {trainer.clock.step} steps in {trainer.clock.seconds:.1f} s; next: nsr mesh {folder}")
    return 0


def warn(text: str) -> None:
    print(text, file=sys.stderr)


def experiment_name(expname: str | None, conf: str | None, data_dir: str | None, scan_id: str | None) -> str:
    """The experiment's name: EXPNAME_SCAN, or CONF_SCAN or CONF_SCENE, so that each scene has runs of its own.

    Raises UsageError when nothing names the scene.
    """
    stem = expname or Path(conf or "instant").stem
    if scan_id is not None:
        return f"{stem}_{scan_id}"
    if expname is not None:
        return expname
    if data_dir is None:
        raise UsageError("--is_continue: which run? Give --expname NAME, or the --data_dir (and --scan_id) it began with")
    return f"{stem}_{Path(data_dir).resolve().name}"


def _scene_folder(data_dir: str | None, scan_id: str | None) -> str:
    if scan_id is None or data_dir is None:
        return data_dir or ""
    return str(Path(data_dir) / f"scan{scan_id}")
