// A tile of points through the network of kernels/sdf_network.h: the SDF alone.
#pragma once

#include <cstdint>

#include "filter_bank_tile.h"

namespace nsr::cpu {

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
      : network_(network),
        bank_(network),
        input_(network.visible()),
        features_(network.banked() ? network.grid_rows() : 0),
        even_(kMaxNetworkWidth),
        odd_(kMaxNetworkWidth) {}

  // Coordinate d of point i is points()[d][i].
  Row<T>* points() { return input_.at(0); }

  // The SDF of all lanes, valid until the next call.
  const T* evaluate() {
    Row<T>* const features = network_.banked() ? features_.at(0) : input_.at(3);
    encode_tile<false, T>(network_.grid, network_.table, points(), features, nullptr);
    if (network_.banked()) bank_.evaluate(features, input_.at(0), nullptr);
    const Row<T>* in = input_.at(0);
    for (int l = 0; l < network_.hidden(); ++l) {
      const DenseLayer<T>& layer = network_.layer[l];
      Row<T>* out = (l % 2 ? odd_ : even_).at(0);
      multiply(forward_matrix(layer), layer.bias, layer.outputs, network_.used_inputs(l), in, out);
      activate_rows(network_.activation, layer.outputs, out);
      in = out;
    }
    const DenseLayer<T>& output = network_.output();
    multiply(forward_matrix(output), output.bias, 1, output.inputs, in, sdf_);
    return sdf_[0];
  }

 private:
  const SdfNetwork<T>& network_;
  BankForward<T> bank_;
  Rows<T> input_, features_, even_, odd_;
  alignas(64) Row<T> sdf_[1];
};

}  // namespace nsr::cpu
