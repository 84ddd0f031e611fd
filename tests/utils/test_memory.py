"""Freed memory stays with the process: asking for it again maps no new pages."""

import ctypes
import os
import subprocess
import sys

import pytest

from nsr.utils.memory import VARIABLES

FAULTS = """
import resource
from nsr.utils.memory import keep_freed_memory
{before}
def faults_of_a_new_block():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    blocks = [bytearray(30_000_000) for _ in range(6)]  # in all more than glibc keeps by itself
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
faults_of_a_new_block()
print(keep, faults_of_a_new_block())
"""


def kept_and_faults(before: str, **environment: str) -> tuple[bool, int]:
    clean = {name: value for name, value in os.environ.items() if name not in VARIABLES}
    command = [sys.executable, "-c", FAULTS.format(before=before)]
    printed = subprocess.run(command, env={**clean, **environment}, capture_output=True, text=True, check=True).stdout
    keep, faults = printed.split()
    return keep == "True", int(faults)


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallopt"), reason="this C library has no mallopt")
def test_freed_memory_is_used_again():
    kept, faults = kept_and_faults("keep = keep_freed_memory()")
    assert kept
    _, without = kept_and_faults("keep = False")
    assert faults < 20 < without  # huge pages may make few of the latter


def test_what_the_user_set_stays():
    for name in VARIABLES:
        assert not kept_and_faults("keep = keep_freed_memory()", **{name: "65536"})[0]
