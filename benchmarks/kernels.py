"""Every native op against its PyTorch reference and against the floor of the machine, as a Markdown table.

    python benchmarks/kernels.py --threads 2 --json /tmp/kernels.json

Times are medians. The floor is the least time in which the op's operations, bytes and random reads (counted in
benchmarks/kernel_cases.py) can be done at the peaks that this run measures first (benchmarks/floors.py): a native op at
100 % "of peak" takes no longer than that. M/s: points, SDF evaluations, pairs, entries or vertices per second, in millions.
MB taken: the memory of a call at its highest, besides what lay there before, and the same for PyTorch.
On a GPU also, where tiny-cuda-nn is installed (docs/gpu.md), its time for the ops that it has (benchmarks/tiny_cuda_nn.py).
Backward rows are the backward pass alone. Nothing else should run on the machine meanwhile.
"""

from __future__ import annotations

import argparse
import itertools
import json
import platform
import sys
from collections.abc import Callable
from pathlib import Path

from nsr.utils.memory import keep_freed_memory
from nsr.utils.threads import set_thread_policy

set_thread_policy()  # before torch is imported
keep_freed_memory()

import tiny_cuda_nn  # noqa: E402
import torch  # noqa: E402
from floors import Machine, median_time  # noqa: E402
from kernel_cases import Case, all_cases  # noqa: E402
from kernel_inputs import SIZES, Inputs  # noqa: E402
from reconstruction import cpu_name  # noqa: E402
from torch.profiler import ProfilerActivity, profile  # noqa: E402

from nsr import _ext  # noqa: E402
from nsr.utils.errors import NsrError  # noqa: E402

HEADER = ("op", "size", "native ms", "PyTorch ms", "ratio", "M/s", "MFLOP", "MB", "k reads", "floor ms", "by", "of peak")
HEADER += ("MB taken", "PyTorch MB")


def main() -> int:
    args = arguments()
    torch.set_num_threads(args.threads)
    try:
        _ext.load()
        _ext.check_device_served(args.device)
    except NsrError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    machine = Machine(args.device, args.quick)
    about = describe(machine)
    header = HEADER + (("tiny-cuda-nn ms", "ratio to it") if args.device == "cuda" else ())
    print("\n".join(f"{key}: {value}" for key, value in about.items()) + "\n")
    print("| " + " | ".join(header) + " |\n" + "|---" * len(header) + "|")
    rows = []
    with _ext.use_backend("native"):  # the inputs are those of the native ops
        for size in args.sizes:
            inputs = Inputs.untrained(SIZES[size], args.device)
            peers = tiny_cuda_nn.calls(inputs) if args.device == "cuda" else {}
            for case in all_cases(inputs):
                if args.only in case.name:
                    rows.append(run(case, size, machine, 0.01 if args.quick else args.seconds, peers.get(case.name)))
                    print(line(rows[-1]), flush=True)
                    if args.json:  # row by row: what comes may not fit into memory
                        args.json.write_text(json.dumps({"machine": about, "rows": rows}, indent=1) + "\n")
    if not rows:
        print(f"kernels.py: --only {args.only!r} is in no op's name", file=sys.stderr)
        return 2
    return 0


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--only", default="", metavar="NAME", help="only ops with this in their name")
    parser.add_argument("--sizes", nargs="+", choices=list(SIZES), metavar="SIZE", help="of " + ", ".join(SIZES))
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), metavar="N")
    parser.add_argument("--seconds", type=float, default=0.5, help="to measure each time for (default: %(default)s)")
    parser.add_argument("--quick", action="store_true", help="tiny arrays: whether it works, not how fast")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write machine and rows here")
    args = parser.parse_args()
    usual = ["instant", "large"] if args.device == "cpu" else ["instant", "large", "gpu"]
    args.sizes = args.sizes or (["quick"] if args.quick else usual)
    return args


def run(case: Case, size: str, machine: Machine, seconds: float, peer: Callable[[], object] | None) -> dict:
    """Times in seconds; reads: cache lines at random places; peer: the same op of tiny-cuda-nn, where there is one."""
    times, memory = {}, {}
    for name in ("native", "reference"):
        with _ext.use_backend(name):
            call = case.prepare()
            memory[name] = memory_taken(call, machine.device)
            times[name] = median_time(call, machine.device, seconds)
    if peer is not None:
        times["tiny_cuda_nn"] = median_time(peer, machine.device, seconds)
    floor, limit = machine.floor(case.cost)
    return {
        "op": case.name,
        "size": size,
        **times,
        "memory": memory,
        "ratio": times["reference"] / times["native"],
        "items_per_second": case.items / times["native"],
        "flops": case.cost.flops,
        "bytes": case.cost.stream,
        "reads": sum(lines for lines, _ in case.cost.gathers),
        "floor": floor,
        "limit": limit,
        "of_peak": floor / times["native"],
    }


def memory_taken(call: Callable[[], object], device: str) -> int:
    """Bytes of tensors at the highest point of a call, besides those that are taken before it."""
    if device == "cpu":
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
            call()
        events = [event for event in profiled.profiler.kineto_results.events() if event.name() == "[memory]"]
        events.sort(key=lambda event: event.start_ns())
        return max(itertools.accumulate((event.nbytes() for event in events), initial=0))
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    call()
    return torch.cuda.max_memory_allocated() - before


def line(row: dict) -> str:
    cells = [row["op"], row["size"], f"{1e3 * row['native']:.3g}", f"{1e3 * row['reference']:.3g}", f"{row['ratio']:.3g}"]
    cells += [f"{row['items_per_second'] / 1e6:.3g}"]
    cells += [f"{row['flops'] / 1e6:.3g}", f"{row['bytes'] / 1e6:.3g}", f"{row['reads'] / 1e3:.3g}"]
    cells += [f"{1e3 * row['floor']:.3g}", row["limit"], f"{100 * row['of_peak']:.0f} %"]
    cells += [f"{row['memory'][name] / 1e6:.3g}" for name in ("native", "reference")]
    if "tiny_cuda_nn" in row:
        cells += [f"{1e3 * row['tiny_cuda_nn']:.3g}", f"{row['tiny_cuda_nn'] / row['native']:.3g}"]
    return "| " + " | ".join(cells) + " |"


def describe(machine: Machine) -> dict[str, str]:
    """What the numbers depend on: machine, versions, threads, and the peaks."""

    def rates(values: dict[int, float], unit: str) -> str:
        return ", ".join(f"{rate / 1e9:.3g} {unit} at {size / 2**20:.3g} MiB" for size, rate in values.items())

    build = _ext.build_report()
    return {
        "machine": torch.cuda.get_device_name() if machine.device == "cuda" else cpu_name(),
        "threads": str(torch.get_num_threads()),
        "versions": f"Python {platform.python_version()}, torch {torch.__version__}, {build['compiler']}, {build['flags']}",
        "float32 matrix product": f"{machine.flops / 1e9:.3g} GFLOP/s",
        "copy, read and written": rates(machine.copies, "GB/s"),
        "random reads of 8 bytes": rates(machine.reads, "G/s"),
    }


if __name__ == "__main__":
    sys.exit(main())
