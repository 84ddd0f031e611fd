"""Steps that the host only asks for: recorded once as a CUDA graph and replayed, fed with numbers and read without a wait.

A small step is hundreds of kernels, which a GPU runs faster than Python launches them. A graph launches them at once.
What a graph replays is what was recorded, with the memory and the numbers of then: so all that changes from step to step is in
tensors that stay where they are, and what cannot be in tensors, as the number of rays, begins a new recording.
"""

from __future__ import annotations

import warnings
from collections import deque
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Generic, NamedTuple, TypeVar

import torch
from torch import Tensor

from nsr.training.guards import HalfStep, is_out_of_memory

T = TypeVar("T")


class StepGraph(Generic[T]):
    """Runs a step's work: from a graph of it where that is possible, else as it is.

    The work may read and write tensors that stay where they are, draw from `generators`, and return tensors, which the next
    run overwrites. It must not wait for the device. Everything of one kind of work (`key`) has the same shapes.

    recordings: how many graphs there have been; failure: why there will be no more, None while there may be.
    """

    def __init__(self, device: torch.device, generators: Sequence[torch.Generator], enabled: bool) -> None:
        self.device = device
        self.generators = tuple(generators)
        self.enabled = enabled
        self.recordings = 0
        self.failure: str | None = None
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._key: Hashable = None
        self._too_large: Hashable = None
        self._graph: torch.cuda.CUDAGraph | None = None
        self._result: T | None = None

    def run(self, key: Hashable, work: Callable[[], T]) -> T:
        """The first time for a key as it is, the second time recording it, and then from the record.

        Work that there is no memory to record runs as it is. A recording that fails for another reason is the last one:
        everything runs as it is from then on, after one warning.
        """
        if not self.enabled or key != self._key:
            # As it is: what libraries allocate and choose on first use, and optimisers' states, do not belong into a graph.
            self._key, self._result = key, None
            return work()
        if self._result is None and key != self._too_large:
            self._try_to_record(key, work)
        if self._result is None:
            return work()
        self._graph.replay()
        return self._result

    def _try_to_record(self, key: Hashable, work: Callable[[], T]) -> None:
        states = [generator.get_state() for generator in self.generators]
        try:
            self._graph, self._result = self._record(work)
        except (MemoryError, RuntimeError, HalfStep) as error:
            self.release()
            self._key, out_of_memory, why = key, is_out_of_memory(error), str(error)
        else:
            self.recordings += 1
            return
        # Recording has changed nothing but, where it broke off, the generators: they may still believe that it goes on.
        for generator, state in zip(self.generators, states, strict=True):
            fresh = torch.Generator(generator.device)
            fresh.set_state(state)
            generator.graphsafe_set_state(fresh)
        if out_of_memory:
            self._too_large = key
            return
        self.enabled, self.failure = False, why
        told = f"nsr: the training step could not be recorded as a CUDA graph and runs without, slower: {why}"
        warnings.warn(told, stacklevel=2)

    def release(self) -> bool:
        """Give back the memory of the graph, whose tensors are not those of the next step. Whether there was one."""
        had = self._graph is not None
        self._key, self._graph, self._result = None, None, None
        if had and self.device.type == "cuda":
            torch.cuda.empty_cache()
        return had

    @contextmanager
    def stream(self) -> Iterator[None]:
        """Everything that goes with the steps runs in here, on one stream.

        The default stream cannot be recorded, and autograd adds up gradients on the stream that first needed a parameter.
        """
        if self._stream is None:
            yield
            return
        outside = torch.cuda.current_stream(self.device)
        self._stream.wait_stream(outside)
        try:
            with torch.cuda.stream(self._stream):
                yield
        finally:
            outside.wait_stream(self._stream)

    def _record(self, work: Callable[[], T]) -> tuple[torch.cuda.CUDAGraph, T]:
        """A graph of the work, which recording does not run, and what its replays write their results to."""
        graph = torch.cuda.CUDAGraph()
        for generator in self.generators:
            graph.register_generator_state(generator)
        # The memory of the graph before serves this one. That graph must live until then, and is not replayed again.
        graph.capture_begin(pool=self._graph.pool() if self._graph is not None else None, capture_error_mode="thread_local")
        try:
            result = work()
        except BaseException:
            with suppress(RuntimeError):  # that the recording is void: the error above says why
                graph.capture_end()
            raise
        graph.capture_end()
        return graph, result


class StepNumbers:
    """Numbers that change from step to step, where a recorded step finds them: in one tensor that stays where it is."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._values: Tensor | None = None

    def put(self, numbers: Sequence[float]) -> Tensor:
        """float64 [len(numbers)], on the device, the same tensor at every call. The copy does not wait."""
        if self._values is None:
            self._values = torch.zeros(len(numbers), dtype=torch.float64, device=self.device)
        pinned = self.device.type == "cuda"
        self._values.copy_(torch.tensor(numbers, dtype=torch.float64, pin_memory=pinned), non_blocking=pinned)
        return self._values


class _OnTheWay(NamedTuple):
    names: tuple[str, ...]
    values: Tensor  # on the host
    arrived: torch.cuda.Event


class Readback:
    """Brings the losses of steps to the host: those of a GPU one step late, so that it has a step to do meanwhile."""

    def __init__(self) -> None:
        self._on_the_way: deque[_OnTheWay] = deque()
        self._any = False

    def __call__(self, names: tuple[str, ...], values: Tensor, wait: bool = False) -> list[dict[str, float]]:
        """Send the values [len(names)] of a step; those by name that have come since the last call, the oldest first.

        wait: for those of this very step. So does the first call.
        """
        if values.device.type != "cuda":
            return [dict(zip(names, values.tolist(), strict=True))]
        on_host = torch.empty(values.shape, dtype=values.dtype, pin_memory=True)
        on_host.copy_(values, non_blocking=True)
        arrived = torch.cuda.Event()
        arrived.record()
        self._on_the_way.append(_OnTheWay(names, on_host, arrived))
        come = self.come(leave=0 if wait or not self._any else 1)
        self._any = True
        return come

    def come(self, leave: int = 0) -> list[dict[str, float]]:
        """Wait for all but the last `leave`."""
        come = []
        while len(self._on_the_way) > leave:
            names, values, arrived = self._on_the_way.popleft()
            arrived.synchronize()
            come.append(dict(zip(names, values.tolist(), strict=True)))
        return come
