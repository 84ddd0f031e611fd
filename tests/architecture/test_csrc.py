"""The layers of csrc/: the maths knows no torch and no compiler, torch stops at its own folder."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

CSRC = Path(__file__).resolve().parents[2] / "csrc"
SUFFIXES = (".h", ".cuh", ".cpp", ".cu")
INCLUDE = re.compile(r'^\s*#\s*include\s*(<[^>]+>|"[^"]+")', re.MULTILINE)
KERNEL_HEADERS = {"<cstdint>", "<cmath>"}
TORCH = re.compile(r'[<"](torch|ATen|c10|caffe2)/')


def sources(folder: str) -> list[Path]:
    return sorted(path for path in (CSRC / folder).rglob("*") if path.suffix in SUFFIXES)


def includes(path: Path) -> list[str]:
    return INCLUDE.findall(path.read_text(encoding="utf-8"))


def included_file(path: Path, include: str) -> Path | None:
    """The file of csrc/ behind a quoted include, relative to the file or to csrc/; None when there is none."""
    candidates = [path.parent / include.strip('"'), CSRC / include.strip('"'), CSRC / "kernels" / include.strip('"')]
    return next((candidate.resolve() for candidate in candidates if candidate.is_file()), None)


def folder_of(path: Path) -> str:
    return path.relative_to(CSRC).parts[0]


def test_the_folders_hold_sources():
    assert all(sources(folder) for folder in ("kernels", "cpu", "cuda", "torch"))


@pytest.mark.parametrize("path", sources("kernels"), ids=lambda path: path.name)
def test_kernels_include_only_arithmetic_and_each_other(path):
    for include in includes(path):
        if include.startswith('"'):
            target = included_file(path, include)
            assert target is not None, f"{path.name}: {include} not found"
            assert folder_of(target) == "kernels"
        elif path.name != "launch.h":  # launch.h is an interface between layers, not maths
            assert include in KERNEL_HEADERS


@pytest.mark.parametrize("path", sources("kernels") + sources("cpu") + sources("cuda"), ids=lambda path: path.name)
def test_torch_stops_at_its_folder(path):
    assert not [include for include in includes(path) if TORCH.match(include)]
    assert not re.search(r"\b(at|torch|c10)::", strip_comments(path.read_text(encoding="utf-8")))


@pytest.mark.parametrize("path", sources("cpu") + sources("cuda"), ids=lambda path: path.name)
def test_devices_do_not_know_each_other(path):
    for include in includes(path):
        if include.startswith('"'):
            target = included_file(path, include)
            assert target is not None, f"{path.name}: {include} not found"
            assert folder_of(target) in {"kernels", folder_of(path)}


@pytest.mark.parametrize("path", sources("torch"), ids=lambda path: path.name)
def test_torch_sees_the_kernels_through_headers_only(path):
    for include in includes(path):
        if include.startswith('"'):
            target = included_file(path, include)
            assert target is not None, f"{path.name}: {include} not found"
            shared_pool = target == CSRC / "cpu" / "parallel.h"  # declared for cpu/, implemented on torch's threads
            assert shared_pool or folder_of(target) in {"kernels", "torch"}


def test_only_one_file_looks_at_the_compiler():
    macros = re.compile(r"__CUDACC__|__CUDA_ARCH__|__GNUC__|_MSC_VER|__clang__")
    looking = [path.name for path in sources("kernels") if macros.search(strip_comments(path.read_text()))]
    assert looking in (["hd.h"], [])


def strip_comments(text: str) -> str:
    return re.sub(r"//[^\n]*|/\*.*?\*/", "", text, flags=re.DOTALL)
