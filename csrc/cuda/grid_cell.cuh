// The hash grid for one point on the GPU: gathering the corners of a cell, and adding to them.
//
// The features of an entry lie side by side, so as many as fit are read with one instruction.
#pragma once

#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <type_traits>

#include "../kernels/half.h"
#include "../kernels/hash_grid.h"

namespace nsr::cuda {

// Calls fn(chunk), where chunk.value features of an entry, a divisor of all, are read at a time.
template <typename Fn>
__device__ __forceinline__ void with_chunk(int features, const Fn& fn) {
  if (features % 4 == 0)
    fn(std::integral_constant<int, 4>());
  else if (features % 2 == 0)
    fn(std::integral_constant<int, 2>());
  else
    fn(std::integral_constant<int, 1>());
}

template <typename Entry, int kChunk>
struct alignas(sizeof(Entry) * kChunk <= 16 ? sizeof(Entry) * kChunk : 16) FeatureChunk {
  Entry feature[kChunk];
};

// With one instruction, where kernels/half.h has many.
__device__ __forceinline__ float read_number(Half half) { return __half2float(__ushort_as_half(half.bits)); }
__device__ __forceinline__ float read_number(float value) { return value; }
__device__ __forceinline__ double read_number(double value) { return value; }

// Where one point falls in one level.
template <typename T>
struct Cell {
  CellPoint<T> point;
  uint32_t entry[8];
};

template <typename T>
__device__ __forceinline__ Cell<T> locate(const HashGrid& grid, const GridLevel& level, const T x[3]) {
  Cell<T> cell;
  const AxisPoint<T> ax = locate_on_axis(x[0], T(grid.inverse_extent), level.resolution, grid.smoothstep);
  const AxisPoint<T> ay = locate_on_axis(x[1], T(grid.inverse_extent), level.resolution, grid.smoothstep);
  const AxisPoint<T> az = locate_on_axis(x[2], T(grid.inverse_extent), level.resolution, grid.smoothstep);
  cell.point = {ax.s, ay.s, az.s, ax.ds, ay.ds, az.ds, ax.dds, ay.dds, az.dds};
#pragma unroll
  for (int c = 0; c < 8; ++c) {
    const uint32_t px = ax.cell + (c & 1), py = ay.cell + ((c >> 1) & 1), pz = az.cell + (c >> 2);
    cell.entry[c] = grid_entry(px, py * level.factor_y, pz * level.factor_z, level.hashed, level.mask);
  }
  return cell;
}

// v[f][c] = feature f0 + f of corner c. entries: of the level, from feature f0 on.
template <int kChunk, typename T, typename Entry>
__device__ __forceinline__ void gather(const Entry* entries, int features, const Cell<T>& cell, T v[kChunk][8]) {
#pragma unroll
  for (int c = 0; c < 8; ++c) {
    const auto chunk =
        *reinterpret_cast<const FeatureChunk<Entry, kChunk>*>(entries + size_t(cell.entry[c]) * size_t(features));
#pragma unroll
    for (int f = 0; f < kChunk; ++f) v[f][c] = read_number(chunk.feature[f]);
  }
}

template <typename T>
__device__ __forceinline__ CellValue<T> interpolate(const T v[8], const CellPoint<T>& p) {
  return interpolate_cell(v[0], v[1], v[2], v[3], v[4], v[5], v[6], v[7], p.sx, p.sy, p.sz);
}

// Calls fn(k, corner values of output k, where the point lies in its cell) for every output k of an active level.
template <typename T, typename Entry, typename Fn>
__device__ __forceinline__ void visit_level(const HashGrid& grid, int l, const Entry* table, const T x[3],
                                            const Fn& fn) {
  const GridLevel& level = grid.level[l];
  const Cell<T> cell = locate(grid, level, x);
  with_chunk(grid.features, [&](auto chunk) {
    constexpr int kChunk = decltype(chunk)::value;
    for (int f0 = 0; f0 < grid.features; f0 += kChunk) {
      T v[kChunk][8];
      gather<kChunk>(table + level.offset * grid.features + f0, grid.features, cell, v);
#pragma unroll
      for (int f = 0; f < kChunk; ++f) fn(l * grid.features + f0 + f, v[f], cell.point);
    }
  });
}

// Calls fn(k, h_k, dh_k/dx, dh_k/dy, dh_k/dz) for every output k of an active level.
template <typename T, typename Entry, typename Fn>
__device__ __forceinline__ void encode_level(const HashGrid& grid, int l, const Entry* table, const T x[3],
                                             const Fn& fn) {
  visit_level(grid, l, table, x, [&](int k, const T* v, const CellPoint<T>& p) {
    const CellValue<T> value = interpolate(v, p);
    fn(k, value.h, value.hx * p.dx, value.hy * p.dy, value.hz * p.dz);
  });
}

// Adds d/dx of sum_k cotangent(k) . (h_k, J_k) over the outputs k of an active level.
template <typename T, typename Entry, typename Fn>
__device__ __forceinline__ void contract_level(const HashGrid& grid, int l, const Entry* table, const T x[3],
                                               const Fn& cotangent, T grad[3]) {
  visit_level(grid, l, table, x, [&](int k, const T* v, const CellPoint<T>& p) {
    const CellTwist<T> twist = twist_of_cell(v[0], v[1], v[2], v[3], v[4], v[5], v[6], v[7], p.sx, p.sy, p.sz);
    const CellGradient<T> gradient = contract_cell(interpolate(v, p), twist, cotangent(k), p);
    grad[0] += gradient.x;
    grad[1] += gradient.y;
    grad[2] += gradient.z;
  });
}

// Calls add(place in the table, gradients) for what the outputs of a level give to their eight entries, a chunk of features
// at a time: gradients is an array of as many. Not for chunks of zeros.
template <typename T, typename Fn, typename Add>
__device__ __forceinline__ void scatter_level(const HashGrid& grid, int l, const T x[3], const Fn& cotangent,
                                              const Add& add) {
  const GridLevel& level = grid.level[l];
  const Cell<T> cell = locate(grid, level, x);
  with_chunk(grid.features, [&](auto chunk) {
    constexpr int kChunk = decltype(chunk)::value;
    for (int f0 = 0; f0 < grid.features; f0 += kChunk) {
      CellCotangent<T> g[kChunk];
#pragma unroll
      for (int f = 0; f < kChunk; ++f) g[f] = cotangent(l * grid.features + f0 + f);
#pragma unroll
      for (int c = 0; c < 8; ++c) {
        T gradient[kChunk];
        bool any = false;
#pragma unroll
        for (int f = 0; f < kChunk; ++f) {
          gradient[f] = corner_gradient(c, g[f], cell.point);
          any |= gradient[f] != T(0);
        }
        if (any) add((level.offset + cell.entry[c]) * grid.features + f0, gradient);
      }
    }
  });
}

}  // namespace nsr::cuda
