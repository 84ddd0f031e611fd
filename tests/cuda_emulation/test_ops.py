"""The tests of the ops, on the CUDA kernels: compiled for the CPU and run by the emulator beside this file.

What this shows: the arithmetic, the indices, the barriers and the shared memory of csrc/cuda/ are right. What it does not: that
a GPU takes the launches, and how fast it is; that is scripts/gpu_check.sh.
"""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from support.emulated_cuda import ROOT, VARIABLE, build_library

FILES = sorted(path.name for path in (ROOT / "tests" / "ops").glob("test_*.py"))


@pytest.fixture(scope="module")
def library():
    return build_library()


def run_tests(library, *arguments):
    command = [sys.executable, "-m", "pytest", "-q", "--no-header", "-p", "support.emulated_cuda", "-p", "no:cacheprovider"]
    paths = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    environment = os.environ | {VARIABLE: str(library), "PYTHONPATH": paths, "NSR_TYPECHECK": "0"}
    environment.pop("PYTEST_ADDOPTS", None)
    return subprocess.run([*command, *arguments], cwd=ROOT, env=environment, capture_output=True, text=True)


@pytest.mark.parametrize("name", FILES)
def test_the_tests_of_the_ops_pass(library, name):
    done = run_tests(library, f"tests/ops/{name}", "-k", "not opcheck", "--show-capture=no")
    assert done.returncode == 0, (done.stdout + done.stderr)[-6000:]
    assert " passed" in done.stdout


def test_a_session_without_a_call_fails(library):
    done = run_tests(library, "tests/ops/test_sdf_network.py", "-k", "test_arguments_that_do_not_fit")
    assert done.returncode == 3, done.stdout + done.stderr
    assert "no call reached the emulated CUDA kernels" in done.stdout
