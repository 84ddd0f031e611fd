"""The least time an op can take on this machine: its operations, bytes and scattered reads against measured peaks.

A floor is a lower bound, not a prediction: each of the three is taken to run at its peak, and the longest of them counts.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import torch

Gathers = tuple[tuple[float, float], ...]  # (cache lines read at random, bytes of the array they lie in)


@dataclass(frozen=True)
class Cost:
    """What any implementation has to do.

    flops: floating-point operations; a multiply-add is two, a comparison, a conversion and integer arithmetic none.
    stream: bytes of all inputs and outputs that are read or written in order, once each; not what an implementation keeps
        between its forward and its backward pass, and not the tables read at random.
    gathers: cache lines read at random places of an array, and the array's bytes.
    """

    flops: float
    stream: float
    gathers: Gathers = ()


def measure(call: Callable[[], object], device: str, seconds: float, repeats: int = 3) -> list[float]:
    """Seconds of single calls, after one to warm up: at least `repeats` of them (one if it is slow), for about `seconds`."""
    wait = torch.cuda.synchronize if device == "cuda" else lambda: None

    def once() -> float:
        wait()
        started = time.perf_counter()
        call()
        wait()
        return time.perf_counter() - started

    once()
    times = [once()]
    while sum(times) < seconds or (len(times) < repeats and sum(times) < 10 * seconds):
        times.append(once())
    return times


def median_time(call: Callable[[], object], device: str, seconds: float) -> float:
    return statistics.median(measure(call, device, seconds))


@dataclass
class Machine:
    """Peaks of PyTorch's own kernels on a device with the threads of the process; each measured once, the best of its repeats.

    quick: small arrays and little time, for a test of the benchmark itself.
    """

    device: str
    quick: bool = False
    copies: dict[int, float] = field(default_factory=dict)  # bytes read and written -> bytes per second
    reads: dict[int, float] = field(default_factory=dict)  # bytes of the array -> random reads per second
    flops: float = 0.0  # of a float32 matrix product, per second

    def __post_init__(self) -> None:
        sizes = [2**16, 2**18] if self.quick else [2**16, 2**18, 2**20, 2**22, 2**24, 2**26, 2**28]
        self.flops = self._matmul(256 if self.quick else 1024)
        self.copies = {size: self._copy(size) for size in sizes}
        self.reads = {size: self._read(size) for size in sizes}

    def floor(self, cost: Cost) -> tuple[float, str]:
        """Seconds, and which of "flops", "bytes" and "reads" they are."""
        parts = {
            "flops": cost.flops / self.flops,
            "bytes": cost.stream / at_size(self.copies, cost.stream),
            "reads": sum(lines / at_size(self.reads, array) for lines, array in cost.gathers),
        }
        limit = max(parts, key=parts.get)
        return parts[limit], limit

    def _best(self, call: Callable[[], object]) -> float:
        return min(measure(call, self.device, 0.005 if self.quick else 0.2))

    def _matmul(self, side: int) -> float:
        a, b, c = (torch.ones(side, side, device=self.device) for _ in range(3))
        return 2 * side**3 / self._best(lambda: torch.mm(a, b, out=c))

    def _copy(self, size: int) -> float:
        a = torch.ones(size // 8, device=self.device)
        b = torch.empty_like(a)
        return size / self._best(lambda: b.copy_(a))

    def _read(self, size: int) -> float:
        """8 bytes at a time, like an entry of a table with two features."""
        array = torch.ones(size // 8, dtype=torch.float64, device=self.device)
        count = 2**12 if self.quick else 2**17
        places = torch.randint(len(array), (count,), generator=torch.Generator().manual_seed(0)).to(self.device)
        out = array.new_empty(count)
        selecting = self._best(lambda: torch.index_select(array, 0, places, out=out))
        return count / min(selecting, self._best(lambda: torch.take(array, places, out=out)))


def at_size(rates: dict[int, float], size: float) -> float:
    """The best rate measured on arrays of about `size` or more: rather too high than too low, so that a floor is one."""
    least = max((key for key in rates if key <= size), default=min(rates))
    return max(rate for key, rate in rates.items() if key >= least)
