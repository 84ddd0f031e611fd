"""Guards of the training loop: losses that are not finite, memory that runs out, signals that ask to stop."""

from __future__ import annotations

import math
import os
import signal
import threading
from collections.abc import Mapping
from types import FrameType, TracebackType

import torch

from nsr.utils.errors import TrainingError
from nsr.utils.supervisor import SUPERVISOR, heeded


def non_finite(losses: Mapping[str, float | torch.Tensor]) -> list[str]:
    """The names of the scalar losses that are NaN or infinite."""
    return [name for name, value in losses.items() if not math.isfinite(float(value))]


def finite_or_raise(losses: Mapping[str, float | torch.Tensor], where: str = "training") -> None:
    """TrainingError that shows every loss when one of them is NaN or infinite."""
    bad = non_finite(losses)
    if bad:
        shown = ", ".join(f"{name} = {float(value):.4g}" for name, value in losses.items())
        raise TrainingError(
            f"{where}: expected finite losses, got {shown}. Lower the learning rates, or look at the data with `nsr data check`"
        )


class BadStepGuard:
    """Counts steps whose losses are not finite, which change nothing; gives up after `patience` of them in a row."""

    def __init__(self, patience: int) -> None:
        if patience < 1:
            raise ValueError(f"patience must be at least 1, got {patience}")
        self.patience = patience
        self.in_a_row = 0
        self.total = 0

    def note(self, losses: Mapping[str, float | torch.Tensor]) -> bool:
        """Of the losses of a step; whether they are finite. Raises TrainingError at the last bad step that patience allows."""
        if not non_finite(losses):
            self.in_a_row = 0
            return True
        self.in_a_row += 1
        self.total += 1
        if self.in_a_row >= self.patience:
            finite_or_raise(losses, where=f"training, {self.in_a_row} bad steps in a row")
        return False

    def state_dict(self) -> dict[str, int]:
        return {"in_a_row": self.in_a_row, "total": self.total}

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        self.in_a_row, self.total = state["in_a_row"], state["total"]


class HalfStep(Exception):
    """Memory ran out while the optimisers were at it."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception means that memory ran out: of the GPU, of torch's CPU allocator, or of Python."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError | HalfStep):
        return True
    # The CPU allocator raises a plain RuntimeError; so do CUDA libraries that fail to allocate their workspace, our kernels
    # (std::bad_alloc), and Python where a thread's stack has no place. A library that has none cannot be imported.
    texts = ("not enough memory", "can't allocate memory", "out of memory", "_ALLOC_FAILED", "bad_alloc")
    texts += ("can't start new thread", "failed to map segment")
    return isinstance(error, RuntimeError | ImportError) and any(text in str(error) for text in texts)


class TerminationSignal:
    """Turns SIGTERM, SIGINT and SIGHUP into a flag, so that the loop can finish its step, save and end with exit code 75. The
    end of the process that supervises this one (nsr.utils.supervisor) counts as one.

        with TerminationSignal() as signal:
            while not signal.requested: ...

    requested: a signal has come; name: which ("SIGTERM"). A second signal of a kind acts as it did before the block, so
    that an impatient Ctrl-C still ends the program. Outside the main thread, where Python allows no handlers, it never
    fires.
    """

    def __init__(self) -> None:
        self.name: str | None = None
        supervisor = os.environ.get(SUPERVISOR)
        # On Windows the parent may be the launcher of a virtual environment.
        self._supervisor = int(supervisor) if supervisor is not None and os.name != "nt" else None
        self._previous: dict[int, object] = {}

    @property
    def requested(self) -> bool:
        if self.name is None and self._supervisor not in (None, os.getppid()):
            self.name = "the end of its supervisor"
        return self.name is not None

    def __enter__(self) -> TerminationSignal:
        if threading.current_thread() is threading.main_thread():
            self._previous = {number: signal.signal(number, self._handle) for number in heeded()}
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for number in list(self._previous):
            self._restore(number)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self.name = signal.Signals(number).name
        self._restore(number)

    def _restore(self, number: int) -> None:
        previous = self._previous.pop(number, None)
        signal.signal(number, signal.SIG_DFL if previous is None else previous)
