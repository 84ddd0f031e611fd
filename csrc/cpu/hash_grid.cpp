// Hash grid on the CPU: tiles of points, level by level, with the per-point maths of kernels/hash_grid.h in SIMD lanes.
//
// encode and contract run in parallel over points. scatter runs in parallel over levels: a level belongs to one thread,
// which adds the points in their order, so the result is race-free and bit-identical for any number of threads.
//
// The lane loops are marked ivdep rather than `omp simd`: that keeps small structs in memory, where gcc
// gives up on them.
#include <cstring>
#include <type_traits>

#include "../kernels/launch.h"
#include "parallel.h"

namespace nsr::cpu {
namespace {

constexpr int kTile = 32;        // points per tile: a few SIMD registers, and loads enough to hide a cache miss
constexpr int64_t kGrain = 256;  // points below which a second thread costs more than it brings

// Where the points of one tile fall in one level. Lanes past the end of the data repeat the last point.
template <typename T>
struct TileCells {
  alignas(64) T s[3][kTile];
  alignas(64) T ds[3][kTile];
  alignas(64) T dds[3][kTile];
  alignas(64) uint32_t entry[8][kTile];

  NSR_HD CellPoint<T> point(int i) const {
    return {s[0][i], s[1][i], s[2][i], ds[0][i], ds[1][i], ds[2][i], dds[0][i], dds[1][i], dds[2][i]};
  }
};

template <typename T>
using TileCorners = T[8][kTile];

template <typename T>
void load_points(const T* x, int count, T (*points)[kTile]) {
  for (int d = 0; d < 3; ++d) {
    for (int i = 0; i < count; ++i) points[d][i] = x[3 * i + d];
    for (int i = count; i < kTile; ++i) points[d][i] = points[d][count - 1];
  }
}

template <bool kSmooth, typename T>
void locate_on_axes(int32_t resolution, const T (*points)[kTile], TileCells<T>& cells, uint32_t (*cell)[kTile]) {
  for (int d = 0; d < 3; ++d) {
#pragma GCC ivdep
    for (int i = 0; i < kTile; ++i) {
      const AxisPoint<T> axis = locate_on_axis(points[d][i], resolution, kSmooth);
      cell[d][i] = uint32_t(axis.cell);
      cells.s[d][i] = axis.s;
      cells.ds[d][i] = axis.ds;
      cells.dds[d][i] = axis.dds;
    }
  }
}

template <bool kHashed>
void enumerate_corners(const GridLevel& level, const uint32_t (*cell)[kTile], uint32_t (*entry)[kTile]) {
#pragma GCC ivdep
  for (int i = 0; i < kTile; ++i) {
    const uint32_t x0 = cell[0][i], x1 = x0 + 1;
    const uint32_t y0 = cell[1][i] * level.factor_y, y1 = y0 + level.factor_y;
    const uint32_t z0 = cell[2][i] * level.factor_z, z1 = z0 + level.factor_z;
    entry[0][i] = grid_entry(x0, y0, z0, kHashed, level.mask);
    entry[1][i] = grid_entry(x1, y0, z0, kHashed, level.mask);
    entry[2][i] = grid_entry(x0, y1, z0, kHashed, level.mask);
    entry[3][i] = grid_entry(x1, y1, z0, kHashed, level.mask);
    entry[4][i] = grid_entry(x0, y0, z1, kHashed, level.mask);
    entry[5][i] = grid_entry(x1, y0, z1, kHashed, level.mask);
    entry[6][i] = grid_entry(x0, y1, z1, kHashed, level.mask);
    entry[7][i] = grid_entry(x1, y1, z1, kHashed, level.mask);
  }
}

template <typename T>
void locate_tile(const HashGrid& grid, const GridLevel& level, const T (*points)[kTile], TileCells<T>& cells) {
  alignas(64) uint32_t cell[3][kTile];
  if (grid.smoothstep)
    locate_on_axes<true>(level.resolution, points, cells, cell);
  else
    locate_on_axes<false>(level.resolution, points, cells, cell);
  if (level.hashed)
    enumerate_corners<true>(level, cell, cells.entry);
  else
    enumerate_corners<false>(level, cell, cells.entry);
}

// values[f][c][i] = feature f of corner c of point i; `table` points at the level's first entry and chunk.
template <int kChunk, typename T>
void gather_corners(const T* table, int stride, const TileCells<T>& cells, TileCorners<T>* values) {
  for (int c = 0; c < 8; ++c) {
    for (int i = 0; i < kTile; ++i) {
      const T* entry = table + size_t(cells.entry[c][i]) * stride;
      for (int f = 0; f < kChunk; ++f) values[f][c][i] = entry[f];
    }
  }
}

// Calls fn(std::integral_constant<int, k>) with the largest k in {8, 4, 2, 1} that divides `features`.
template <typename Fn>
void with_chunk(int features, const Fn& fn) {
  if (features % 8 == 0) return fn(std::integral_constant<int, 8>());
  if (features % 4 == 0) return fn(std::integral_constant<int, 4>());
  if (features % 2 == 0) return fn(std::integral_constant<int, 2>());
  fn(std::integral_constant<int, 1>());
}

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
void encode_level(const HashGrid& grid, const TileCells<T>& cells, const T* table, int count, T* h, T* jacobian) {
  const int features = grid.features;
  const int64_t outputs = grid.outputs();
  for (int f0 = 0; f0 < features; f0 += kChunk) {
    alignas(64) T v[kChunk][8][kTile];
    alignas(64) T out[4][kChunk][kTile];
    gather_corners<kChunk>(table + f0, features, cells, v);
    for (int f = 0; f < kChunk; ++f) {
#pragma GCC ivdep
      for (int i = 0; i < kTile; ++i) {
        const CellValue<T> value =
            interpolate_cell(v[f][0][i], v[f][1][i], v[f][2][i], v[f][3][i], v[f][4][i], v[f][5][i], v[f][6][i],
                             v[f][7][i], cells.s[0][i], cells.s[1][i], cells.s[2][i]);
        out[0][f][i] = value.h;
        if (kJacobian) {
          out[1][f][i] = value.hx * cells.ds[0][i];
          out[2][f][i] = value.hy * cells.ds[1][i];
          out[3][f][i] = value.hz * cells.ds[2][i];
        }
      }
    }
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
    TileCells<T> cells;
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
void contract_tile(const TileCells<T>& cells, const TileCorners<T>* v, const TileCotangents<kChunk, T>& cotangents,
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
    TileCells<T> cells;
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
void scatter_tile(const TileCells<T>& cells, const TileCotangents<kChunk, T>& cotangents, int count, int stride,
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
  TileCells<T> cells;
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
