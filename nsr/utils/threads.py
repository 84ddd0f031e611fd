"""Thread policy of the process. To be set before torch is imported, so this module imports nothing heavy."""

from __future__ import annotations

import os

# OpenMP threads that spin while they wait steal the core from the thread they wait for, where cores are shared: on two of
# them a training step once took 694 ms with the default policy instead of 20. Threads that sleep at once have to be woken
# in each of the many parallel parts of a step, which cost a fifth of it. So they spin for a fraction of a millisecond.
THREAD_POLICY = {"OMP_WAIT_POLICY": "passive", "GOMP_SPINCOUNT": "30000"}


def set_thread_policy() -> None:
    """Let idle OpenMP threads sleep soon. What the user has set in the environment stays."""
    for name, value in THREAD_POLICY.items():
        os.environ.setdefault(name, value)
