// The arguments of a signed distance network, as every op on one takes them: checks, and the description that kernels/
// works with.
#pragma once

#include <ATen/core/Tensor.h>

#include "../kernels/sdf_network.h"
#include "dense_layers_arguments.h"
#include "hash_grid_arguments.h"

namespace nsr {

// Contiguous tensors of a network, alive for as long as the pointers of describe() are used.
struct NetworkTensors {
  Tensor table;
  HashGrid grid;
  LayerTensors layers;
  Activation activation;

  int64_t features() const { return layers.widths.back() - 1; }

  template <typename T>
  SdfNetwork<T> describe() const {
    const int64_t used = 3 + grid.active_levels * grid.features;
    return {layers.describe<T>(used), grid, table.const_data_ptr<T>(), activation};
  }
};

inline NetworkTensors check_network(const Tensor& table, IntArrayRef resolutions, IntArrayRef offsets, bool smoothstep,
                                    double extent, int64_t active_levels, const Tensor& parameters, IntArrayRef widths,
                                    int64_t activation, const char* op) {
  TORCH_CHECK(table.dim() == 2, op, ": expected table [T, F], got ", table.sizes());
  TORCH_CHECK(activation == kSoftplus100 || activation == kSquareplus, op, ": expected activation ",
              int64_t(kSoftplus100), " (softplus) or ", int64_t(kSquareplus), " (squareplus), got ", activation);
  const HashGrid grid = make_grid(table, resolutions, offsets, smoothstep, extent, active_levels, op);
  const LayerTensors layers = check_layers(parameters, widths, 3 + grid.outputs(), table, "table", op);
  return {contiguous_table(table), grid, layers, Activation(activation)};
}

}  // namespace nsr
