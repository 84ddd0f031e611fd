"""Where the time of the start and of a training step goes, and how far a step's parts are from the machine's limit, as tables.

    python benchmarks/steps.py bust --steps 1500 --profile 100

Trains the instant configuration on a scene and looks at its steps in the middle of the stage of shape and colours and in the
middle of that of the colours alone: `--profile` of them are timed by the wall clock, as many more by torch's profiler, which
says how long each native op took. All else of the wall-clock time (the small operations of torch, and Python) is one row.
The floor is the least time in which an op's operations, bytes and random reads can be done at the peaks that this run measures
first: those counted in benchmarks/kernel_cases.py, for the networks, points and rays of such a step (but for patches, which are
counted as benchmarks/kernels.py does: as many random ones). The parts of the start are calls of Python, timed by cProfile.
Nothing else should run on the machine meanwhile.
"""

from __future__ import annotations

import argparse
import cProfile
import pstats
import sys
import time
from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from nsr.utils.memory import keep_freed_memory
from nsr.utils.threads import set_thread_policy

set_thread_policy()  # before torch is imported
keep_freed_memory()

import torch  # noqa: E402
from floors import Cost, Machine  # noqa: E402
from kernel_cases import adam_cost, all_cases, table_gradient  # noqa: E402
from kernel_inputs import Inputs, Size  # noqa: E402
from reconstruction import cpu_name  # noqa: E402
from torch.autograd.profiler_util import FunctionEvent  # noqa: E402
from torch.profiler import ProfilerActivity, profile  # noqa: E402

from nsr.geometry.cameras import pixel_rays  # noqa: E402
from nsr.training.launch import RunRequest, new_trainer, open_scene  # noqa: E402
from nsr.training.trainer import Trainer  # noqa: E402
from nsr.types import Rays  # noqa: E402
from nsr.utils.errors import NsrError, UsageError  # noqa: E402

# What a step consists of: the op in torch's profile, and the case that counts it.
PARTS = {
    "tracing": ("nsr::trace_sdf_network", "trace_sdf_network"),
    "SDF and normal": ("nsr::sdf_and_normal", "sdf_and_normal"),
    "SDF and normal, backward": ("nsr::sdf_and_normal_bwd", "sdf_and_normal backward"),
    "colour": ("nsr::color_network", "color_network"),
    "colour, backward": ("nsr::color_network_bwd", "color_network backward"),
    "patches": ("nsr::patch_ncc", "patch_ncc"),
    "patches, backward": ("nsr::patch_ncc_bwd", "patch_ncc backward"),
    "Adam over tables": ("nsr::adam_touched_", "adam_touched_"),
    "Adam over networks": ("aten::_fused_adam_", None),
}
# What the start consists of: the function, by its file, whose calls are counted whole.
START = {
    "visual hull": ("visual_hull.py", "carve"),
    "images, and the sweep's rays": ("stereo.py", "__init__"),
    "plane sweep": ("stereo.py", "scores"),
    "PatchMatch": ("patch_match.py", "refine"),
    "settling of planes": ("patch_match.py", "settle"),
    "rivals": ("stereo.py", "rival"),
    "consistency": ("stereo.py", "consistent"),
    "carving": ("stereo.py", "carve"),
    "remnants": ("stereo.py", "without_remnants"),
    "exact hull": ("start.py", "exact_hull"),
    "distances of what is left": ("start.py", "carved_distance"),
    "teaching the network": ("start.py", "teach"),
}
SHAPE, COLORS = "shape and colours", "colours alone"
HEADER = "| part | ms | of the step | floor ms | by | of peak |\n|---|---|---|---|---|---|"


@dataclass(frozen=True)
class TimedSteps:
    """Milliseconds: of a whole step, by the wall clock, and of its ops; small: how many other operations torch ran in it."""

    step: float
    parts: dict[str, float]
    small: float


class StepInputs(Inputs):
    """The networks, points and rays of a step of a run, in place of random ones."""

    def __init__(self, trainer: Trainer, colors_only: bool) -> None:
        config, model, sampler = trainer.config, trainer.model, trainer.sampler
        sampling = config.sampling
        batch = sampler.draw_inside(sampling.color_rays) if colors_only else sampler.draw(sampling.rays)
        self._rays = pixel_rays(trainer.scene.cameras, batch.view, batch.pixels)
        hits = model.trace(self._rays, batch.mask > 0.5)
        surface = hits.hit & (batch.mask > 0.5)
        _, height, width = trainer.scene.masks.shape
        size = Size(
            points=int(surface.sum()),
            rays=len(batch),
            patch=trainer.photometric.side if trainer.photometric else Size.patch,
            images=(len(trainer.scene), height, width),
        )
        super().__init__(size, config, model, "cpu")
        self.colors_only = colors_only
        on_rays = self._rays.at(hits.distance)
        self.points = self.on_surface = on_rays[surface]
        if not colors_only:
            volume = (2.0 * self.rand(sampling.volume_points, 3) - 1.0) * model.bounding_radius
            beside = sampling.neighbour_sigma * torch.randn(sampling.neighbours, 3, generator=self.generator)
            self.points = torch.cat([on_rays, volume, on_rays[: len(beside)] + beside])

    def rays(self) -> Rays:
        return self._rays


