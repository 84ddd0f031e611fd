// Launches, by the runtime's function rather than by <<<...>>>: so the tests can run the same sources without a GPU
// (tests/cuda_emulation).
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

// Of the running block: as many bytes as its launch asks for.
extern __shared__ unsigned char nsr_dynamic_shared[];

namespace nsr::cuda {

constexpr unsigned kThreads = 256;

__device__ inline int64_t thread_index() { return int64_t(blockIdx.x) * blockDim.x + threadIdx.x; }

inline unsigned blocks_for(int64_t items) { return unsigned((items + kThreads - 1) / kThreads); }

// Errors of a launch surface in torch's next check of the stream.
template <typename... Parameters, typename... Arguments>
void launch(void* stream, dim3 blocks, unsigned threads, size_t shared_bytes, void (*kernel)(Parameters...),
            const Arguments&... arguments) {
  if (blocks.x == 0 || blocks.y == 0) return;
  cudaLaunchConfig_t config = {};
  config.gridDim = blocks;
  config.blockDim = dim3(threads);
  config.dynamicSmemBytes = shared_bytes;
  config.stream = static_cast<cudaStream_t>(stream);
  cudaLaunchKernelEx(&config, kernel, static_cast<Parameters>(arguments)...);
}

// One thread per item.
template <typename... Parameters, typename... Arguments>
void launch_items(void* stream, int64_t items, void (*kernel)(Parameters...), const Arguments&... arguments) {
  launch(stream, dim3(blocks_for(items)), kThreads, 0, kernel, arguments...);
}

}  // namespace nsr::cuda
