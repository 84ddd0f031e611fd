#!/usr/bin/env python3
"""What the CUDA kernels take of a multiprocessor, as ptxas reports it (`nvcc -Xptxas -v`), as a Markdown table.

    scripts/check_cuda_compile.sh --resources                        prints the table
    scripts/check_cuda_compile.sh --resources docs/cuda_resources.md  writes it there

Exit code 1: a kernel spills registers to memory and EXPLAINED does not say why.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

EXPLAINED: dict[str, str] = {}  # kernel: why it may spill

ENTRY = re.compile(r"Compiling entry function '(\w+)' for '(sm_\w+)'")
FRAME = re.compile(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads")
USED = re.compile(r"Used (\d+) registers")
ARCH = "sm_90"  # that the table is of; none may spill
REGISTERS, WARP, MOST_WARPS = 65536, 32, 64  # of a multiprocessor of sm_80 and sm_90

INTRODUCTION = """\
# What the CUDA kernels take of a multiprocessor

Written by `scripts/check_cuda_compile.sh --resources docs/cuda_resources.md`; `make test` compares, where nvcc is the same.
Compiler: {version}, for sm_90. Nothing here has run: see docs/gpu.md for what has run on a GPU.

A multiprocessor holds 64 warps at most; the column says how many it holds by registers alone. Shared memory comes besides for
the networks: their blocks choose 128, 64 or 32 threads by it (csrc/cuda/tile.cuh). A stack without spills is an array that is
indexed by a variable: the pointers of `LayerGradients`.

"""


class Kernel(NamedTuple):
    source: str
    name: str
    arch: str
    registers: int
    stack: int
    spills: int

    @property
    def warps(self) -> int:
        """Warps that a multiprocessor can hold by registers alone, which are given out by 256 to a warp."""
        per_warp = -(-self.registers * WARP // 256) * 256
        return min(MOST_WARPS, REGISTERS // per_warp)


def parse(log: str, source: str) -> list[Kernel]:
    """The kernels in what nvcc printed about one source; names as in the C++ sources, without namespaces and arguments."""
    names = ENTRY.findall(log)
    plain = subprocess.run(["c++filt"], input="\n".join(name for name, _ in names), capture_output=True, text=True, check=True)
    kernels = []
    for part, name in zip(ENTRY.split(log)[1:][2::3], plain.stdout.splitlines(), strict=True):
        stack, stores, loads = map(int, FRAME.search(part).groups())
        arch = names[len(kernels)][1]
        kernels.append(Kernel(source, short(name), arch, int(USED.search(part).group(1)), stack, stores + loads))
    return kernels


def short(name: str) -> str:
    """'void nsr::cuda::(anonymous namespace)::f<double>(int)' -> 'f<double>'."""
    name = re.sub(r"\(anonymous namespace\)::|nsr::|cuda::|^void ", "", name)
    name = re.sub(r"\((\w+)\)(\d+)", r"\1 \2", name)  # a value of an enumeration: (BankKind)2
    name = re.sub(r"\(.*$", "", name)
    return name.replace("> >", ">>")


def table(kernels: list[Kernel]) -> str:
    """One row per kernel and type."""
    lines = ["| source | kernel | registers | warps by registers | stack, bytes | spills, bytes |", "|---|---|---|---|---|---|"]
    for kernel in sorted(kernels):
        cells = kernel.registers, kernel.warps, kernel.stack, kernel.spills
        lines.append(f"| `{kernel.source}` | `{kernel.name}` | " + " | ".join(map(str, cells)) + " |")
    return "\n".join(lines)


def main(folder: Path, version: str, target: Path | None) -> int:
    kernels = [kernel for log in sorted(folder.glob("*.log")) for kernel in parse(log.read_text(), log.stem)]
    text = table([kernel for kernel in kernels if kernel.arch == ARCH])
    if target is None:
        print(text)
    else:
        target.write_text(INTRODUCTION.format(version=version) + text + "\n", encoding="utf-8")
    spilling = sorted({kernel.name for kernel in kernels if kernel.spills} - set(EXPLAINED))
    if spilling:
        print(f"cuda_resources: registers are spilled, and EXPLAINED does not say why: {', '.join(spilling)}", file=sys.stderr)
    return bool(spilling)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), sys.argv[2], Path(sys.argv[3]) if len(sys.argv) > 3 else None))
