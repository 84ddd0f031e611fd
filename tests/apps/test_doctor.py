"""nsr doctor: says what there is, and ends with 6 when the extension cannot be used."""

from __future__ import annotations

import importlib.metadata
import os
import re
import tomllib
from pathlib import Path

import torch

from nsr import _ext
from nsr.apps import doctor
from nsr.apps.main import main


def test_a_working_installation(capsys, monkeypatch):
    report = _ext.build_report()
    code = main(["doctor"])
    text = capsys.readouterr().out
    assert code == (6 if report["error"] else 0)
    version = importlib.metadata.version("scikit-image")
    for expected in (torch.__version__, version, "OMP_WAIT_POLICY=", "nvcc", "lpips"):
        assert expected in text
    assert f"{len(os.sched_getaffinity(0))} usable cores" in text


def test_an_extension_that_does_not_load(capsys, monkeypatch):
    monkeypatch.setattr(_ext, "build_report", lambda: {"library": None, "error": "it was built for another torch"})
    assert main(["doctor"]) == 6
    text = capsys.readouterr().out
    assert "the extension is not usable: it was built for another torch" in text
    assert "nsr is ready" not in text


def test_a_missing_dependency(capsys, monkeypatch):
    monkeypatch.setattr(doctor, "DEPENDENCIES", (*doctor.DEPENDENCIES, "no-such-package"))
    assert main(["doctor"]) == 6
    assert "missing dependencies: no-such-package" in capsys.readouterr().out


def test_a_missing_extra_says_how_to_get_it(monkeypatch):
    monkeypatch.setattr(doctor, "EXTRAS", {"no_such_module": ("nothing", "pip install nothing"), "json": ("", "")})
    report = doctor.extras_report()
    assert report["no_such_module"] == "missing (nothing): pip install nothing"
    assert report["json"] == "installed"


def test_dependencies_are_those_of_the_package():
    project = tomllib.loads((Path(__file__).resolve().parents[2] / "pyproject.toml").read_text())["project"]
    assert {re.split(r"[<>=]", name)[0] for name in project["dependencies"]} == set(doctor.DEPENDENCIES)
