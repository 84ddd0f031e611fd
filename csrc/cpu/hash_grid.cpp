// Hash grid on the CPU: tiles of points, level by level, with the per-point maths of kernels/hash_grid.h in SIMD lanes.
#include <cstring>

#include "../kernels/launch.h"
#include "hash_grid_backward.h"
#include "hash_grid_tile.h"

namespace nsr::cpu {
namespace {

constexpr int kTile = 32;  // points per tile: a few SIMD registers, and loads enough to hide a cache miss

template <int kChunk, bool kJacobian, typename T, typename Entry>
void encode_level(const HashGrid& grid, const TileCells<kTile, T>& cells, const Entry* table, int count, T* h,
                  T* jacobian) {
  const int features = grid.features;
  const int64_t outputs = grid.outputs();
  for (int f0 = 0; f0 < features; f0 += kChunk) {
    alignas(64) T v[kChunk][8][kTile];
    alignas(64) T out[4][kChunk][kTile];
    gather_corners<kChunk>(table + f0, features, cells, v);
    for (int f = 0; f < kChunk; ++f)
      interpolate_corners<kJacobian>(cells, v[f], out[0][f], out[1][f], out[2][f], out[3][f]);
    for (int i = 0; i < count; ++i) {
      for (int f = 0; f < kChunk; ++f) {
        h[i * outputs + f0 + f] = out[0][f][i];
        if (!kJacobian) continue;
        for (int d = 0; d < 3; ++d) jacobian[(i * outputs + f0 + f) * 3 + d] = out[1 + d][f][i];
      }
    }
  }
}

template <typename T>
void zero_inactive(const HashGrid& grid, int64_t start, int count, int width, T* rows) {
  const int64_t used = int64_t(grid.active_levels) * grid.features * width, all = grid.outputs() * width;
  for (int64_t i = start; i < start + count; ++i) std::memset(rows + i * all + used, 0, size_t(all - used) * sizeof(T));
}

template <int kChunk, bool kJacobian, typename T, typename Entry>
void encode(const HashGrid& grid, int64_t n, const T* x, const Entry* table, T* h, T* jacobian) {
  for_each_tile<kTile>(n, [&](int64_t start, int count) {
    alignas(64) T points[3][kTile];
    TileCells<kTile, T> cells;
    load_points(x + 3 * start, count, points);
    for (int l = 0; l < grid.active_levels; ++l) {
      const int64_t at = start * grid.outputs() + l * grid.features;
      locate_tile(grid, grid.level[l], points, cells);
      encode_level<kChunk, kJacobian>(grid, cells, table + grid.level[l].offset * grid.features, count, h + at,
                                      kJacobian ? jacobian + 3 * at : nullptr);
    }
    zero_inactive(grid, start, count, 1, h);
    if (kJacobian) zero_inactive(grid, start, count, 3, jacobian);
  });
}

// Cotangents in arrays grad_h [n, outputs] and grad_jacobian [n, outputs, 3]; null pointers are zeros.
template <typename T>
struct ArrayCotangents {
  static constexpr bool kJacobian = true;
  const T *grad_h, *grad_jacobian;
  int64_t outputs;

  template <int kChunk>
  void load(int64_t start, int count, int k, TileCotangents<kChunk, kTile, T>& to) const {
    const int64_t at = start * outputs + k;
    if (!grad_h || count < kTile) std::memset(to.a, 0, sizeof(to.a));
    if (!grad_jacobian || count < kTile) std::memset(to.b, 0, sizeof(to.b));
    for (int i = 0; grad_h && i < count; ++i)
      for (int f = 0; f < kChunk; ++f) to.a[f][i] = grad_h[at + i * outputs + f];
    for (int i = 0; grad_jacobian && i < count; ++i)
      for (int f = 0; f < kChunk; ++f)
        for (int d = 0; d < 3; ++d) to.b[d][f][i] = grad_jacobian[3 * (at + i * outputs + f) + d];
  }
};

}  // namespace

template <typename T, typename Entry>
void hash_grid_encode(const HashGrid& grid, int64_t n, const T* x, const Entry* table, T* h, T* jacobian) {
  with_chunk(grid.features, [&](auto chunk) {
    if (jacobian)
      encode<chunk(), true>(grid, n, x, table, h, jacobian);
    else
      encode<chunk(), false>(grid, n, x, table, h, jacobian);
  });
}

template <typename T, typename Entry>
void hash_grid_contract(const HashGrid& grid, int64_t n, const T* x, const Entry* table, const T* grad_h,
                        const T* grad_jacobian, T* grad_x) {
  contract_to_points<kTile>(grid, n, x, table, ArrayCotangents<T>{grad_h, grad_jacobian, grid.outputs()}, grad_x);
}

template <typename T>
void hash_grid_scatter(const HashGrid& grid, int64_t n, int64_t entries, const T* x, const T* grad_h,
                       const T* grad_jacobian, T* grad_table) {
  scatter_to_table<kTile>(grid, n, entries, x, ArrayCotangents<T>{grad_h, grad_jacobian, grid.outputs()}, grad_table);
}

#define NSR_INSTANTIATE(T, Entry)                                                                        \
  template void hash_grid_encode<T, Entry>(const HashGrid&, int64_t, const T*, const Entry*, T*, T*);     \
  template void hash_grid_contract<T, Entry>(const HashGrid&, int64_t, const T*, const Entry*, const T*, \
                                             const T*, T*);
NSR_INSTANTIATE(float, float)
NSR_INSTANTIATE(float, Half)
NSR_INSTANTIATE(double, double)
#undef NSR_INSTANTIATE
template void hash_grid_scatter<float>(const HashGrid&, int64_t, int64_t, const float*, const float*, const float*,
                                       float*);
template void hash_grid_scatter<double>(const HashGrid&, int64_t, int64_t, const double*, const double*, const double*,
                                        double*);

}  // namespace nsr::cpu
