// The backward maps of a hash grid on the CPU, for cotangents of (h, J) from anywhere: contract to the points, scatter
// into the table (kernels/hash_grid.h).
//
// contract runs in parallel over points. scatter runs in parallel over levels: a level belongs to one thread, which
// adds the points in their order, so the result is race-free and bit-identical for any number of threads.
//
// A source of cotangents has a method  load(start, count, k, cotangents)  that fills those of the points start ...
// start + count - 1 and of the grid's outputs k ... k + kChunk - 1, and zeros behind `count`. Its kJacobian says
// whether there are any of J; where there are none, scatter does not look at them.
#pragma once

#include <cstring>

#include "hash_grid_tile.h"
#include "parallel.h"

namespace nsr::cpu {

constexpr int64_t kGridGrain = 256;  // points below which a second thread costs more than it brings

// The cotangents a of h and b of J, of one tile, level and chunk.
template <int kChunk, int kTile, typename T>
struct TileCotangents {
  alignas(64) T a[kChunk][kTile];
  alignas(64) T b[3][kChunk][kTile];

  NSR_HD CellCotangent<T> cotangent(int f, int i) const { return {a[f][i], b[0][f][i], b[1][f][i], b[2][f][i]}; }
};

// Calls fn(first point, count) for the tiles of [0, n), in parallel.
template <int kTile, typename Fn>
void for_each_tile(int64_t n, const Fn& fn) {
  const int64_t tiles = (n + kTile - 1) / kTile;
  parallel_for(0, tiles, kGridGrain / kTile, [&](int64_t first, int64_t last) {
    for (int64_t tile = first; tile < last; ++tile) {
      const int64_t start = tile * kTile;
      fn(start, int(n - start < kTile ? n - start : kTile));
    }
  });
}

// Adds one level and chunk to grad[d][i], the gradient with respect to the points of one tile.
template <int kChunk, int kTile, typename T>
void contract_tile(const TileCells<kTile, T>& cells, const TileCorners<kTile, T>* v,
                   const TileCotangents<kChunk, kTile, T>& cotangents, T (*grad)[kTile]) {
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

// grad_x [n, 3] = d/dx sum(a h + b J).
template <int kTile, typename Source, typename T, typename Entry>
void contract_to_points(const HashGrid& grid, int64_t n, const T* x, const Entry* table, const Source& source, T* grad_x) {
  static_assert(Source::kJacobian, "it looks at the cotangents of J");
  with_chunk(grid.features, [&](auto chunk) {
    constexpr int kChunk = decltype(chunk)::value;
    for_each_tile<kTile>(n, [&](int64_t start, int count) {
      alignas(64) T points[3][kTile];
      alignas(64) T grad[3][kTile] = {};
      alignas(64) T v[kChunk][8][kTile];
      TileCells<kTile, T> cells;
      TileCotangents<kChunk, kTile, T> cotangents;
      load_points(x + 3 * start, count, points);
      for (int l = 0; l < grid.active_levels; ++l) {
        locate_tile(grid, grid.level[l], points, cells);
        for (int f0 = 0; f0 < grid.features; f0 += kChunk) {
          gather_corners<kChunk>(table + grid.level[l].offset * grid.features + f0, grid.features, cells, v);
          source.load(start, count, l * grid.features + f0, cotangents);
          contract_tile<kChunk>(cells, v, cotangents, grad);
        }
      }
      for (int i = 0; i < count; ++i)
        for (int d = 0; d < 3; ++d) grad_x[3 * (start + i) + d] = grad[d][i];
    });
  });
}

// What each point of a tile adds to its corners.
template <bool kJacobian, int kChunk, int kTile, typename T>
void corner_gradients(const TileCells<kTile, T>& cells, const TileCotangents<kChunk, kTile, T>& cotangents,
                      T (*gradient)[kChunk][kTile]) {
  for (int f = 0; f < kChunk; ++f) {
    if constexpr (!kJacobian) {
#pragma GCC ivdep
      for (int i = 0; i < kTile; ++i) {
        const CellPoint<T> p = cells.point(i);
        const T a = cotangents.a[f][i];
        gradient[0][f][i] = a * corner_weight(0, p);
        gradient[1][f][i] = a * corner_weight(1, p);
        gradient[2][f][i] = a * corner_weight(2, p);
        gradient[3][f][i] = a * corner_weight(3, p);
        gradient[4][f][i] = a * corner_weight(4, p);
        gradient[5][f][i] = a * corner_weight(5, p);
        gradient[6][f][i] = a * corner_weight(6, p);
        gradient[7][f][i] = a * corner_weight(7, p);
      }
      continue;
    }
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
}

// Adds the points of one tile to one level, in point order.
template <bool kJacobian, int kChunk, int kTile, typename T>
void scatter_tile(const TileCells<kTile, T>& cells, const TileCotangents<kChunk, kTile, T>& cotangents, int count,
                  int stride, T* grad_table) {
  alignas(64) T gradient[8][kChunk][kTile];
  corner_gradients<kJacobian>(cells, cotangents, gradient);
  for (int i = 0; i < count; ++i) {
    for (int c = 0; c < 8; ++c) {
      T* entry = grad_table + size_t(cells.entry[c][i]) * stride;
      for (int f = 0; f < kChunk; ++f) entry[f] += gradient[c][f][i];
    }
  }
}

template <int kChunk, int kTile, typename Source, typename T>
void scatter_level(const HashGrid& grid, int l, int64_t n, const T* x, const Source& source, T* grad_table) {
  TileCells<kTile, T> cells[2];  // of this tile and the next, whose entries are on their way from memory meanwhile
  TileCotangents<kChunk, kTile, T> cotangents;
  const auto count_from = [&](int64_t start) { return int(n - start < kTile ? n - start : kTile); };
  const auto approach = [&](int64_t start) {
    if (start >= n) return;
    alignas(64) T points[3][kTile];
    load_points(x + 3 * start, count_from(start), points);
    locate_tile(grid, grid.level[l], points, cells[start / kTile % 2]);
    prefetch_corners(grad_table, grid.features, cells[start / kTile % 2]);
  };
  approach(0);
  for (int64_t start = 0; start < n; start += kTile) {
    approach(start + kTile);
    for (int f0 = 0; f0 < grid.features; f0 += kChunk) {
      source.load(start, count_from(start), l * grid.features + f0, cotangents);
      scatter_tile<Source::kJacobian>(cells[start / kTile % 2], cotangents, count_from(start), grid.features,
                                      grad_table + f0);
    }
  }
}

// grad_table [entries, features] = d/dtable sum(a h + b J), written whole.
template <int kTile, typename Source, typename T>
void scatter_to_table(const HashGrid& grid, int64_t n, int64_t entries, const T* x, const Source& source,
                      T* grad_table) {
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
        scatter_level<decltype(chunk)::value, kTile>(grid, l, n, x, source, level_grad);
      });
    }
  });
}

}  // namespace nsr::cpu
