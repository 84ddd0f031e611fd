"""The programs of benchmarks/, which are no package: they import each other as they do when run."""

import importlib
from pathlib import Path

import pytest


@pytest.fixture
def program(monkeypatch):
    """Imports one of them by its name."""
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks"))
    return importlib.import_module
