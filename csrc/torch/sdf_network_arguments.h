// The arguments of a signed distance network, as every op on one takes them: checks, and the description that kernels/
// works with. The layers come in one tensor, weight [outputs, inputs] and bias [outputs] of each in turn: an op on
// lists of tensors costs more to dispatch than a small network costs to evaluate.
#pragma once

#include <ATen/core/Tensor.h>

#include "../kernels/sdf_network.h"
#include "hash_grid_arguments.h"

namespace nsr {

// Contiguous tensors of a network, alive for as long as the pointers of describe() are used.
struct NetworkTensors {
  Tensor table, parameters;
  HashGrid grid;
  IntArrayRef widths;  // outputs of each layer
  Activation activation;

  int64_t features() const { return widths.back() - 1; }

  // fn(layer, inputs, outputs, place of its weight in the parameters, place of its bias).
  template <typename Fn>
  void for_each_layer(const Fn& fn) const {
    int64_t inputs = 3 + grid.outputs(), place = 0;
    for (size_t l = 0; l < widths.size(); ++l) {
      const int64_t weight = place, bias = weight + widths[l] * inputs;
      fn(l, inputs, widths[l], weight, bias);
      place = bias + widths[l];
      inputs = widths[l];
    }
  }

  int64_t parameter_count() const {
    int64_t count = 0;
    for_each_layer([&](size_t, int64_t, int64_t outputs, int64_t, int64_t bias) { count = bias + outputs; });
    return count;
  }

  template <typename T>
  SdfNetwork<T> describe() const {
    SdfNetwork<T> network;
    network.grid = grid;
    network.table = table.const_data_ptr<T>();
    network.activation = activation;
    network.layers = int32_t(widths.size());
    const T* const all = parameters.const_data_ptr<T>();
    for_each_layer([&](size_t l, int64_t inputs, int64_t outputs, int64_t weight, int64_t bias) {
      network.layer[l] = {all + weight, all + bias, int32_t(inputs), int32_t(outputs)};
    });
    return network;
  }
};

inline NetworkTensors check_network(const Tensor& table, IntArrayRef resolutions, IntArrayRef offsets, bool smoothstep,
                                    int64_t active_levels, const Tensor& parameters, IntArrayRef widths,
                                    int64_t activation, const char* op) {
  TORCH_CHECK(table.dim() == 2, op, ": expected table [T, F], got ", table.sizes());
  TORCH_CHECK(widths.size() >= 2 && widths.size() <= size_t(kMaxDenseLayers), op, ": expected the widths of 2 to ",
              kMaxDenseLayers, " layers, got ", widths);
  for (size_t l = 0; l < widths.size(); ++l)
    TORCH_CHECK(widths[l] >= 1 && (l + 1 == widths.size() ? widths[l] <= (1 << 20) : widths[l] <= kMaxNetworkWidth), op,
                ": expected hidden layers of 1 to ", kMaxNetworkWidth, " neurons and at least 1 output, got widths ",
                widths);
  TORCH_CHECK(activation == kSoftplus100 || activation == kSquareplus, op, ": expected activation ",
              int64_t(kSoftplus100), " (softplus) or ", int64_t(kSquareplus), " (squareplus), got ", activation);
  const HashGrid grid = make_grid(table, resolutions, offsets, smoothstep, active_levels, op);
  const NetworkTensors network{table.contiguous(), parameters.contiguous(), grid, widths, Activation(activation)};
  TORCH_CHECK(parameters.dim() == 1 && parameters.size(0) == network.parameter_count(), op, ": expected parameters [",
              network.parameter_count(), "] for ", 3 + grid.outputs(), " inputs and widths ", widths, ", got ",
              parameters.sizes());
  TORCH_CHECK(parameters.scalar_type() == table.scalar_type() && parameters.device() == table.device(), op,
              ": expected parameters with the dtype and device of the table, ", table.scalar_type(), " on ",
              table.device(), "; got ", parameters.scalar_type(), " on ", parameters.device());
  return network;
}

}  // namespace nsr
