"""The house rules that a machine can check: who may import whom, how long a file may be, what `import nsr` costs."""

from __future__ import annotations

import ast
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
MAX_LINES = 400
FEWER = {"nsr/training/trainer.py": 365}  # docs/architecture.md says why it is not 300

# A module of the package on the left may import, of nsr, itself, what stands on the right, and EVERYWHERE.
# The table of docs/architecture.md.
EVERYWHERE = {"types", "config", "utils"}
DATA_AND_MODELS = {"models", "datasets", "priors", "evaluation"}
BELOW_APPS = {"training", "encoders", "ops", "geometry", "faces", "_ext"} | DATA_AND_MODELS
MAY_IMPORT = {
    "apps": BELOW_APPS,
    "viewer": BELOW_APPS,
    "training": DATA_AND_MODELS | {"encoders", "geometry", "ops", "_ext"},
    "priors": {"models", "geometry", "faces"},
    "faces": {"ops", "geometry"},
    "evaluation": {"geometry", "ops"},
    "models": {"encoders", "ops", "geometry"},
    "encoders": {"ops"},
    "datasets": {"geometry"},
    "geometry": {"ops"},
    "ops": {"_ext"},
    "_ext": set(),
    "types": set(),
    "config": set(),
    "utils": set(),
}
# Slow to load, and needed by few: imported in the function that needs them, or in a file that only their users import.
HEAVY = {"skimage", "trimesh", "igl", "embreex", "tensorboard", "scipy", "pyhocon", "imageio", "lpips", "rich"}
HEAVY |= {"matplotlib", "plotly"}


def python_files() -> list[Path]:
    return sorted((ROOT / "nsr").rglob("*.py"))


def imported_modules(tree: ast.AST, module: str) -> Iterator[tuple[str, int]]:
    """Dotted names of everything a file imports, at any depth, with line numbers."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            package = module.split(".")[: -node.level] if node.level else []
            base = ".".join([*package, *([node.module] if node.module else [])])
            # `from nsr import config` imports nsr.config
            yield from ((f"{base}.{alias.name}" if base == "nsr" else base, node.lineno) for alias in node.names)


def house(name: str) -> str | None:
    """The part of nsr that a dotted name belongs to: 'ops' for nsr.ops.hash_grid; None outside nsr."""
    parts = name.split(".")
    return parts[1] if parts[0] == "nsr" and len(parts) > 1 and not parts[1].startswith("__") else None


def forbidden_imports(source: str, module: str) -> list[str]:
    here = house(module)
    allowed = MAY_IMPORT[here] | EVERYWHERE | {here} if here else EVERYWHERE
    wrong = []
    for name, line in imported_modules(ast.parse(source), module):
        there = house(name)
        if there is not None and there not in allowed:
            wrong.append(f"line {line}: {module} imports {name}")
    return wrong


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts)


@pytest.mark.parametrize("path", python_files(), ids=module_name)
def test_imports_follow_the_table(path):
    assert forbidden_imports(path.read_text(encoding="utf-8"), module_name(path)) == []


@pytest.mark.parametrize(
    "line",
    [
        "from nsr.training.run import load_run",
        "import nsr.models.idr",
        "from nsr import apps",
        "from ..models import idr",
        "def f():\n    from nsr.encoders import registry",
    ],
)
def test_the_check_notices(line):
    assert forbidden_imports(line, "nsr.geometry.cameras")


def test_the_check_allows():
    source = "import torch\nfrom nsr import __version__\nfrom nsr.types import Rays\nfrom nsr.geometry import poses"
    assert not forbidden_imports(source, "nsr.geometry.cameras")


def test_every_package_has_its_row():
    packages = {path.parent.name for path in (ROOT / "nsr").glob("*/__init__.py")}
    assert packages <= set(MAY_IMPORT)


def test_no_file_grows_beyond_reading():
    folders = ("nsr", "csrc", "tests", "benchmarks", "scripts")
    suffixes = (".py", ".h", ".cpp", ".cu", ".sh")
    files = [path for folder in folders for path in (ROOT / folder).rglob("*") if path.suffix in suffixes]
    lines = {str(path.relative_to(ROOT)): len(path.read_text(encoding="utf-8").splitlines()) for path in files}
    assert {name: count for name, count in lines.items() if count > FEWER.get(name, MAX_LINES)} == {}
    assert FEWER.keys() <= lines.keys()


def run_python(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True, timeout=60).stdout


def test_importing_nsr_is_free():
    started = time.perf_counter()
    loaded = run_python("import sys, nsr; print(*sys.modules)").split()
    assert time.perf_counter() - started < 1.0
    assert not {"torch", "numpy", "nsr._ext"} & set(loaded)


def test_importing_a_package_loads_no_native_code():
    code = (
        "import nsr.ops, nsr.ops.hash_grid, nsr._ext\n"
        "print(nsr._ext._loaded, any('/_C' in line and 'nsr' in line for line in open('/proc/self/maps')))"
    )
    assert run_python(code).split() == ["None", "False"]


@pytest.mark.parametrize(
    "arguments", [["--help"], ["mesh", "--help"], ["train", "--help"], ["data", "--help"], ["plot", "--help"]]
)
def test_help_needs_no_torch_and_no_patience(arguments):
    code = (
        "import sys, contextlib\n"
        "from nsr.apps.main import main\n"
        f"with contextlib.suppress(SystemExit): main({arguments!r})\n"
        "print('torch' in sys.modules)"
    )
    started = time.perf_counter()
    assert run_python(code).split()[-1] == "False"
    assert time.perf_counter() - started < 1.0


def test_opening_a_run_loads_no_heavy_package():
    code = "import sys, nsr.training.run, nsr.training.results, nsr.training.trainer; print(*sys.modules)"
    assert not HEAVY & set(run_python(code).split())
