// The arguments of a signed distance network, as every op on one takes them: checks, and the description that kernels/
// works with.
#pragma once

#include <ATen/core/Tensor.h>

#include "../kernels/sdf_network.h"
#include "dense_layers_arguments.h"
#include "hash_grid_arguments.h"

namespace nsr {

// The filter bank of a network: its parameters in one tensor, in the order of kernels/filter_bank.h. None: no parameters.
struct BankArguments {
  const OptionalTensor& parameters;
  int64_t width;
  bool modulated;
  double omega;
};

// Contiguous tensors of a network, alive for as long as the pointers of describe() are used.
struct NetworkTensors {
  Tensor table;
  HashGrid grid;
  LayerTensors layers;
  Activation activation;
  Tensor bank;           // undefined where there is none
  Tensor squares, sums;  // of the weights of a modulated bank, see FilterBank
  int32_t bank_width = 0;
  bool modulated = false;
  double omega = 0;

  int64_t features() const { return layers.widths.back() - 1; }

  template <typename T>
  SdfNetwork<T> describe() const {
    const int64_t used = 3 + grid.active_levels * (bank_width ? bank_width : grid.features);
    const FilterBank<T> filter_bank{bank_width, grid.features, grid.levels, modulated, T(omega), T(grid.inverse_extent),
                                    bank_width ? bank.const_data_ptr<T>() : nullptr,
                                    modulated ? squares.const_data_ptr<T>() : nullptr,
                                    modulated ? sums.const_data_ptr<T>() : nullptr};
    return {layers.describe<T>(used), grid, table.const_data_ptr<T>(), activation, filter_bank};
  }
};

inline NetworkTensors check_network(const Tensor& table, IntArrayRef resolutions, IntArrayRef offsets, bool smoothstep,
                                    double extent, int64_t active_levels, const Tensor& parameters, IntArrayRef widths,
                                    int64_t activation, const BankArguments& bank, const char* op) {
  TORCH_CHECK(table.dim() == 2, op, ": expected table [T, F], got ", table.sizes());
  TORCH_CHECK(activation == kSoftplus100 || activation == kSquareplus, op, ": expected activation ",
              int64_t(kSoftplus100), " (softplus) or ", int64_t(kSquareplus), " (squareplus), got ", activation);
  const HashGrid grid = make_grid(table, resolutions, offsets, smoothstep, extent, active_levels, op);
  const int64_t width = bank.parameters ? bank.width : 0;
  if (bank.parameters) {
    TORCH_CHECK(width >= 1 && width <= kMaxNetworkWidth && bank.omega > 0, op, ": expected a bank of width 1 to ",
                kMaxNetworkWidth, " and omega > 0, got ", width, " and ", bank.omega);
    const int64_t numbers = 
        FilterBank<float>{int32_t(width), grid.features, grid.levels, bank.modulated, 0, 0, nullptr, nullptr, nullptr}
            .numbers();
    TORCH_CHECK(bank.parameters->dim() == 1 && bank.parameters->size(0) == numbers &&
                    bank.parameters->scalar_type() == table.scalar_type() && bank.parameters->device() == table.device(),
                op, ": expected the bank's parameters [", numbers, "] with the dtype and device of the table, got ",
                bank.parameters->sizes(), ", ", bank.parameters->scalar_type(), ", ", bank.parameters->device());
  }
  const int64_t inputs = 3 + (width ? grid.levels * width : grid.outputs());
  const LayerTensors layers = check_layers(parameters, widths, inputs, table, "table", op);
  NetworkTensors network{contiguous_table(table), grid, layers, Activation(activation)};
  if (!width) return network;
  network.bank = bank.parameters->detach().contiguous();
  network.bank_width = int32_t(width);
  network.modulated = bank.modulated;
  network.omega = bank.omega;
  if (bank.modulated) {
    const int64_t first = FilterBank<float>{int32_t(width), grid.features, grid.levels}.weight_place(1);
    network.squares = network.bank.narrow(0, first, grid.levels * width * width).view({-1, width}).square();
    network.sums = network.squares.sum(1);
  }
  return network;
}

}  // namespace nsr
