"""Memory policy of the process."""

from __future__ import annotations

import ctypes
import os

# Parameters of mallopt(3), and the variables by which users set them.
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
VARIABLES = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_")
LARGEST = 2**31 - 1  # bytes; the parameters are ints
ALWAYS_TAKEN = 2**25  # the most that older versions accept for M_MMAP_THRESHOLD


def keep_freed_memory() -> bool:
    """Let the C library keep memory that is freed for the next that asks, instead of handing it back to the system.

    A training step allocates a hundred megabytes and frees them again, among them the gradients of the encoders' tables. Fresh
    from the system, every page is mapped and zeroed at its first touch, thousands of times per step: a fifth of its time.

    Returns whether it was done: other C libraries than glibc have no such switch, and what the user has set in the
    environment stays. Versions of glibc that do not accept more keep blocks of up to 32 MiB.
    """
    if any(name in os.environ for name in VARIABLES):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if os.name == "posix" else None
    if mallopt is None:
        return False
    # Left alone, the library raises both as it goes, but only so far that blocks of more than 32 MiB always go back.
    kept = mallopt(M_MMAP_THRESHOLD, LARGEST // 2) or mallopt(M_MMAP_THRESHOLD, ALWAYS_TAKEN)
    return bool(kept) and bool(mallopt(M_TRIM_THRESHOLD, LARGEST))
