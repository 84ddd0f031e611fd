// A tile of points through the network of kernels/sdf_network.h: the encoding, and the SDF alone.
#pragma once

#include <cstdint>
#include <vector>

#include "../kernels/sdf_network.h"
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

// rows [count] = s(rows), in place.
template <typename T>
void activate_rows(Activation activation, int count, Row<T>* rows) {
  T* z = rows[0];
  const int64_t numbers = int64_t(count) * kLanes;
  if (activation == kSquareplus) {
#pragma GCC ivdep
    for (int64_t i = 0; i < numbers; ++i) z[i] = activate<kSquareplus>(z[i]).value;
  } else {
    for (int64_t i = 0; i < numbers; ++i) z[i] = activate<kSoftplus100>(z[i]).value;
  }
}

// Evaluates the SDF of tiles; owns the rows in between.
template <typename T>
class SdfTile {
 public:
  explicit SdfTile(const SdfNetwork<T>& network)
      : network_(network), input_(network.visible()), even_(kMaxNetworkWidth), odd_(kMaxNetworkWidth) {}

  // Coordinate d of point i is points()[d][i].
  Row<T>* points() { return input_.at(0); }

  // The SDF of all lanes, valid until the next call.
  const T* evaluate() {
    encode_tile<false, T>(network_.grid, network_.table, points(), input_.at(3), nullptr);
    const Row<T>* in = input_.at(0);
    for (int l = 0; l < network_.hidden(); ++l) {
      const DenseLayer<T>& layer = network_.layer[l];
      Row<T>* out = (l % 2 ? odd_ : even_).at(0);
      multiply(row_major(layer.weight, layer.inputs), layer.bias, layer.outputs, network_.used_inputs(l), in, out);
      activate_rows(network_.activation, layer.outputs, out);
      in = out;
    }
    const DenseLayer<T>& output = network_.output();
    multiply(row_major(output.weight, output.inputs), output.bias, 1, output.inputs, in, sdf_);
    return sdf_[0];
  }

 private:
  const SdfNetwork<T>& network_;
  Rows<T> input_, even_, odd_;
  alignas(64) Row<T> sdf_[1];
};

}  // namespace nsr::cpu
