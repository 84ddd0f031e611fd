"""Source distributions: they hold all that a wheel is built from, and the wheel works away from the repository."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PARTS = ("setup.py", "pyproject.toml", "MANIFEST.in", "README.md", "LICENSE", "nsr", "csrc", "confs")


def call(command: list, folder: Path, **environment: str) -> str:
    """A program's output; its own words when it fails."""
    done = subprocess.run([*map(str, command)], cwd=folder, env={**os.environ, **environment}, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def sdist(tmp_path_factory) -> Path:
    """The source distribution of this checkout, unpacked."""
    folder = tmp_path_factory.mktemp("sdist")
    checkout = folder / "checkout"
    checkout.mkdir()
    unbuilt = shutil.ignore_patterns("*.so", "__pycache__")
    for name in PARTS:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, checkout / name, ignore=unbuilt)
        else:
            shutil.copy(source, checkout)
    call([sys.executable, "setup.py", "-q", "sdist", "--formats=tar", "--dist-dir", folder], checkout)
    (archive,) = folder.glob("nsr-*.tar")
    with tarfile.open(archive) as file:
        file.extractall(folder, filter="data")
    return archive.with_suffix("")


def test_an_sdist_holds_the_kernels_and_the_configurations(sdist):
    for folder in ("csrc", "confs", "nsr"):
        files = {path.relative_to(ROOT) for path in (ROOT / folder).rglob("*.*") if path.is_file()}
        files = {path for path in files if path.suffix not in (".so", ".pyc")}
        assert len(files) > 5
        assert [path for path in sorted(files) if not (sdist / path).is_file()] == []


@pytest.mark.slow
def test_a_wheel_of_the_sdist_works_without_the_repository(sdist, tmp_path):
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    call([*pip, "wheel", "--no-build-isolation", "--no-deps", "--wheel-dir", tmp_path, sdist], tmp_path)
    (wheel,) = tmp_path.glob("nsr-*.whl")
    site = tmp_path / "site"
    call([*pip, "install", "--no-deps", "--target", site, wheel], tmp_path)
    code = "from nsr import _ext; from nsr.config import find_conf; print(_ext.load(), find_conf('instant'), sep='\\n')"
    library, conf = map(Path, call([sys.executable, "-c", code], tmp_path, PYTHONPATH=str(site)).split())
    assert library.parent == site / "nsr"
    assert conf == site / "nsr" / "confs" / "instant.conf"
