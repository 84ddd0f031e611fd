"""The emulator sees the mistakes that it is there to see."""

from __future__ import annotations

import subprocess

import pytest
from support.emulated_cuda import ROOT, SHIM, compile_and_link

# A kernel of 64 threads, each with one number in shared memory; main prints the sums of neighbours that each has read.
PROGRAM = """
#include <cstdio>
#include "../../csrc/cuda/launch.cuh"
__global__ void kernel(float* out) {
  float* const shared = reinterpret_cast<float*>(nsr_dynamic_shared);
  const int i = int(threadIdx.x), next = (i + 1) % int(blockDim.x);
  BODY
}
int main() {
  float out[64] = {};
  float* const to = out;
  nsr::cuda::launch(nullptr, dim3(1), 64, 64 * sizeof(float), kernel, to);
  for (float value : out) std::printf("%g ", value);
}
"""
RIGHT = "shared[i] = float(i); __syncthreads(); out[i] = shared[i] + shared[next];"


@pytest.fixture
def run(tmp_path):
    def run(body):
        source = tmp_path / "program.cpp"
        source.write_text(PROGRAM.replace("../../csrc", str(ROOT / "csrc")).replace("BODY", body))
        compile_and_link([source, SHIM / "emulator.cpp"], tmp_path / "program")
        return subprocess.run([tmp_path / "program"], capture_output=True, text=True)

    return run


def test_barriers_hold(run):
    done = run(RIGHT)
    assert done.returncode == 0, done.stderr
    assert [float(value) for value in done.stdout.split()] == [i + (i + 1) % 64 for i in range(64)]


def test_warps_exchange_values(run):
    done = run("out[i] = __shfl_xor_sync(0xffffffffu, float(i), 1) + 100 * (__ballot_sync(0xffffffffu, i % 32 < 2) == 3u);")
    assert [float(value) for value in done.stdout.split()] == [(i ^ 1) + 100 for i in range(64)]


def test_a_missing_barrier_is_seen(run):
    done = run(RIGHT.replace("__syncthreads();", ""))
    assert "nan" in done.stdout  # read before it was written


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (f"if (i < 3) return; {RIGHT}", "others of the block or warp do not reach"),
        ("if (i % 2) __syncwarp(); out[i] = 0;", "others of the block or warp do not reach"),
        ("shared[i + 1] = 1; out[i] = 0;", "behind the shared memory"),
    ],
    ids=["barrier that some do not reach", "warp operation that some do not reach", "write behind the shared memory"],
)
def test_mistakes_end_the_process(run, body, message):
    done = run(body)
    assert done.returncode != 0
    assert message in done.stderr
