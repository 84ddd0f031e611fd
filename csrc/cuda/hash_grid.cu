// Hash grid on the GPU, with the per-point maths of kernels/hash_grid.h.
//
// encode and scatter have a thread per point and level: blocks of one level run together, so its part of the table
// stays in the cache. contract has a thread per point that sums over the levels, and so needs no atomics and is
// deterministic; scatter adds with atomics, whose order, and so the last bits, vary from run to run.
#include "../kernels/launch.h"
#include "launch.cuh"

namespace nsr::cuda {
namespace {

// Where one point falls in one level.
template <typename T>
struct Cell {
  CellPoint<T> point;
  uint32_t entry[8];
};

template <typename T>
__device__ Cell<T> locate(const HashGrid& grid, const GridLevel& level, const T* x) {
  Cell<T> cell;
  const AxisPoint<T> ax = locate_on_axis(x[0], T(grid.inverse_extent), level.resolution, grid.smoothstep);
  const AxisPoint<T> ay = locate_on_axis(x[1], T(grid.inverse_extent), level.resolution, grid.smoothstep);
  const AxisPoint<T> az = locate_on_axis(x[2], T(grid.inverse_extent), level.resolution, grid.smoothstep);
  cell.point = {ax.s, ay.s, az.s, ax.ds, ay.ds, az.ds, ax.dds, ay.dds, az.dds};
  for (int c = 0; c < 8; ++c) {
    const uint32_t px = ax.cell + (c & 1), py = ay.cell + ((c >> 1) & 1), pz = az.cell + (c >> 2);
    cell.entry[c] = grid_entry(px, py * level.factor_y, pz * level.factor_z, level.hashed, level.mask);
  }
  return cell;
}

template <typename T>
__device__ void gather(const T* level_table, int features, int f, const Cell<T>& cell, T v[8]) {
  for (int c = 0; c < 8; ++c) v[c] = level_table[size_t(cell.entry[c]) * features + f];
}

template <typename T>
__device__ CellValue<T> interpolate(const T v[8], const Cell<T>& cell) {
  return interpolate_cell(v[0], v[1], v[2], v[3], v[4], v[5], v[6], v[7], cell.point.sx, cell.point.sy, cell.point.sz);
}

template <typename T>
__global__ void encode_kernel(HashGrid grid, int64_t n, const T* x, const T* table, T* h, T* jacobian) {
  const int64_t i = thread_index();
  const int l = blockIdx.y;
  if (i >= n) return;
  const bool active = l < grid.active_levels;
  const GridLevel& level = grid.level[l];
  const Cell<T> cell = locate(grid, level, x + 3 * i);
  for (int f = 0; f < grid.features; ++f) {
    CellValue<T> value = {};
    if (active) {
      T v[8];
      gather(table + level.offset * grid.features, grid.features, f, cell, v);
      value = interpolate(v, cell);
    }
    const int64_t at = i * grid.outputs() + l * grid.features + f;
    h[at] = value.h;
    if (!jacobian) continue;
    jacobian[3 * at] = active ? value.hx * cell.point.dx : T(0);
    jacobian[3 * at + 1] = active ? value.hy * cell.point.dy : T(0);
    jacobian[3 * at + 2] = active ? value.hz * cell.point.dz : T(0);
  }
}

// The cotangents of one output; null pointers are zeros.
template <typename T>
__device__ CellCotangent<T> load_cotangent(const T* grad_h, const T* grad_jacobian, int64_t at) {
  CellCotangent<T> cotangent = {};
  if (grad_h) cotangent.a = grad_h[at];
  if (grad_jacobian) {
    cotangent.bx = grad_jacobian[3 * at];
    cotangent.by = grad_jacobian[3 * at + 1];
    cotangent.bz = grad_jacobian[3 * at + 2];
  }
  return cotangent;
}

template <typename T>
__global__ void contract_kernel(HashGrid grid, int64_t n, const T* x, const T* table, const T* grad_h,
                                const T* grad_jacobian, T* grad_x) {
  const int64_t i = thread_index();
  if (i >= n) return;
  T grad[3] = {};
  for (int l = 0; l < grid.active_levels; ++l) {
    const GridLevel& level = grid.level[l];
    const Cell<T> cell = locate(grid, level, x + 3 * i);
    for (int f = 0; f < grid.features; ++f) {
      T v[8];
      gather(table + level.offset * grid.features, grid.features, f, cell, v);
      const CellCotangent<T> g = load_cotangent(grad_h, grad_jacobian, i * grid.outputs() + l * grid.features + f);
      const CellPoint<T>& p = cell.point;
      const CellTwist<T> twist = twist_of_cell(v[0], v[1], v[2], v[3], v[4], v[5], v[6], v[7], p.sx, p.sy, p.sz);
      const CellGradient<T> gradient = contract_cell(interpolate(v, cell), twist, g, p);
      grad[0] += gradient.x;
      grad[1] += gradient.y;
      grad[2] += gradient.z;
    }
  }
  for (int d = 0; d < 3; ++d) grad_x[3 * i + d] = grad[d];
}

template <typename T>
__global__ void scatter_kernel(HashGrid grid, int64_t n, const T* x, const T* grad_h, const T* grad_jacobian,
                               T* grad_table) {
  const int64_t i = thread_index();
  const int l = blockIdx.y;
  if (i >= n) return;
  const GridLevel& level = grid.level[l];
  const Cell<T> cell = locate(grid, level, x + 3 * i);
  for (int f = 0; f < grid.features; ++f) {
    const CellCotangent<T> g = load_cotangent(grad_h, grad_jacobian, i * grid.outputs() + l * grid.features + f);
    for (int c = 0; c < 8; ++c) {
      const T gradient = corner_gradient(c, g, cell.point);
      if (gradient != T(0)) atomicAdd(grad_table + (level.offset + cell.entry[c]) * grid.features + f, gradient);
    }
  }
}

dim3 points_by_levels(int64_t n, int levels) { return dim3(blocks_for(n), unsigned(levels)); }

}  // namespace

template <typename T>
void hash_grid_encode(void* stream, const HashGrid& grid, int64_t n, const T* x, const T* table, T* h, T* jacobian) {
  if (n == 0) return;
  encode_kernel<T><<<points_by_levels(n, grid.levels), kThreads, 0, static_cast<cudaStream_t>(stream)>>>(
      grid, n, x, table, h, jacobian);
}

template <typename T>
void hash_grid_contract(void* stream, const HashGrid& grid, int64_t n, const T* x, const T* table, const T* grad_h,
                        const T* grad_jacobian, T* grad_x) {
  NSR_CUDA_LAUNCH(stream, n, contract_kernel<T>, grid, n, x, table, grad_h, grad_jacobian, grad_x);
}

template <typename T>
void hash_grid_scatter(void* stream, const HashGrid& grid, int64_t n, int64_t entries, const T* x, const T* grad_h,
                       const T* grad_jacobian, T* grad_table) {
  const auto queue = static_cast<cudaStream_t>(stream);
  cudaMemsetAsync(grad_table, 0, size_t(entries) * grid.features * sizeof(T), queue);
  if (n == 0 || grid.active_levels == 0) return;
  scatter_kernel<T><<<points_by_levels(n, grid.active_levels), kThreads, 0, queue>>>(grid, n, x, grad_h, grad_jacobian,
                                                                                    grad_table);
}

#define NSR_INSTANTIATE(T)                                                                                         \
  template void hash_grid_encode<T>(void*, const HashGrid&, int64_t, const T*, const T*, T*, T*);                  \
  template void hash_grid_contract<T>(void*, const HashGrid&, int64_t, const T*, const T*, const T*, const T*, T*); \
  template void hash_grid_scatter<T>(void*, const HashGrid&, int64_t, int64_t, const T*, const T*, const T*, T*);
NSR_INSTANTIATE(float)
NSR_INSTANTIATE(double)
#undef NSR_INSTANTIATE

}  // namespace nsr::cuda
