// The signed distance network for the point of each thread: kernels/sdf_network.h in its notation.
#pragma once

#include "../kernels/launch.h"
#include "grid_cell.cuh"
#include "tile.cuh"

namespace nsr::cuda {

// Rows of one of the columns that layers alternate between.
template <typename T>
int widest(const SdfNetwork<T>& network) {
  return larger(widest_hidden(network), network.visible());
}

// Rows that evaluate() needs: the activations of the last hidden layer are never stored.
template <typename T>
int evaluation_rows(const SdfNetwork<T>& network) {
  return network.hidden() == 1 ? network.visible() : 2 * widest(network);
}

// f(x), in columns from row 0 on.
template <typename T>
__device__ __forceinline__ T evaluate(const SdfNetwork<T>& net, const T x[3], int rows) {
  Column<T> in = shared_column<T>(0), out = shared_column<T>(rows / 2);
  for (int d = 0; d < 3; ++d) in[d] = x[d];
  for (int l = 0; l < net.grid.active_levels; ++l)
    encode_level(net.grid, l, net.table, x, [&](int k, T h, T, T, T) { in[3 + k] = h; });
  const int last = net.hidden() - 1;
  for (int l = 0; l < last; ++l) {
    multiply<false>(net.layer[l], net.layer[l].bias, net.width(l), net.used_inputs(l), in,
                    [&](int j, T z) { out[j] = activate(net.activation, z).value; });
    swap(in, out);
  }
  T f = net.output().bias[0];
  const T* const weight = net.output().weight;
  multiply<false>(net.layer[last], net.layer[last].bias, net.width(last), net.used_inputs(last), in,
                  [&](int j, T z) { f += weight[j] * activate(net.activation, z).value; });
  return f;
}

}  // namespace nsr::cuda
