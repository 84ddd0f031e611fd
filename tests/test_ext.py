"""Loading of the native library: lazy, one OpenMP runtime, and clear words when it is missing or damaged."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from nsr import _ext
from nsr.utils.errors import ConfigError, ExtensionError

PACKAGE = Path(_ext.__file__).parent


def run(code: str, package: Path = PACKAGE, backend: str | None = None) -> subprocess.CompletedProcess:
    """Python code in a process of its own, with the nsr of `package`."""
    environment = {**os.environ, "PYTHONPATH": str(package.parent)}
    environment.pop("NSR_BACKEND", None)
    if backend is not None:
        environment["NSR_BACKEND"] = backend
    command = [sys.executable, "-c", code]
    return subprocess.run(command, capture_output=True, text=True, env=environment, cwd="/", timeout=120)


@pytest.fixture
def package_copy(tmp_path) -> Path:
    """The Python files of nsr that the ops need, without the library."""
    copy = tmp_path / "nsr"
    shutil.copytree(PACKAGE, copy, ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    return copy


ENCODE = """
import torch, warnings
from nsr.ops.hash_grid import HashGridSpec, hash_grid
spec = HashGridSpec(2, 2, 2, 4, 8)
for _ in range(2):
    h = hash_grid(torch.zeros(3, 3), torch.ones(spec.table_entries, 2), spec)
print("sum", h.sum().item())
"""


def test_importing_loads_nothing():
    done = run("import sys, nsr._ext; print('torch' in sys.modules, nsr._ext._loaded)")
    assert done.stdout.split() == ["False", "None"], done.stderr


def test_native_library_loads_and_reports():
    report = _ext.build_report()
    assert report["error"] is None
    assert Path(report["library"]).is_file()
    assert re.match(r"\d+\.\d+", report["torch"])
    assert "-O3" in report["flags"]
    assert report["cuda"] is not None
    assert "fast-math" not in report["flags"]


def test_one_openmp_runtime():
    """A second OpenMP pool in the process would spin against torch's."""
    code = "import nsr._ext; nsr._ext.load(); print(open('/proc/self/maps').read())"
    if not Path("/proc/self/maps").exists():
        pytest.skip("lists the libraries of a process through /proc, which this system lacks")
    done = run(code)
    runtimes = {Path(path).name for path in re.findall(r"/\S*lib(?:gomp|omp|iomp5)[-.]\S*", done.stdout)}
    assert len(runtimes) <= 1, runtimes
    assert "_C" in done.stdout


def test_without_the_library_one_warning_and_the_reference(package_copy):
    done = run(ENCODE, package_copy)
    assert done.returncode == 0, done.stderr
    assert "sum 12.0" in done.stdout
    assert done.stderr.count("RuntimeWarning") == 1
    assert "make setup" in done.stderr


def test_without_the_library_native_is_an_error(package_copy):
    done = run(ENCODE, package_copy, backend="native")
    assert done.returncode != 0
    last = done.stderr.strip().splitlines()[-1]
    assert "ExtensionError" in last
    assert str(package_copy) in last
    assert "make setup" in last


def test_reference_does_not_need_the_library(package_copy):
    done = run(ENCODE, package_copy, backend="reference")
    assert done.returncode == 0, done.stderr
    assert "sum 12.0" in done.stdout
    assert "Warning" not in done.stderr


def test_a_damaged_library_says_so(package_copy):
    (package_copy / "_C.abi3.so").write_bytes(b"not a library")
    done = run(ENCODE, package_copy, backend="native")
    assert done.returncode != 0
    assert "_C.abi3.so is damaged or was built for another torch" in done.stderr
    report = run("from nsr import _ext; print(_ext.build_report()['error'])", package_copy)
    assert "damaged" in report.stdout


@pytest.mark.parametrize(("kind", "built", "served"), [("cuda", "no", False), ("cuda", "12.8", True), ("mps", "12.8", False)])
def test_a_device_without_kernels_is_refused_unless_plain_pytorch_serves_it(kind, built, served, monkeypatch):
    monkeypatch.setattr(_ext, "backend", lambda: "native")
    monkeypatch.setattr(_ext, "build_report", lambda: {"library": "/x/_C.so", "cuda": built})
    _ext.check_device_served("cpu")
    if served:
        _ext.check_device_served(kind)
    else:
        with pytest.raises(ExtensionError, match=f"_C.so has no kernels for {kind}.*--device cpu.*NSR_BACKEND=reference"):
            _ext.check_device_served(kind)
    monkeypatch.setattr(_ext, "backend", lambda: "reference")
    _ext.check_device_served(kind)


def test_an_unknown_backend_is_a_configuration_error(monkeypatch):
    monkeypatch.setenv("NSR_BACKEND", "cuda")
    with pytest.raises(ConfigError, match="'native', 'reference'"):
        _ext.backend()
