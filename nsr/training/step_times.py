"""Where the time of a training step goes, for the log."""

from __future__ import annotations

import time

import torch

PARTS = ("draw", "forward", "losses", "backward", "optimisers")


class StepTimes:
    """Milliseconds of the parts of steps: pixels and rays drawn; traced, networks evaluated; losses; backward; optimisers.

    On the CPU every step is timed, by the clock. On a GPU its own events tell, which a recorded step sets in every replay: the
    times of the last step that `read` has waited for.
    """

    def __init__(self, device: torch.device) -> None:
        self._events: list[torch.cuda.Event] = []
        if device.type == "cuda":
            # external: a node of a recorded graph, whose time can be read, not only an order of its branches.
            self._events = [torch.cuda.Event(enable_timing=True, external=True) for _ in range(len(PARTS) + 1)]
        self._seconds = [0.0] * len(PARTS)
        self._steps = 0
        self._next = 0
        self._last = 0.0

    def begin(self) -> None:
        """A step begins."""
        self._next = 0
        self._mark()
        self._steps += not self._events

    def end(self, part: str) -> None:
        """A part ends, and with it begins the one after."""
        if PARTS[self._next] != part:
            raise ValueError(f"StepTimes: {part} ends; expected the end of {PARTS[self._next]}")
        self._next += 1
        self._mark()

    def _mark(self) -> None:
        if self._events:
            self._events[self._next].record()
            return
        now = time.perf_counter()
        if self._next:
            self._seconds[self._next - 1] += now - self._last
        self._last = now

    def read(self) -> None:
        """Take the times of a step of a GPU that the host has waited for."""
        if self._events:
            pairs = zip(self._events[:-1], self._events[1:], strict=True)
            self._seconds = [total + 1e-3 * a.elapsed_time(b) for total, (a, b) in zip(self._seconds, pairs, strict=True)]
            self._steps += 1

    def take(self) -> dict[str, float]:
        """Mean milliseconds of each part over the steps timed since the last call; empty where there are none."""
        if not self._steps:
            return {}
        means = {part: 1e3 * seconds / self._steps for part, seconds in zip(PARTS, self._seconds, strict=True)}
        self._seconds, self._steps = [0.0] * len(PARTS), 0
        return means
