// What the networks share on the CPU: rows of a tile of points, the hash grid in them, and the matrices of the layers.
#pragma once

#include <cstdint>
#include <vector>

#include "dense_tile.h"
#include "hash_grid_tile.h"

namespace nsr::cpu {

// Rows of kLanes numbers, zero at first.
template <typename T>
class Rows {
 public:
  explicit Rows(int64_t count) : data_(size_t(count) * kLanes) {}
  Row<T>* at(int64_t row) { return reinterpret_cast<Row<T>*>(data_.data()) + row; }
  const Row<T>* at(int64_t row) const { return reinterpret_cast<const Row<T>*>(data_.data()) + row; }

 private:
  std::vector<T> data_;
};

// The rows of a tile in what a forward pass keeps for its backward pass.
template <typename Network, typename T>
Row<T>* tile_of(T* kept, const Network& network, int64_t tile) {
  return reinterpret_cast<Row<T>*>(kept) + tile * network.kept();
}

// rows[c][i] = column c of point i, of `count` <= kLanes points; lanes behind repeat the last point.
template <typename T>
void load_columns(const T* points, int columns, int count, Row<T>* rows) {
  for (int i = 0; i < kLanes; ++i) {
    const T* const point = points + int64_t(i < count ? i : count - 1) * columns;
    for (int c = 0; c < columns; ++c) rows[c][i] = point[c];
  }
}

// The reverse, of the first `count` lanes.
template <typename T>
void store_columns(const Row<T>* rows, int columns, int count, T* points) {
  for (int i = 0; i < count; ++i)
    for (int c = 0; c < columns; ++c) points[int64_t(i) * columns + c] = rows[c][i];
}

constexpr int kAhead = 2;  // levels whose entries are fetched ahead of use: memory answers many requests at a time

// h [active levels * features] and, with kJacobian, jacobian [active levels * features * 3] of a tile.
template <bool kJacobian, typename T>
void encode_tile(const HashGrid& grid, const T* table, const Row<T>* points, Row<T>* h, Row<T>* jacobian) {
  with_chunk(grid.features, [&](auto chunk) {
    constexpr int kChunk = decltype(chunk)::value;
    alignas(64) T v[kChunk][8][kLanes];
    TileCells<kLanes, T> cells[kAhead + 1];  // of this level and the next, whose entries are on their way
    const auto entries = [&](int l) { return table + grid.level[l].offset * grid.features; };
    const auto approach = [&](int l) {
      if (l >= grid.active_levels) return;
      locate_tile(grid, grid.level[l], points, cells[l % (kAhead + 1)]);
      prefetch_corners(entries(l), grid.features, cells[l % (kAhead + 1)]);
    };
    for (int l = 0; l < kAhead; ++l) approach(l);
    for (int l = 0; l < grid.active_levels; ++l) {
      approach(l + kAhead);
      for (int f0 = 0; f0 < grid.features; f0 += kChunk) {
        gather_corners<kChunk>(entries(l) + f0, grid.features, cells[l % (kAhead + 1)], v);
        for (int f = 0; f < kChunk; ++f) {
          const int row = l * grid.features + f0 + f;
          if constexpr (kJacobian) {
            Row<T>* const j = jacobian + 3 * row;
            interpolate_corners<true>(cells[l % (kAhead + 1)], v[f], h[row], j[0], j[1], j[2]);
          } else {
            interpolate_corners<false>(cells[l % (kAhead + 1)], v[f], h[row], h[row], h[row], h[row]);
          }
        }
      }
    }
  });
}

template <typename T>
Matrix<T> forward_matrix(const DenseLayer<T>& layer) {
  return row_major(layer.weight, layer.inputs);
}

template <typename T>
Matrix<T> backward_matrix(const DenseLayer<T>& layer) {
  return transposed(layer.weight, layer.inputs);
}

}  // namespace nsr::cpu
