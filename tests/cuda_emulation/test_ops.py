"""The tests of the ops, on the CUDA kernels: compiled for the CPU and run by the emulator beside this file.

What this shows: the arithmetic, the indices, the barriers and the shared memory of csrc/cuda/ are right. What it does not: that
a GPU takes the launches, and how fast it is; that is scripts/gpu_check.sh.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys

import pytest
from support.emulated_cuda import ROOT, VARIABLE, build_library

from nsr import _ext

LAUNCH = (ROOT / "csrc" / "kernels" / "launch.h").read_text()
LAUNCHED = set(re.findall(r"^void (\w+)\(", LAUNCH.split("namespace nsr::cuda")[0], re.MULTILINE))
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


def kernels_in(library):
    """The kernels that a shared library exports for the CPU."""
    listed = subprocess.run(["nm", "-DC", "--defined-only", str(library)], capture_output=True, text=True, check=True)
    return {line.split(" ", 2)[2].removeprefix("void ") for line in listed.stdout.splitlines() if " nsr::cpu::" in line}


def test_every_kernel_is_replaced(library):
    """One that is missing, or has other arguments, would be the CPU's, tested once more."""
    ours = {name for name in kernels_in(_ext.load()) if "lambda" not in name and "(" in name and name.startswith("nsr::cpu::")}
    called = {name for name in ours if name.split("<")[0].split("(")[0].removeprefix("nsr::cpu::") in LAUNCHED}
    assert len(called) >= 2 * len(LAUNCHED) - 1
    assert called <= kernels_in(library)


@pytest.mark.parametrize("name", FILES)
def test_the_tests_of_the_ops_pass(library, name):
    done = run_tests(library, f"tests/ops/{name}", "-k", "not opcheck and not 5000", "--show-capture=no")
    assert done.returncode == 0, (done.stdout + done.stderr)[-6000:]
    assert " passed" in done.stdout


def test_a_session_without_a_call_fails(library):
    done = run_tests(library, "tests/ops/test_sdf_network.py", "-k", "test_arguments_that_do_not_fit")
    assert done.returncode == 3, done.stdout + done.stderr
    assert "no call reached the emulated CUDA kernels" in done.stdout
