// The gradient of a hash grid's table on the GPU: a thread per point and level, with atomic additions.
//
// Additions of floating-point numbers depend on their order, which varies from run to run. Where the grid says
// `deterministic`, integers are added instead, multiples of a unit so small that the sum of all cannot overflow: the unit
// is the largest addend, divided by 2^61 and multiplied by the number of addends that an entry can have.
#pragma once

#include "grid_cell.cuh"
#include "launch.cuh"

namespace nsr::cuda {

// Blocks of one level run together, so its part of the table stays in the cache.
inline dim3 points_by_levels(int64_t n, int levels) { return dim3(blocks_for(n), unsigned(levels)); }

// Two's complement: sums of negative numbers come out right.
using FixedPoint = unsigned long long;

// The magnitude of the largest addend, as the bits of a double: for numbers that are not negative, they have its order.
using Magnitude = unsigned long long;

// Addends in one unit; zero where an addend is not finite.
__device__ __forceinline__ double units_per_one(Magnitude largest, int64_t addends) {
  const double bound = __longlong_as_double(static_cast<long long>(largest));
  if (!(bound < INFINITY)) return 0.0;
  int bits = 61;
  while (addends > 0) {
    addends /= 2;
    --bits;
  }
  const int exponent = bound > 0.0 ? bits - ilogb(bound) : 0;
  return ldexp(1.0, exponent < 1000 ? exponent : 1000);
}

// Adds to numbers that lie side by side, aligned to all of them.
template <typename T, int kCount>
__device__ __forceinline__ void add_to(T* at, const T (&addends)[kCount]) {
#pragma unroll
  for (int k = 0; k < kCount; ++k) atomicAdd(at + k, addends[k]);
}
#if NSR_SM >= 900  // these GPUs add several at once
__device__ __forceinline__ void add_to(float* at, const float (&addends)[2]) {
  atomicAdd(reinterpret_cast<float2*>(at), make_float2(addends[0], addends[1]));
}
__device__ __forceinline__ void add_to(float* at, const float (&addends)[4]) {
  atomicAdd(reinterpret_cast<float4*>(at), make_float4(addends[0], addends[1], addends[2], addends[3]));
}
#endif

template <typename T, typename Cotangents>
__global__ void scatter_kernel(HashGrid grid, int64_t n, const T* x, Cotangents cotangents, T* grad_table) {
  const int64_t i = thread_index();
  if (i >= n) return;
  const T point[3] = {x[3 * i], x[3 * i + 1], x[3 * i + 2]};
  scatter_level(grid, int(blockIdx.y), point, [&](int k) { return cotangents(i, k); },
                [&](int64_t place, const auto& gradients) { add_to(grad_table + place, gradients); });
}

template <typename T, typename Cotangents>
__global__ void largest_addend_kernel(HashGrid grid, int64_t n, const T* x, Cotangents cotangents, Magnitude* largest) {
  const int64_t i = thread_index();
  if (i >= n) return;
  const T point[3] = {x[3 * i], x[3 * i + 1], x[3 * i + 2]};
  Magnitude most = 0;
  scatter_level(grid, int(blockIdx.y), point, [&](int k) { return cotangents(i, k); },
                [&](int64_t, const auto& gradients) {
                  for (const T gradient : gradients) {
                    const auto bits = static_cast<Magnitude>(__double_as_longlong(fabs(double(gradient))));
                    most = bits > most ? bits : most;
                  }
                });
  if (most > 0) atomicMax(largest, most);
}

template <typename T, typename Cotangents>
__global__ void scatter_units_kernel(HashGrid grid, int64_t n, const T* x, Cotangents cotangents,
                                     const Magnitude* largest, FixedPoint* sums) {
  const int64_t i = thread_index();
  if (i >= n) return;
  const T point[3] = {x[3 * i], x[3 * i + 1], x[3 * i + 2]};
  const double units = units_per_one(*largest, 8 * n);
  if (units == 0.0) return;
  scatter_level(grid, int(blockIdx.y), point, [&](int k) { return cotangents(i, k); },
                [&](int64_t place, const auto& gradients) {
                  for (const T gradient : gradients)
                    atomicAdd(sums + place++, static_cast<FixedPoint>(llrint(double(gradient) * units)));
                });
}

// All NaN where an addend was not finite.
template <typename T>
__global__ void from_units_kernel(int64_t numbers, int64_t n, const Magnitude* largest, const FixedPoint* sums,
                                  T* grad_table) {
  const int64_t i = thread_index();
  if (i >= numbers) return;
  const double units = units_per_one(*largest, 8 * n);
  grad_table[i] = units == 0.0 ? T(NAN) : T(double(static_cast<long long>(sums[i])) / units);
}

// Bytes that scatter_to_table needs besides.
inline int64_t scatter_scratch(const HashGrid& grid, int64_t entries) {
  return grid.deterministic ? int64_t(sizeof(Magnitude)) + entries * grid.features * int64_t(sizeof(FixedPoint)) : 0;
}

// grad_table [entries, features], written whole; cotangents(i, k): of output k of point i.
template <typename T, typename Cotangents>
void scatter_to_table(void* stream, const HashGrid& grid, int64_t n, int64_t entries, const T* x,
                      const Cotangents& cotangents, T* grad_table, void* scratch) {
  const auto queue = static_cast<cudaStream_t>(stream);
  const int64_t numbers = entries * grid.features;
  const dim3 blocks = points_by_levels(n, grid.active_levels);
  if (!grid.deterministic) {
    cudaMemsetAsync(grad_table, 0, size_t(numbers) * sizeof(T), queue);
    launch(stream, blocks, kThreads, 0, scatter_kernel<T, Cotangents>, grid, n, x, cotangents, grad_table);
    return;
  }
  Magnitude* const largest = static_cast<Magnitude*>(scratch);
  FixedPoint* const sums = largest + 1;
  cudaMemsetAsync(scratch, 0, size_t(scatter_scratch(grid, entries)), queue);
  launch(stream, blocks, kThreads, 0, largest_addend_kernel<T, Cotangents>, grid, n, x, cotangents, largest);
  launch(stream, blocks, kThreads, 0, scatter_units_kernel<T, Cotangents>, grid, n, x, cotangents, largest, sums);
  launch_items(stream, numbers, from_units_kernel<T>, numbers, n, largest, sums, grad_table);
}

}  // namespace nsr::cuda
