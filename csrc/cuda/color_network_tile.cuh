// What the colour network and its backward pass share on the GPU.
#pragma once

#include "../kernels/launch.h"
#include "grid_cell.cuh"
#include "tile.cuh"

namespace nsr::cuda {

// Rows of one of the columns that layers alternate between.
template <typename T>
int widest(const ColorNetwork<T>& network) {
  return larger(widest_hidden(network), network.inputs());
}

}  // namespace nsr::cuda