def main() -> int:
    args = arguments()
    torch.set_num_threads(args.threads)
    try:
        trainer = new(args)
        stages = stages_of(trainer, args.profile)
        start = start_times(trainer)
    except NsrError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    machine = Machine("cpu", args.quick)
    print(f"{cpu_name()}, {args.threads} threads, torch {torch.__version__}, {args.scene}\n")
    print(f"Start: {trainer.clock.seconds:.1f} s\n\n| part | s |\n|---|---|")
    for part, seconds in start.items():
        print(f"| {part} | {seconds:.3f} |")
    print(f"| all else | {trainer.clock.seconds - sum(start.values()):.3f} |\n")
    for stage, middle in stages.items():
        while trainer.clock.step < middle - args.profile:
            trainer.step()
        times = timed(trainer, args.profile)
        floors = {name: machine.floor(cost) for name, cost in costs(StepInputs(trainer, stage == COLORS)).items()}
        print(f"Steps of {stage}: {times.step:.3g} ms, {times.small:.0f} small operations of torch in each\n\n{HEADER}")
        print("\n".join(lines(times, floors)) + "\n", flush=True)
    return 0


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scene", help="scene folder or built-in name")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="of confs/instant.conf")
    parser.add_argument("--views", help="which views to use, as in nsr reconstruct")
    parser.add_argument("--steps", type=int, default=1500, help="of the run (default %(default)s)")
    parser.add_argument("--profile", type=int, default=100, help="steps timed, and profiled, per stage (default %(default)s)")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), metavar="N")
    parser.add_argument("--quick", action="store_true", help="measure peaks on tiny arrays: whether it works, not how fast")
    return parser.parse_args()


def new(args: argparse.Namespace) -> Trainer:
    """A trainer whose schedule ends after about so many steps."""
    request = RunRequest(args.scene, overrides=tuple(args.overrides), views=args.views)
    scene, training, held_out, _ = open_scene(request, lambda message: print(message, file=sys.stderr))
    return new_trainer(replace(request, nepoch=max(round(args.steps / len(training)), 1)), scene, training, held_out)


def stages_of(trainer: Trainer, profiled: int) -> dict[str, float]:
    """The step in the middle of each stage. Raises UsageError where a stage has fewer than twice the steps to profile."""
    begin, steps = trainer.config.train.color_from, trainer.clock.total_steps
    stages = {SHAPE: (0.0, begin), COLORS: (begin, 1.0)} if begin < 1 else {SHAPE: (0.0, 1.0)}
    for stage, (first, last) in stages.items():
        if (last - first) * steps < 2 * profiled:
            raise UsageError(
                f"steps.py: {stage}: of {steps} steps {(last - first) * steps:.0f}; expected at least {2 * profiled}, twice "
                "--profile: give more --steps"
            )
    return {stage: (first + last) / 2 * steps for stage, (first, last) in stages.items()}


def start_times(trainer: Trainer) -> dict[str, float]:
    """Seconds that the parts of the start take, of those that it has."""
    profiler = cProfile.Profile()
    profiler.runcall(trainer.start)
    calls = pstats.Stats(profiler).stats  # (file, line, function): calls, without recursion, own time, time, callers
    times = {(Path(file).name, function): call[3] for (file, _, function), call in calls.items() if "nsr" in Path(file).parts}
    return {part: times[call] for part, call in START.items() if call in times}


def timed(trainer: Trainer, steps: int) -> TimedSteps:
    """Means over `steps` steps by the wall clock, and as many by the profiler."""
    started = time.perf_counter()
    for _ in range(steps):
        trainer.step()
    seconds = time.perf_counter() - started
    with profile(activities=[ProfilerActivity.CPU]) as profiled:
        for _ in range(steps):
            trainer.step()
    ops = {entry.key: entry for entry in profiled.key_averages()}
    named = {op: ops[op] for op, _ in PARTS.values() if op in ops}
    small = sum(_is_small(event, named) for event in profiled.events())
    parts = {part: named[op].cpu_time_total / 1e3 / steps for part, (op, _) in PARTS.items() if op in named}
    return TimedSteps(1e3 * seconds / steps, parts, small / steps)


def _is_small(event: FunctionEvent, named: Collection[str]) -> bool:
    """Whether an event is an operation of torch that is neither a part of its own nor inside another operation."""
    inside = event.cpu_parent is not None and event.cpu_parent.name.startswith(("aten::", "nsr::"))
    return event.name.startswith("aten::") and event.name not in named and not inside


def costs(inputs: StepInputs) -> dict[str, Cost]:
    """By the case that counts them; Adam's of all the tables that such a step moves."""
    of_colors = adam_cost(table_gradient(inputs.color, inputs.on_surface))
    of_cases = {case.name: case.cost for case in all_cases(inputs)}
    of_shape = Cost(0.0, 0.0) if inputs.colors_only else of_cases["adam_touched_"]
    adam = Cost(of_shape.flops + of_colors.flops, of_shape.stream + of_colors.stream)
    return {**of_cases, "adam_touched_": adam}


def lines(times: TimedSteps, floors: dict[str, tuple[float, str]]) -> Iterator[str]:
    """The rows of the table, the last of which is what the parts leave of the step."""
    for part, milliseconds in times.parts.items():
        floor, limit = floors.get(PARTS[part][1], (None, None))
        limits = f"{1e3 * floor:.2g} | {limit} | {1e5 * floor / milliseconds:.0f} %" if floor is not None else "| |"
        yield f"| {part} | {milliseconds:.2f} | {100 * milliseconds / times.step:.0f} % | {limits} |"
    rest = times.step - sum(times.parts.values())
    yield f"| all else | {rest:.2f} | {100 * rest / times.step:.0f} % | | | |"


if __name__ == "__main__":
    sys.exit(main())
