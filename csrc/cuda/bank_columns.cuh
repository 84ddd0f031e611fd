// What the filter banks share for the point of each thread: kernels/filter_bank.h in its notation.
//
// Every function here is called by all threads of a block.
#pragma once

#include "grid_cell.cuh"
#include "tile.cuh"

namespace nsr::cuda {

// What kernels are compiled for, so that those without a bank do without its registers.
enum BankKind { kNoBank, kPublishedBank, kModulatedBank };

// Calls fn(kind) with the kind of the network's bank as a constant; a bank without levels to show is none.
template <typename T, typename Fn>
auto with_bank_kind(const SdfNetwork<T>& network, const Fn& fn) {
  if (!network.banked()) return fn(std::integral_constant<BankKind, kNoBank>());
  if (network.bank.modulated) return fn(std::integral_constant<BankKind, kModulatedBank>());
  return fn(std::integral_constant<BankKind, kPublishedBank>());
}

// Columns of the bank's width that a pass takes.
template <typename T>
__host__ __device__ int bank_columns(const SdfNetwork<T>& network, bool backward) {
  return network.bank.modulated ? (backward ? 6 : 4) : 3;
}

// Rows of shared memory: these columns, one for a point or the features of a level, and forwards, modulated, one for the first
// dense layer and one with a number for each level.
template <typename T>
int bank_rows(const SdfNetwork<T>& network, bool backward) {
  if (!network.banked()) return 0;
  const int few = larger(network.bank.features, 3);
  const int weighed = network.bank.modulated && !backward ? network.width(0) + network.taps() : 0;
  return bank_columns(network, backward) * network.bank.width + few + weighed;
}

template <typename T>
struct BankColumns {
  Column<T> a, b, c, d, e, f;  // the last three where there are as many
  Column<T> few, weighed, levels;

  __device__ BankColumns(const SdfNetwork<T>& network, int first_row, bool backward) {
    const int width = network.bank.width, behind = first_row + bank_columns(network, backward) * width;
    a = shared_column<T>(first_row);
    b = shared_column<T>(first_row + width);
    c = shared_column<T>(first_row + 2 * width);
    d = shared_column<T>(first_row + 3 * width);
    e = shared_column<T>(first_row + 4 * width);
    f = shared_column<T>(first_row + 5 * width);
    few = shared_column<T>(behind);
    const int weighed_row = behind + (network.bank.features > 3 ? network.bank.features : 3);
    weighed = shared_column<T>(weighed_row);
    levels = shared_column<T>(weighed_row + network.width(0));
  }
};

// The part of the first dense layer that takes the tap of level l; l = 0: the point.
template <typename T>
__device__ __forceinline__ int tap_column(const SdfNetwork<T>& net, int l) {
  return l ? 3 + (l - 1) * net.bank.width : 0;
}

template <typename T>
__device__ __forceinline__ DenseLayer<T> layer_of_tap(const SdfNetwork<T>& net, int l) {
  const DenseLayer<T>& dense = net.layer[0];
  return {dense.weight + tap_column(net, l), nullptr, dense.inputs, dense.outputs};
}

// out = W in, or with kTransposed W^T in, without the bias. Not inlined: the modulated bank has so many that compiling them all
// would take minutes.
template <bool kTransposed, typename T>
__device__ __noinline__ void multiply_to(DenseLayer<T> layer, int outputs, int inputs, Column<T> in, Column<T> out) {
  multiply<kTransposed>(layer, nullptr, outputs, inputs, in, [&](int j, T value) { out[j] = value; });
}

// What the forward pass keeps of a bank where values are all: nothing.
template <typename T>
struct NothingKept {
  __device__ void point(int, T) const {}
  __device__ void z(int, int, T) const {}
  __device__ void y(int, int, T) const {}
  __device__ void v(int, int, T) const {}
  __device__ void w(int, int, T) const {}
  __device__ void n(int, int, T) const {}
  __device__ void tap(int, int, T) const {}
  __device__ void attend(Column<T>, T, T) const {}
  __device__ void feature(int, T, T, T, T) const {}
};

template <typename T>
struct BankKept {
  const SdfNetwork<T>& net;
  KeptColumn<T> rows;

