// Dense layers one after the other, z_l = W_l a_{l-1} + b_l with an activation between them: what the networks share.
#pragma once

#include <cstdint>

#include "hd.h"

namespace nsr {

constexpr int kMaxDenseLayers = 8;     // hidden layers and the output layer
constexpr int kMaxNetworkWidth = 128;  // of a hidden layer: what lets a tile of points stay in the first cache

// weight [outputs, inputs], row-major; bias [outputs].
template <typename T>
struct DenseLayer {
  const T* weight;
  const T* bias;
  int32_t inputs, outputs;
};

template <typename T>
struct DenseLayers {
  int32_t layers;        // hidden layers and the output layer
  int32_t first_inputs;  // used by the first layer: the columns behind them take no part in anything
  DenseLayer<T> layer[kMaxDenseLayers];

  NSR_HD int hidden() const { return layers - 1; }
  NSR_HD int width(int l) const { return layer[l].outputs; }
  NSR_HD const DenseLayer<T>& output() const { return layer[layers - 1]; }
  NSR_HD int used_inputs(int l) const { return l == 0 ? first_inputs : layer[l].inputs; }
  NSR_HD int widths_before(int l) const {
    int sum = 0;
    for (int i = 0; i < l; ++i) sum += width(i);
    return sum;
  }

  // Places of the parameters in one array, weight and bias of each layer in turn.
  NSR_HD int64_t weight_place(int l) const {
    int64_t place = 0;
    for (int i = 0; i < l; ++i) place += int64_t(layer[i].outputs) * (layer[i].inputs + 1);
    return place;
  }
  NSR_HD int64_t bias_place(int l) const { return weight_place(l) + int64_t(layer[l].outputs) * layer[l].inputs; }
  NSR_HD int64_t parameters() const { return weight_place(layers); }
};

// Where the gradients of the layers go, in the shapes of the layers; all of them are wanted or none (null pointers).
template <typename T>
struct LayerGradients {
  T* weight[kMaxDenseLayers];
  T* bias[kMaxDenseLayers];

  NSR_HD bool wanted() const { return weight[0] != nullptr; }
};

}  // namespace nsr
