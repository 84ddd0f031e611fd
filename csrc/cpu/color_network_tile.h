// The rows that the colour network's forward pass keeps for its backward pass, in the order of ColorNetwork::kept.
#pragma once

#include "../kernels/color_network.h"
#include "network_tile.h"

namespace nsr::cpu {

template <typename T>
struct ColorRows {
  Row<T>* input;                    // a_0
  Row<T>* jacobian;                 // J: row 3 k + d is d h_k / d x_d, of active levels
  Row<T>* hidden[kMaxDenseLayers];  // a_l
  Row<T>* rgb;

  ColorRows(const ColorNetwork<T>& network, Row<T>* row) {
    const auto next = [&row](int count) {
      Row<T>* const first = row;
      row += count;
      return first;
    };
    input = next(network.inputs());
    jacobian = next(3 * network.visible());
    for (int l = 0; l < network.hidden(); ++l) hidden[l] = next(network.width(l));
    rgb = next(kColors);
  }

  // The input of layer l.
  const Row<T>* before(int l) const { return l == 0 ? input : hidden[l - 1]; }
};

}  // namespace nsr::cpu