  __device__ void point(int d, T value) const { rows[d] = value; }
  __device__ void z(int l, int j, T value) const { rows[net.kept_bank_z(l) + j] = value; }
  __device__ void y(int l, int j, T value) const { rows[net.kept_bank_y(l) + j] = value; }
  __device__ void v(int l, int j, T value) const { rows[net.kept_bank_v(l) + j] = value; }
  __device__ void w(int l, int j, T value) const { rows[net.kept_bank_w(l) + j] = value; }
  __device__ void n(int l, int j, T value) const { rows[net.kept_bank_n(l) + j] = value; }
  __device__ void tap(int l, int j, T value) const { rows[tap_column(net, l) + j] = value; }
  // Weighs the taps: scores of the levels, and their sum in units of exp(most). Nothing that is kept is read and written again,
  // since threads behind the end share a slot.
  __device__ void attend(Column<T> scores, T most, T sum) const {
    for (int l = 1; l <= net.taps(); ++l) {
      const T alpha = T(net.taps()) * std::exp(scores[l - 1] - most) / sum;
      rows[net.kept_bank_alpha(l)] = alpha;
      for (int j = 0; j < net.bank.width; ++j)
        tap(l, j, alpha * sine_layer(net.bank.omega, rows[net.kept_bank_z(l) + j]).value);
    }
  }
  __device__ void feature(int k, T h, T hx, T hy, T hz) const {
    rows[net.kept_features() + k] = h;
    const int row = net.kept_jacobian() + 3 * k;
    rows[row] = hx;
    rows[row + 1] = hy;
    rows[row + 2] = hz;
  }
};

// What the first dense layer makes of the point to z, and t_0 to `tap`.
template <typename T, typename Kept>
__device__ __forceinline__ void enter_bank(const SdfNetwork<T>& net, const T x[3], const BankColumns<T>& columns, Column<T> z,
                                           Column<T> tap, const Kept& kept) {
  const FilterBank<T>& bank = net.bank;
  for (int d = 0; d < 3; ++d) {
    columns.few[d] = x[d];
    kept.point(d, x[d]);
  }
  multiply<false>(net.layer[0], net.layer[0].bias, net.width(0), 3, columns.few, [&](int j, T value) { z[j] = value; });
  for (int d = 0; d < 3; ++d) columns.few[d] = x[d] * bank.inverse_extent;
  multiply<false>(bank.first(), bank.first().bias, bank.width, 3, columns.few, [&](int j, T value) {
    kept.z(0, j, value);
    tap[j] = sine_layer(bank.omega, value).value;
  });
}

// From r_0, its end of the reverse pass; s: a column for that.
template <typename T>
__device__ __forceinline__ void leave_bank(const SdfNetwork<T>& net, Column<T> r, Column<T> s, KeptColumn<T> kept,
                                           T gradient[3]) {
  const FilterBank<T>& bank = net.bank;
  for (int j = 0; j < bank.width; ++j) {
    kept[net.kept_bank_r(0) + j] = r[j];
    s[j] = r[j] * sine_layer(bank.omega, kept[net.kept_bank_z(0) + j]).slope;
  }
  multiply<true>(bank.first(), nullptr, 3, bank.width, s,
                 [&](int d, T value) { gradient[d] += bank.inverse_extent * value; });
}

// Numbers of the sums over points that a block has for the bank: its parameters and, modulated, all Q and the sums of their rows.
template <typename T>
__host__ __device__ int64_t bank_sums(const FilterBank<T>& bank) {
  const int64_t squares = bank.modulated ? int64_t(bank.levels) * bank.width * (bank.width + 1) : 0;
  return bank.numbers() + squares;
}

// to = the sums over the blocks' parts.
template <typename T>
__global__ void sum_bank_kernel(FilterBank<T> bank, int64_t blocks, const T* parts, T* to) {
  const int64_t i = thread_index(), stride = bank_sums(bank);
  if (i >= bank.numbers()) return;
  const auto sum_of = [&](int64_t k) {
    T sum = 0;
    for (int64_t block = 0; block < blocks; ++block) sum += parts[block * stride + k];
    return sum;
  };
  T sum = sum_of(i);
  const int64_t weight = i - bank.weight_place(1), squares = bank.bias_place(1) - bank.weight_place(1);
  if (bank.modulated && weight >= 0 && weight < squares) {
    const T of_square = sum_of(bank.numbers() + weight) + sum_of(bank.numbers() + squares + weight / bank.width);
    sum += T(2) * bank.parameters[i] * of_square;
  }
  to[i] = sum;
}

template <typename T>
void sum_bank(void* stream, const FilterBank<T>& bank, int64_t blocks, const T* parts, T* to) {
  launch_items(stream, bank.numbers(), sum_bank_kernel<T>, bank, blocks, parts, to);
}

}  // namespace nsr::cuda
