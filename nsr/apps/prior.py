"""`nsr prior`: surfaces known beforehand, for --prior of nsr reconstruct and nsr train."""

from __future__ import annotations

import argparse
from pathlib import Path

from nsr.apps.options import check_folder, check_suffix, seconds, whole_number
from nsr.apps.reconstruct import choose_conf
from nsr.utils.errors import UsageError

EXAMPLES = """examples:
  nsr prior pretrain data/H3DS/HEAD --views 32 --budget 60 --out priors/head          a head from many views
  nsr prior average priors/a priors/b priors/c --out priors/mean.safetensors           the mean of several
  nsr prior deepsdf scans --out priors/heads.safetensors                               a family, from a folder of meshes
  nsr reconstruct data/H3DS/OTHER --views 3 --prior priors/heads.safetensors           and what they are for

A prior is a run (any run will do), or a file that these commands write. docs/heads.md says what each is worth."""
SUFFIXES = (".safetensors",)


def build_parser(prog: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=prog, description=__doc__, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(title="commands", metavar="COMMAND")
    _add_pretrain(commands)
    _add_average(commands)
    _add_deepsdf(commands)
    return parser


def _add_pretrain(commands) -> None:
    about = "train a model on one scene, to begin others from (BaseH3D-Net)"
    pretrain = commands.add_parser("pretrain", help=about, description=about)
    pretrain.add_argument("data", metavar="DATA", help="scene folder, or a built-in scene")
    pretrain.add_argument("--out", "-o", type=Path, required=True, metavar="DIR", help="folder of the run, which is the prior")
    pretrain.add_argument("--views", default="32", metavar="N|LIST", help="as nsr reconstruct has it (default 32)")
    pretrain.add_argument("--encoder", metavar="NAME", help="use confs/encoders/NAME/instant.conf")
    pretrain.add_argument("--conf", help="use this configuration instead (default instant)")
    pretrain.add_argument("--nepoch", type=whole_number(1, "epochs"), metavar="N", help="epochs to train for")
    pretrain.add_argument("--budget", type=seconds, metavar="SECONDS", help="seconds to train for")
    _add_common(pretrain)
    pretrain.set_defaults(run=run_pretrain)


def _add_average(commands) -> None:
    about = "average several trained models into one"
    average = commands.add_parser("average", help=about, description=about)
    average.add_argument(
        "models", nargs="+", type=Path, metavar="RUN", help="runs, checkpoints or prior files of single models"
    )
    average.add_argument("--out", "-o", type=Path, required=True, metavar="FILE", help="the prior, a .safetensors file")
    average.add_argument(
        "--space",
        choices=("function", "weights"),
        default="function",
        help="average the signed distances and teach a model their mean, or average the weights (default function)",
    )
    average.add_argument(
        "--align", choices=("rigid", "none"), default="rigid", help="move each onto the first before (function; default rigid)"
    )
    average.add_argument("--conf", help="of the model that is taught (default: the first one's)")
    _add_common(average, overrides=False)
    average.set_defaults(run=run_average)


def _add_deepsdf(commands) -> None:
    about = "train a DeepSDF over meshes: a family of surfaces (H3D-Net)"
    deepsdf = commands.add_parser("deepsdf", help=about, description=about)
    deepsdf.add_argument(
        "meshes",
        nargs="+",
        metavar="MESHES",
        help="meshes, or folders of them, in one unit; and key=value: settings to change, of the network and its training",
    )
    deepsdf.add_argument("--out", "-o", type=Path, required=True, metavar="FILE", help="the prior, a .safetensors file")
    deepsdf.add_argument("--steps", type=whole_number(1, "steps"), metavar="N", help="of training (default 4000)")
    deepsdf.add_argument(
        "--samples", type=whole_number(100, "samples"), default=30_000, metavar="N", help="points of each mesh (default 30000)"
    )
    deepsdf.add_argument(
        "--align", choices=("rigid", "none"), default="rigid", help="move each mesh onto the first before (default rigid)"
    )
    _add_common(deepsdf, overrides=False)
    deepsdf.set_defaults(run=run_deepsdf)


def _add_common(parser: argparse.ArgumentParser, overrides: bool = True) -> None:
    parser.add_argument("--seed", type=whole_number(0, "a seed"), default=0, metavar="N", help="of every draw (default 0)")
    if overrides:
        parser.add_argument("overrides", nargs="*", metavar="key=value", help="configuration values to change")


def run_pretrain(args: argparse.Namespace) -> None:
    check_folder(args.out, "--out")
    from nsr.training.launch import RunRequest
    from nsr.training.pipeline import pretrain

    request = RunRequest(
        data=args.data,
        conf=choose_conf(args.conf, args.encoder),
        overrides=tuple(args.overrides),
        views=args.views,
        nepoch=args.nepoch,
        budget=args.budget,
        seed=args.seed,
    )
    trainer = pretrain(request, args.out, say=print)
    trained = f"{trainer.clock.step} steps in {trainer.clock.seconds:.1f} s"
    print(f"{args.out}: {trained}; next: nsr reconstruct DATA --prior {args.out}")


def run_average(args: argparse.Namespace) -> None:
    check_suffix(args.out, SUFFIXES)
    if len(args.models) < 2:
        raise UsageError(f"nsr prior average: expected two models or more, got {len(args.models)}")
    from nsr.training.launch import RunRequest, read_config
    from nsr.training.prior_making import average_models

    config = read_config(RunRequest("", args.conf)) if args.conf else None
    args.out.parent.mkdir(parents=True, exist_ok=True)
    average_models(args.models, args.out, space=args.space, align=args.align, config=config, seed=args.seed, say=print)
    print(f"{args.out}: the average of {len(args.models)} models; next: nsr reconstruct DATA --prior {args.out}")


def run_deepsdf(args: argparse.Namespace) -> None:
    check_suffix(args.out, SUFFIXES)
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from nsr.config import bind, to_tree
    from nsr.priors.deepsdf import DeepSdfConfig
    from nsr.training.prior_making import make_deepsdf, mesh_files
    from nsr.utils.hocon import override_tree

    # Two lists of names that may stand anywhere: what is no file and looks like a setting is one.
    settings = [name for name in args.meshes if "=" in name and not Path(name).exists()]
    files = mesh_files([Path(name) for name in args.meshes if name not in settings])
    steps = [f"steps={args.steps}"] if args.steps else []
    config = bind(DeepSdfConfig, *override_tree([("DeepSDF's defaults", to_tree(DeepSdfConfig()))], [*settings, *steps]))
    args.out.parent.mkdir(parents=True, exist_ok=True)
    columns = (
        TextColumn("DeepSDF"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[losses]}"),
        TimeRemainingColumn(),
    )
    console = Console(highlight=False, soft_wrap=True)
    console.print(f"{len(files)} meshes, {config.steps} steps")
    with Progress(*columns, console=console) as bar:
        task = bar.add_task("DeepSDF", total=config.steps, losses="")

        def on_step(step: int, losses: dict[str, float]) -> None:
            shown = "  ".join(f"{name} {value:.4f}" for name, value in losses.items())
            bar.update(task, completed=step, losses=shown)

        losses = make_deepsdf(
            files, args.out, config, samples=args.samples, align=args.align, seed=args.seed, say=console.print, on_step=on_step
        )
    last = f", last distance {losses['distance']:.4f}" if losses else ""
    console.print(f"{args.out}: a family of {len(files)} surfaces{last}; next: nsr reconstruct DATA --prior {args.out}")
