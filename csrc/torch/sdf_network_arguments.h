// The arguments of a signed distance network, as every op on one takes them: checks, and the description that kernels/ works
// with.
#pragma once

#include <ATen/core/Tensor.h>

#include <vector>

#include "../kernels/sdf_network.h"
#include "hash_grid_arguments.h"

namespace nsr {

using at::TensorList;

// Contiguous tensors of a network, alive for as long as the pointers of describe() are used.
struct NetworkTensors {
  Tensor table;
  std::vector<Tensor> weights, biases;
  HashGrid grid;
  Activation activation;

  template <typename T>
  SdfNetwork<T> describe() const {
    SdfNetwork<T> network;
    network.grid = grid;
    network.table = table.const_data_ptr<T>();
    network.activation = activation;
    network.layers = int32_t(weights.size());
    for (size_t l = 0; l < weights.size(); ++l)
      network.layer[l] = {weights[l].const_data_ptr<T>(), biases[l].const_data_ptr<T>(), int32_t(weights[l].size(1)),
                          int32_t(weights[l].size(0))};
    return network;
  }
};

inline void check_layer(const Tensor& weight, const Tensor& bias, int64_t inputs, bool hidden, size_t l,
                        const Tensor& table, const char* op) {
  TORCH_CHECK(weight.dim() == 2 && weight.size(1) == inputs && weight.size(0) >= 1, op, ": expected weights[", l,
              "] [outputs, ", inputs, "], got ", weight.sizes());
  TORCH_CHECK(!hidden || weight.size(0) <= kMaxNetworkWidth, op, ": hidden layer ", l, " has width ", weight.size(0),
              "; the fused network takes at most ", kMaxNetworkWidth);
  TORCH_CHECK(bias.dim() == 1 && bias.size(0) == weight.size(0), op, ": expected biases[", l, "] [", weight.size(0),
              "], got ", bias.sizes());
  for (const Tensor& tensor : {weight, bias})
    TORCH_CHECK(tensor.scalar_type() == table.scalar_type() && tensor.device() == table.device(), op, ": expected layer ",
                l, " with the dtype and device of the table, ", table.scalar_type(), " on ", table.device(), "; got ",
                tensor.scalar_type(), " on ", tensor.device());
}

inline NetworkTensors check_network(const Tensor& table, IntArrayRef resolutions, IntArrayRef offsets, bool smoothstep,
                                    int64_t active_levels, TensorList weights, TensorList biases, int64_t activation,
                                    const char* op) {
  TORCH_CHECK(table.dim() == 2, op, ": expected table [T, F], got ", table.sizes());
  TORCH_CHECK(weights.size() == biases.size() && weights.size() >= 2 && weights.size() <= size_t(kMaxDenseLayers), op,
              ": expected 2 to ", kMaxDenseLayers, " layers, each with a weight and a bias; got ", weights.size(), " and ",
              biases.size());
  TORCH_CHECK(activation == kSoftplus100 || activation == kSquareplus, op, ": expected activation ",
              int64_t(kSoftplus100), " (softplus) or ", int64_t(kSquareplus), " (squareplus), got ", activation);
  NetworkTensors network{table.contiguous(), {}, {}, {}, Activation(activation)};
  network.grid = make_grid(table, resolutions, offsets, smoothstep, active_levels, op);
  int64_t inputs = 3 + network.grid.outputs();
  for (size_t l = 0; l < weights.size(); ++l) {
    check_layer(weights[l], biases[l], inputs, l + 1 < weights.size(), l, table, op);
    network.weights.push_back(weights[l].contiguous());
    network.biases.push_back(biases[l].contiguous());
    inputs = weights[l].size(0);
  }
  return network;
}

}  // namespace nsr
