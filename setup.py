"""Builds nsr/_C*.so from csrc/: an ops library for torch, without Python bindings (metadata: pyproject.toml).

An installed package has a copy of confs/ in nsr/confs, where nsr.utils.hocon.find_conf looks.

Environment:
    NSR_CUDA=0|1     build without / insist on the CUDA kernels (default: when torch has CUDA and nvcc is found)
    NSR_CUDA_ARCHS   compute capabilities to build for, the last of them also as PTX (default: 80 90)
    NSR_ARCH_FLAGS   replaces the instruction-set flags (default: -march=x86-64-v3 where the CPU has AVX2 and FMA)
    MAX_JOBS         compilers at a time
"""

import os
import platform
import re
import shutil
from pathlib import Path

import torch
from setuptools import setup
from setuptools.command.build_py import build_py
from torch.utils.cpp_extension import CUDA_HOME, BuildExtension, CppExtension, CUDAExtension

ROOT = Path(__file__).resolve().parent
CUDA_ARCHITECTURES = "80 90"


def arch_flags() -> list[str]:
    if "NSR_ARCH_FLAGS" in os.environ:
        return os.environ["NSR_ARCH_FLAGS"].split()
    if platform.machine() != "x86_64" or not Path("/proc/cpuinfo").exists():
        return []
    flags = next((line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("flags")), "")
    return ["-march=x86-64-v3"] if {"avx2", "fma", "bmi2", "movbe"} <= set(flags.split()) else []


def with_cuda() -> bool:
    possible = torch.version.cuda is not None and CUDA_HOME is not None
    wanted = os.environ.get("NSR_CUDA", "1" if possible else "0")
    if wanted not in ("0", "1"):
        raise SystemExit(f"setup.py: NSR_CUDA is {wanted!r}, expected 0 or 1")
    if wanted == "1" and not possible:
        raise SystemExit(
            f"setup.py: NSR_CUDA=1, but torch {torch.__version__} was built for CUDA {torch.version.cuda} and "
            f"CUDA_HOME is {CUDA_HOME}. Install a CUDA build of torch and set CUDA_HOME, or unset NSR_CUDA."
        )
    return wanted == "1"


def cuda_architectures() -> list[str]:
    """Compute capabilities without a dot: "90" is 9.0."""
    archs = os.environ.get("NSR_CUDA_ARCHS", CUDA_ARCHITECTURES).split()
    if not archs or not all(re.fullmatch(r"\d{2,3}a?", arch) for arch in archs):
        raise SystemExit(f"setup.py: NSR_CUDA_ARCHS is {' '.join(archs)!r}, expected compute capabilities such as '80 90'")
    return archs


def extension():
    cuda = with_cuda()
    # -fopenmp lets at::parallel_for be inlined; nothing links libgomp, so torch's own runtime serves both (one pool).
    maths = ["-fno-math-errno", "-fno-trapping-math", "-ffp-contract=fast"]
    flags = ["-std=c++20", "-O3", *arch_flags(), "-fopenmp", *maths]
    macros = [("NSR_BUILD_FLAGS", f'"{" ".join(flags)}"')]
    compile_args = {"cxx": [*flags, "-g0", "-Wall", "-Wno-unknown-pragmas"]}
    sources = sorted([*ROOT.glob("csrc/cpu/*.cpp"), *ROOT.glob("csrc/torch/*.cpp")])
    if cuda:
        sources += sorted(ROOT.glob("csrc/cuda/*.cu"))
        macros += [("NSR_WITH_CUDA", None), ("NSR_CUDA_VERSION", f'"{torch.version.cuda}"')]
        archs = cuda_architectures()
        gencode = [f"-gencode=arch=compute_{a},code=sm_{a}" for a in archs]
        newest = archs[-1]
        compile_args["nvcc"] = ["-std=c++20", "-O3", *gencode, f"-gencode=arch=compute_{newest},code=compute_{newest}"]
    return (CUDAExtension if cuda else CppExtension)(
        name="nsr._C",
        sources=[str(path.relative_to(ROOT)) for path in sources],
        depends=[str(path.relative_to(ROOT)) for path in sorted([*ROOT.glob("csrc/**/*.h"), *ROOT.glob("csrc/**/*.cuh")])],
        define_macros=macros,
        extra_compile_args=compile_args,
        py_limited_api=True,
    )


class BuildWithConfs(build_py):
    def run(self):
        super().run()
        if not self.editable_mode:
            shutil.copytree(ROOT / "confs", Path(self.build_lib) / "nsr" / "confs", dirs_exist_ok=True)


setup(
    ext_modules=[extension()],
    cmdclass={"build_ext": BuildExtension.with_options(use_ninja=True), "build_py": BuildWithConfs},
)
