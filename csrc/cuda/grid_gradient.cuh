// The gradient of a hash grid's table on the GPU: a thread per point and level, with atomic additions.
#pragma once

#include "grid_cell.cuh"
#include "launch.cuh"

namespace nsr::cuda {

// Blocks of one level run together, so its part of the table stays in the cache.
inline dim3 points_by_levels(int64_t n, int levels) { return dim3(blocks_for(n), unsigned(levels)); }

template <typename T, typename Cotangents>
__global__ void scatter_kernel(HashGrid grid, int64_t n, const T* x, Cotangents cotangents, T* grad_table) {
  const int64_t i = thread_index();
  if (i >= n) return;
  const T point[3] = {x[3 * i], x[3 * i + 1], x[3 * i + 2]};
  scatter_level(grid, int(blockIdx.y), point, [&](int k) { return cotangents(i, k); },
                [&](int64_t place, T gradient) { atomicAdd(grad_table + place, gradient); });
}

// grad_table [entries, features], written whole; cotangents(i, k): of output k of point i.
template <typename T, typename Cotangents>
void scatter_to_table(void* stream, const HashGrid& grid, int64_t n, int64_t entries, const T* x,
                      const Cotangents& cotangents, T* grad_table) {
  cudaMemsetAsync(grad_table, 0, size_t(entries) * grid.features * sizeof(T), static_cast<cudaStream_t>(stream));
  launch(stream, points_by_levels(n, grid.active_levels), kThreads, 0, scatter_kernel<T, Cotangents>, grid, n, x,
         cotangents, grad_table);
}

}  // namespace nsr::cuda
