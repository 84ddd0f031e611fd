// Hash grid on the GPU, with the per-point maths of kernels/hash_grid.h.
//
// encode and scatter have a thread per point and level: blocks of one level run together, so its part of the table
// stays in the cache. contract has a thread per point that sums over the levels, and so needs no atomics and is
// deterministic; scatter adds with atomics (grid_gradient.cuh).
#include "../kernels/launch.h"
#include "grid_gradient.cuh"

namespace nsr::cuda {
namespace {

template <typename T, typename Entry>
__global__ void encode_kernel(HashGrid grid, int64_t n, const T* x, const Entry* table, T* h, T* jacobian) {
  const int64_t i = thread_index();
  const int l = int(blockIdx.y);
  if (i >= n) return;
  const T point[3] = {x[3 * i], x[3 * i + 1], x[3 * i + 2]};
  const auto write = [&](int k, T value, T x_slope, T y_slope, T z_slope) {
    const int64_t at = i * grid.outputs() + k;
    h[at] = value;
    if (!jacobian) return;
    jacobian[3 * at] = x_slope;
    jacobian[3 * at + 1] = y_slope;
    jacobian[3 * at + 2] = z_slope;
  };
  if (l < grid.active_levels)
    encode_level(grid, l, table, point, write);
  else
    for (int f = 0; f < grid.features; ++f) write(l * grid.features + f, T(0), T(0), T(0), T(0));
}

// The cotangents of the outputs; null pointers are zeros.
template <typename T>
struct GridCotangents {
  int64_t outputs;
  const T* grad_h;
  const T* grad_jacobian;

  __device__ __forceinline__ CellCotangent<T> operator()(int64_t i, int k) const {
    const int64_t at = i * outputs + k;
    CellCotangent<T> cotangent = {};
    if (grad_h) cotangent.a = grad_h[at];
    if (grad_jacobian) {
      cotangent.bx = grad_jacobian[3 * at];
      cotangent.by = grad_jacobian[3 * at + 1];
      cotangent.bz = grad_jacobian[3 * at + 2];
    }
    return cotangent;
  }
};

template <typename T, typename Entry>
__global__ void contract_kernel(HashGrid grid, int64_t n, const T* x, const Entry* table,
                                GridCotangents<T> cotangents, T* grad_x) {
  const int64_t i = thread_index();
  if (i >= n) return;
  const T point[3] = {x[3 * i], x[3 * i + 1], x[3 * i + 2]};
  T grad[3] = {};
  for (int l = 0; l < grid.active_levels; ++l)
    contract_level(grid, l, table, point, [&](int k) { return cotangents(i, k); }, grad);
  for (int d = 0; d < 3; ++d) grad_x[3 * i + d] = grad[d];
}

}  // namespace

template <typename T, typename Entry>
void hash_grid_encode(void* stream, const HashGrid& grid, int64_t n, const T* x, const Entry* table, T* h,
                      T* jacobian) {
  launch(stream, points_by_levels(n, grid.levels), kThreads, 0, encode_kernel<T, Entry>, grid, n, x, table, h, jacobian);
}

template <typename T, typename Entry>
void hash_grid_contract(void* stream, const HashGrid& grid, int64_t n, const T* x, const Entry* table, const T* grad_h,
                        const T* grad_jacobian, T* grad_x) {
  const GridCotangents<T> cotangents{grid.outputs(), grad_h, grad_jacobian};
  launch_items(stream, n, contract_kernel<T, Entry>, grid, n, x, table, cotangents, grad_x);
}

template <typename T>
int64_t hash_grid_scatter_scratch(const HashGrid& grid, int64_t, int64_t entries, const T*, const T*, const T*, T*) {
  return scatter_scratch(grid, entries);
}

template <typename T>
void hash_grid_scatter(void* stream, const HashGrid& grid, int64_t n, int64_t entries, const T* x, const T* grad_h,
                       const T* grad_jacobian, T* grad_table, void* scratch) {
  scatter_to_table(stream, grid, n, entries, x, GridCotangents<T>{grid.outputs(), grad_h, grad_jacobian}, grad_table,
                   scratch);
}

#define NSR_INSTANTIATE(T, Entry)                                                                                  \
  template void hash_grid_encode<T, Entry>(void*, const HashGrid&, int64_t, const T*, const Entry*, T*, T*);        \
  template void hash_grid_contract<T, Entry>(void*, const HashGrid&, int64_t, const T*, const Entry*, const T*,     \
                                             const T*, T*);
NSR_INSTANTIATE(float, float)
NSR_INSTANTIATE(float, Half)
NSR_INSTANTIATE(double, double)
#undef NSR_INSTANTIATE
#define NSR_INSTANTIATE(T)                                                                                       \
  template int64_t hash_grid_scatter_scratch<T>(const HashGrid&, int64_t, int64_t, const T*, const T*, const T*, \
                                                T*);                                                             \
  template void hash_grid_scatter<T>(void*, const HashGrid&, int64_t, int64_t, const T*, const T*, const T*, T*, \
                                     void*);
NSR_INSTANTIATE(float)
NSR_INSTANTIATE(double)
#undef NSR_INSTANTIATE

}  // namespace nsr::cuda
