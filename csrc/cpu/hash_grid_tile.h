// Tiles of points in a hash grid: where they fall, the corner values, and the interpolation, with the per-point maths
// of kernels/hash_grid.h in SIMD lanes. kTile points at a time; every lane is computed alike, so what a point gets does
// not depend on its place in a tile.
//
// The lane loops are marked ivdep rather than `omp simd`: that keeps small structs in memory, where gcc gives up on
// them.
#pragma once

#include <cstring>
#include <type_traits>

#include "../kernels/half.h"
#include "../kernels/hash_grid.h"
#include "shuffle.h"

namespace nsr::cpu {

// Where the points of one tile fall in one level. Lanes past the end of the data repeat the last point.
template <int kTile, typename T>
struct TileCells {
  alignas(64) T s[3][kTile];
  alignas(64) T ds[3][kTile];
  alignas(64) T dds[3][kTile];
  alignas(64) uint32_t entry[8][kTile];

  NSR_HD CellPoint<T> point(int i) const {
    return {s[0][i], s[1][i], s[2][i], ds[0][i], ds[1][i], ds[2][i], dds[0][i], dds[1][i], dds[2][i]};
  }
};

template <int kTile, typename T>
using TileCorners = T[8][kTile];

template <int kTile, typename T>
void load_points(const T* x, int count, T (*points)[kTile]) {
  for (int d = 0; d < 3; ++d) {
    for (int i = 0; i < count; ++i) points[d][i] = x[3 * i + d];
    for (int i = count; i < kTile; ++i) points[d][i] = points[d][count - 1];
  }
}

template <bool kSmooth, int kTile, typename T>
void locate_on_axes(T inverse_extent, int32_t resolution, const T (*points)[kTile], TileCells<kTile, T>& cells,
                    uint32_t (*cell)[kTile]) {
  for (int d = 0; d < 3; ++d) {
#pragma GCC ivdep
    for (int i = 0; i < kTile; ++i) {
      const AxisPoint<T> axis = locate_on_axis(points[d][i], inverse_extent, resolution, kSmooth);
      cell[d][i] = uint32_t(axis.cell);
      cells.s[d][i] = axis.s;
      cells.ds[d][i] = axis.ds;
      cells.dds[d][i] = axis.dds;
    }
  }
}

template <bool kHashed, int kTile>
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

template <int kTile, typename T>
void locate_tile(const HashGrid& grid, const GridLevel& level, const T (*points)[kTile], TileCells<kTile, T>& cells) {
  alignas(64) uint32_t cell[3][kTile];
  const T inverse_extent = T(grid.inverse_extent);
  if (grid.smoothstep)
    locate_on_axes<true>(inverse_extent, level.resolution, points, cells, cell);
  else
    locate_on_axes<false>(inverse_extent, level.resolution, points, cells, cell);
  if (level.hashed)
    enumerate_corners<true>(level, cell, cells.entry);
  else
    enumerate_corners<false>(level, cell, cells.entry);
}

// Brings the entries of a level towards the first cache. Of the two corners along x, the second mostly shares the first
// one's line: dense levels have x fastest, and the hash only flips low bits between them.
template <int kTile, typename T>
void prefetch_corners(const T* table, int stride, const TileCells<kTile, T>& cells) {
  for (int c = 0; c < 8; c += 2)
    for (int i = 0; i < kTile; ++i) __builtin_prefetch(table + size_t(cells.entry[c][i]) * stride);
}

#ifdef NSR_SHUFFLE
typedef double FourPairs __attribute__((vector_size(32)));

// The entries of points a, b, c, d, two features each.
inline EightFloats four_entries(const float* table, int stride, const uint32_t* entry, int a, int b, int c, int d) {
  const auto pair = [=](int i) {
    double both;
    std::memcpy(&both, table + size_t(entry[i]) * stride, sizeof(both));
    return both;
  };
  const FourPairs pairs = {pair(a), pair(b), pair(c), pair(d)};
  return (EightFloats)pairs;
}

// gather_corners for two float features: one load per entry, and shuffles in registers.
template <int kTile>
void gather_pairs(const float* table, int stride, const TileCells<kTile, float>& cells,
                  TileCorners<kTile, float>* values) {
  static_assert(kTile % 8 == 0, "eight points at a time");
  for (int c = 0; c < 8; ++c) {
    for (int i = 0; i < kTile; i += 8) {
      const EightFloats low = four_entries(table, stride, cells.entry[c] + i, 0, 1, 4, 5);
      const EightFloats high = four_entries(table, stride, cells.entry[c] + i, 2, 3, 6, 7);
      const EightFloats first = __builtin_shufflevector(low, high, 0, 2, 8, 10, 4, 6, 12, 14);
      const EightFloats second = __builtin_shufflevector(low, high, 1, 3, 9, 11, 5, 7, 13, 15);
      std::memcpy(&values[0][c][i], &first, sizeof(first));
      std::memcpy(&values[1][c][i], &second, sizeof(second));
    }
  }
}
#endif

// values[f][c][i] = feature f of corner c of point i; `table` points at the level's first entry and chunk.
template <int kChunk, int kTile, typename T, typename Entry>
void gather_corners(const Entry* table, int stride, const TileCells<kTile, T>& cells, TileCorners<kTile, T>* values) {
#ifdef NSR_SHUFFLE
  if constexpr (kChunk == 2 && std::is_same_v<Entry, float>) return gather_pairs(table, stride, cells, values);
#endif
  for (int c = 0; c < 8; ++c) {
    for (int i = 0; i < kTile; ++i) {
      const Entry* entry = table + size_t(cells.entry[c][i]) * stride;
      for (int f = 0; f < kChunk; ++f) values[f][c][i] = number(entry[f]);
    }
  }
}

// One feature of a tile, from its corners: h and, with kJacobian, dh/dx, dh/dy and dh/dz (else never touched).
template <bool kJacobian, int kTile, typename T>
void interpolate_corners(const TileCells<kTile, T>& cells, const TileCorners<kTile, T>& v, T* h, T* dx, T* dy, T* dz) {
#pragma GCC ivdep
  for (int i = 0; i < kTile; ++i) {
    const CellValue<T> value = interpolate_cell(v[0][i], v[1][i], v[2][i], v[3][i], v[4][i], v[5][i], v[6][i], v[7][i],
                                                cells.s[0][i], cells.s[1][i], cells.s[2][i]);
    h[i] = value.h;
    if (kJacobian) {
      dx[i] = value.hx * cells.ds[0][i];
      dy[i] = value.hy * cells.ds[1][i];
      dz[i] = value.hz * cells.ds[2][i];
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

}  // namespace nsr::cpu
