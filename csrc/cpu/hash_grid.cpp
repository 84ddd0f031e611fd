// Hash grid on the CPU: tiles of points, level by level, with the per-point maths of kernels/hash_grid.h in SIMD lanes.
//
// encode and contract run in parallel over points. scatter runs in parallel over levels: a level belongs to one thread,
// which adds the points in their order, so the result is race-free and bit-identical for any number of threads.
#include <cstring>

#include "../kernels/launch.h"
#include "hash_grid_tile.h"
#include "parallel.h"

namespace nsr::cpu {
namespace {

constexpr int kTile = 32;        // points per tile: a few SIMD registers, and loads enough to hide a cache miss
constexpr int64_t kGrain = 256;  // points below which a second thread costs more than it brings

template <typename T>
using Cells = TileCells<kTile, T>;

template <typename T>
using Corners = TileCorners<kTile, T>;

// Calls fn(first point, count) for the tiles of [0, n), in parallel.
template <typename Fn>
void for_each_tile(int64_t n, const Fn& fn) {
  const int64_t tiles = (n + kTile - 1) / kTile;
  parallel_for(0, tiles, kGrain / kTile, [&](int64_t first, int64_t last) {
    for (int64_t tile = first; tile < last; ++tile) {
      const int64_t start = tile * kTile;
      fn(start, int(n - start < kTile ? n - start : kTile));
    }
  });
}

template <int kChunk, bool kJacobian, typename T>
void encode_level(const HashGrid& grid, const Cells<T>& cells, const T* table, int count, T* h, T* jacobian) {
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

template <int kChunk, bool kJacobian, typename T>
void encode(const HashGrid& grid, int64_t n, const T* x, const T* table, T* h, T* jacobian) {
  for_each_tile(n, [&](int64_t start, int count) {
    alignas(64) T points[3][kTile];
    Cells<T> cells;
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

// The cotangents a [kChunk][kTile] and B [3][kChunk][kTile] of one tile, level and chunk; null pointers are zeros.
template <int kChunk, typename T>
struct TileCotangents {
  alignas(64) T a[kChunk][kTile];
  alignas(64) T b[3][kChunk][kTile];

  NSR_HD CellCotangent<T> cotangent(int f, int i) const { return {a[f][i], b[0][f][i], b[1][f][i], b[2][f][i]}; }

  void load(const T* grad_h, const T* grad_jacobian, int64_t at, int64_t outputs, int count) {
    if (!grad_h || count < kTile) std::memset(a, 0, sizeof(a));
    if (!grad_jacobian || count < kTile) std::memset(b, 0, sizeof(b));
    for (int i = 0; grad_h && i < count; ++i)
      for (int f = 0; f < kChunk; ++f) a[f][i] = grad_h[at + i * outputs + f];
    for (int i = 0; grad_jacobian && i < count; ++i)
      for (int f = 0; f < kChunk; ++f)
        for (int d = 0; d < 3; ++d) b[d][f][i] = grad_jacobian[3 * (at + i * outputs + f) + d];
  }
};

// Adds one level and chunk to grad[d][i], the gradient with respect to the points of one tile.
template <int kChunk, typename T>
void contract_tile(const Cells<T>& cells, const Corners<T>* v, const TileCotangents<kChunk, T>& cotangents,
                   T (*grad)[kTile]) {
  for (int f = 0; f < kChunk; ++f) {
#pragma GCC ivdep
    for (int i = 0; i < kTile; ++i) {
      const CellPoint<T> p = cells.point(i);
      const T v0 = v[f][0][i], v1 = v[f][1][i], v2 = v[f][2][i], v3 = v[f][3][i];
      const T v4 = v[f][4][i], v5 = v[f][5][i], v6 = v[f][6][i], v7 = v[f][7][i];
      const CellValue<T> value = interpolate_cell(v0, v1, v2, v3, v4, v5, v6, v7, p.sx, p.sy, p.sz);
      const CellTwist<T> twist = twist_of_cell(v0, v1, v2, v3, v4, v5, v6, v7, p.sx, p.sy, p.sz);
      const CellGradient<T> g = contract_cell(value, twist, cotangents.cotangent(f, i), p);
      grad[0][i] += g.x;
      grad[1][i] += g.y;
      grad[2][i] += g.z;
    }
  }
}

template <int kChunk, typename T>
void contract(const HashGrid& grid, int64_t n, const T* x, const T* table, const T* grad_h, const T* grad_jacobian,
              T* grad_x) {
  for_each_tile(n, [&](int64_t start, int count) {
    alignas(64) T points[3][kTile];
    alignas(64) T grad[3][kTile] = {};
    alignas(64) T v[kChunk][8][kTile];
    Cells<T> cells;
    TileCotangents<kChunk, T> cotangents;
    load_points(x + 3 * start, count, points);
    for (int l = 0; l < grid.active_levels; ++l) {
      locate_tile(grid, grid.level[l], points, cells);
      for (int f0 = 0; f0 < grid.features; f0 += kChunk) {
        gather_corners<kChunk>(table + grid.level[l].offset * grid.features + f0, grid.features, cells, v);
        cotangents.load(grad_h, grad_jacobian, start * grid.outputs() + l * grid.features + f0, grid.outputs(), count);
        contract_tile<kChunk>(cells, v, cotangents, grad);
      }
    }
    for (int i = 0; i < count; ++i)
      for (int d = 0; d < 3; ++d) grad_x[3 * (start + i) + d] = grad[d][i];
  });
}

// Adds the points of one tile to one level, in point order.
template <int kChunk, typename T>
void scatter_tile(const Cells<T>& cells, const TileCotangents<kChunk, T>& cotangents, int count, int stride,
                  T* grad_table) {
  alignas(64) T gradient[8][kChunk][kTile];
  for (int f = 0; f < kChunk; ++f) {
#pragma GCC ivdep
    for (int i = 0; i < kTile; ++i) {
      const CellPoint<T> p = cells.point(i);
      const CellCotangent<T> g = cotangents.cotangent(f, i);
      gradient[0][f][i] = corner_gradient(0, g, p);
      gradient[1][f][i] = corner_gradient(1, g, p);
      gradient[2][f][i] = corner_gradient(2, g, p);
      gradient[3][f][i] = corner_gradient(3, g, p);
      gradient[4][f][i] = corner_gradient(4, g, p);
      gradient[5][f][i] = corner_gradient(5, g, p);
      gradient[6][f][i] = corner_gradient(6, g, p);
      gradient[7][f][i] = corner_gradient(7, g, p);
    }
  }
  for (int i = 0; i < count; ++i) {
    for (int c = 0; c < 8; ++c) {
      T* entry = grad_table + size_t(cells.entry[c][i]) * stride;
      for (int f = 0; f < kChunk; ++f) entry[f] += gradient[c][f][i];
    }
  }
}

template <int kChunk, typename T>
void scatter_level(const HashGrid& grid, int l, int64_t n, const T* x, const T* grad_h, const T* grad_jacobian,
                   T* grad_table) {
  alignas(64) T points[3][kTile];
  Cells<T> cells;
  TileCotangents<kChunk, T> cotangents;
  for (int64_t start = 0; start < n; start += kTile) {
    const int count = int(n - start < kTile ? n - start : kTile);
    load_points(x + 3 * start, count, points);
    locate_tile(grid, grid.level[l], points, cells);
    for (int f0 = 0; f0 < grid.features; f0 += kChunk) {
      cotangents.load(grad_h, grad_jacobian, start * grid.outputs() + l * grid.features + f0, grid.outputs(), count);
      scatter_tile<kChunk>(cells, cotangents, count, grid.features, grad_table + f0);
    }
  }
}

}  // namespace

template <typename T>
void hash_grid_encode(const HashGrid& grid, int64_t n, const T* x, const T* table, T* h, T* jacobian) {
  with_chunk(grid.features, [&](auto chunk) {
    if (jacobian)
      encode<chunk(), true>(grid, n, x, table, h, jacobian);
    else
      encode<chunk(), false>(grid, n, x, table, h, jacobian);
  });
}

template <typename T>
void hash_grid_contract(const HashGrid& grid, int64_t n, const T* x, const T* table, const T* grad_h,
                        const T* grad_jacobian, T* grad_x) {
  with_chunk(grid.features, [&](auto chunk) { contract<chunk()>(grid, n, x, table, grad_h, grad_jacobian, grad_x); });
}

template <typename T>
void hash_grid_scatter(const HashGrid& grid, int64_t n, int64_t entries, const T* x, const T* grad_h,
                       const T* grad_jacobian, T* grad_table) {
  // Threads get runs of tasks: dealing the levels out even ones first gives each run small and large levels.
  const int levels = grid.levels, even = (levels + 1) / 2;
  parallel_for(0, levels, 1, [&](int64_t first, int64_t last) {
    for (int64_t task = first; task < last; ++task) {
      const int l = int(task < even ? 2 * task : 2 * (task - even) + 1);
      const int64_t begin = grid.level[l].offset, end = l + 1 < levels ? grid.level[l + 1].offset : entries;
      T* level_grad = grad_table + begin * grid.features;
      std::memset(level_grad, 0, size_t(end - begin) * grid.features * sizeof(T));
      if (l >= grid.active_levels) continue;
      with_chunk(grid.features, [&](auto chunk) {
        scatter_level<chunk()>(grid, l, n, x, grad_h, grad_jacobian, level_grad);
      });
    }
  });
}

#define NSR_INSTANTIATE(T)                                                                                             \
  template void hash_grid_encode<T>(const HashGrid&, int64_t, const T*, const T*, T*, T*);                             \
  template void hash_grid_contract<T>(const HashGrid&, int64_t, const T*, const T*, const T*, const T*, T*);           \
  template void hash_grid_scatter<T>(const HashGrid&, int64_t, int64_t, const T*, const T*, const T*, T*);
NSR_INSTANTIATE(float)
NSR_INSTANTIATE(double)
#undef NSR_INSTANTIATE

}  // namespace nsr::cpu
