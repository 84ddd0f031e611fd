// One thread per item.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>
#include <cstdio>

namespace nsr::cuda {

constexpr int kThreads = 256;

__device__ inline int64_t thread_index() { return int64_t(blockIdx.x) * blockDim.x + threadIdx.x; }

inline unsigned blocks_for(int64_t items) { return unsigned((items + kThreads - 1) / kThreads); }

}  // namespace nsr::cuda

// NSR_CUDA_LAUNCH(stream, items, kernel<T>, arguments...); launch errors surface in torch's next check of the stream.
#define NSR_CUDA_LAUNCH(stream, items, kernel, ...)                                                 \
  do {                                                                                              \
    const unsigned nsr_blocks = nsr::cuda::blocks_for(items);                                       \
    const auto nsr_stream = static_cast<cudaStream_t>(stream);                                      \
    if (nsr_blocks > 0) kernel<<<nsr_blocks, nsr::cuda::kThreads, 0, nsr_stream>>>(__VA_ARGS__);    \
  } while (false)
