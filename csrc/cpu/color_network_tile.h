// The rows that the colour network's forward pass keeps for its backward pass, where ColorNetwork::kept_... says.
#pragma once

#include "../kernels/color_network.h"
#include "network_tile.h"

namespace nsr::cpu {

template <typename T>
struct ColorRows {
  Row<T>* input;                    // a_0
  Row<T>* jacobian;                 // J
  Row<T>* hidden[kMaxDenseLayers];  // a_l
  Row<T>* rgb;

  ColorRows(const ColorNetwork<T>& network, Row<T>* row)
      : input(row), jacobian(row + network.kept_jacobian()), rgb(row + network.kept_rgb()) {
    for (int l = 0; l < network.hidden(); ++l) hidden[l] = row + network.kept_hidden(l);
  }

  // The input of layer l.
  const Row<T>* before(int l) const { return l == 0 ? input : hidden[l - 1]; }
};

}  // namespace nsr::cpu
