// The signed distance network for the point of each thread: kernels/sdf_network.h in its notation.
#pragma once

#include "../kernels/launch.h"
#include "filter_bank.cuh"
#include "modulated_bank.cuh"

namespace nsr::cuda {

// Rows of one of the columns that layers alternate between.
template <typename T>
int widest(const SdfNetwork<T>& network) {
  return network.banked() ? widest_hidden(network) : larger(widest_hidden(network), network.visible());
}

// Rows that evaluate() needs: the activations of the last hidden layer are never stored, but for the first one behind a bank.
template <typename T>
int evaluation_rows(const SdfNetwork<T>& network) {
  if (network.banked()) return (network.hidden() == 1 ? 1 : 2) * widest(network) + bank_rows(network, false);
  return network.hidden() == 1 ? network.visible() : 2 * widest(network);
}

// z_1 of the first dense layer, with the bank's columns from a row on.
template <BankKind kBank, typename T, typename Kept>
__device__ __forceinline__ void through_any_bank(const SdfNetwork<T>& net, const T x[3], int row, Column<T> z,
                                                 const Kept& kept) {
  const BankColumns<T> columns(net, row, false);
  if constexpr (kBank == kModulatedBank)
    through_modulated_bank(net, x, columns, z, kept);
  else
    through_bank(net, x, columns, z, kept);
}

// f(x), in columns from row 0 on, of evaluation_rows.
template <BankKind kBank, typename T>
__device__ __forceinline__ T evaluate(const SdfNetwork<T>& net, const T x[3], int widest) {
  const int last = net.hidden() - 1;
  Column<T> in = shared_column<T>(0), out = shared_column<T>(widest);
  const T* const weight = net.output().weight;
  T f = net.output().bias[0];
  int l = 0;
  if constexpr (kBank != kNoBank) {
    through_any_bank<kBank>(net, x, last ? 2 * widest : widest, in, NothingKept<T>());
    for (int j = 0; j < net.width(0); ++j) in[j] = activate(net.activation, in[j]).value;
    if (last == 0) {
      for (int j = 0; j < net.width(0); ++j) f += weight[j] * in[j];
      return f;
    }
    l = 1;
  } else {
    for (int d = 0; d < 3; ++d) in[d] = x[d];
    for (int level = 0; level < net.grid.active_levels; ++level)
      encode_level(net.grid, level, net.table, x, [&](int k, T h, T, T, T) { in[3 + k] = h; });
  }
  for (; l < last; ++l) {
    multiply<false>(net.layer[l], net.layer[l].bias, net.width(l), net.used_inputs(l), in,
                    [&](int j, T z) { out[j] = activate(net.activation, z).value; });
    swap(in, out);
  }
  multiply<false>(net.layer[last], net.layer[last].bias, net.width(last), net.used_inputs(last), in,
                  [&](int j, T z) { f += weight[j] * activate(net.activation, z).value; });
  return f;
}

}  // namespace nsr::cuda
