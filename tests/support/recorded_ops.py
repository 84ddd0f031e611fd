"""What a CUDA graph does, on the CPU: records the operations of torch that some work consists of, and runs them again.

As a graph it keeps the arguments of every operation: numbers as they were, tensors from outside by where they are, and those
made on the way as what the replay makes. As a graph's recording it changes nothing. So a value that the host works out anew for
every step, and a tensor that is replaced by another one, show in what replays compute.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map


class RecordedOps(TorchDispatchMode):
    """Records within a `with` block; then replay() runs it again and writes into the tensors that the block has made."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list = []
        self._made: dict[int, Tensor] = {}  # by id, kept alive
        self._before: dict[int, tuple[Tensor, Tensor]] = {}  # storages from outside that were written, as they were
        self._generators: dict[int, tuple[torch.Generator, Tensor]] = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        for argument, value in zip(func._schema.arguments, args, strict=False):
            self._keep_what_changes(argument, value)
        for argument in func._schema.arguments:
            if argument.name in kwargs:
                self._keep_what_changes(argument, kwargs[argument.name])
        result = func(*args, **kwargs)
        self.calls.append((func, args, kwargs, result))
        for tensor in _tensors(result):
            self._made[id(tensor)] = tensor
        return result

    def _keep_what_changes(self, argument, value) -> None:
        if isinstance(value, torch.Generator):
            self._generators.setdefault(id(value), (value, value.get_state()))
        if argument.alias_info is None or not argument.alias_info.is_write:
            return
        for tensor in _tensors(value):
            storage = tensor.untyped_storage()
            whole = torch.empty(0, dtype=torch.uint8).set_(storage)
            self._before.setdefault(storage.data_ptr(), (whole, whole.clone()))

    def __exit__(self, *error) -> None:
        super().__exit__(*error)
        for whole, before in self._before.values():
            whole.copy_(before)
        for generator, state in self._generators.values():
            generator.set_state(state)

    @torch.no_grad()
    def replay(self) -> None:
        now: dict[int, Tensor] = {}

        def current(value):
            return now.get(id(value), value) if isinstance(value, Tensor) else value

        for func, args, kwargs, recorded in self.calls:
            result = func(*tree_map(current, args), **tree_map(current, kwargs))
            for then, new in zip(_tensors(recorded), _tensors(result), strict=True):
                now[id(then)] = new
        for key, new in now.items():
            if new.is_contiguous() and new.data_ptr() != self._made[key].data_ptr():
                self._made[key].detach().copy_(new)


def _tensors(value) -> list[Tensor]:
    return [leaf for leaf in tree_flatten(value)[0] if isinstance(leaf, Tensor)]


def record_ops(work):
    """In place of StepGraph._record."""
    with RecordedOps() as recording:
        result = work()
    return recording, result
