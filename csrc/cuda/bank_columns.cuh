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

// fn(0), fn(1), ... in a loop that stays one: what it would be unrolled to takes minutes to compile.
template <typename Fn>
__device__ __forceinline__ void for_each(int count, const Fn& fn) {
#pragma unroll 1
  for (int j = 0; j < count; ++j) fn(j);
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

// out = factor W in + keep out, or with kTransposed W^T in, without the bias. Not inlined: the banks have so many that
// compiling them all would take minutes.
template <bool kTransposed, typename T>
__device__ __noinline__ void multiply_to(DenseLayer<T> layer, int outputs, int inputs, Column<T> in, Column<T> out,
                                         std::type_identity_t<T> factor = T(1), std::type_identity_t<T> keep = T(0)) {
  multiply<kTransposed>(layer, nullptr, outputs, inputs, in, [&](int j, T value) {
    out[j] = factor * value + (keep == T(0) ? T(0) : keep * out[j]);  // what is not kept may be no number
  });
}

// As add_outer and add_rows, not inlined either; nothing where `to` is null.
template <typename T>
__device__ __noinline__ void sum_outer(int lefts, int rights, Column<T> left, Column<T> right, int row, T* to) {
  if (to) add_outer(lefts, rights, left, right, row, to);
}

template <typename T>
__device__ __noinline__ void sum_rows(int count, Column<T> column, T* to) {
  if (to) add_rows(count, column, to);
}

// What a block adds up over its points: of the dense layers and of the bank, or null where none is wanted.
template <typename T>
struct BankSums {
  const SdfNetwork<T>& net;
  T* parts;
  T* bank_parts;

  __device__ __forceinline__ T* in_bank(int64_t place) const { return bank_parts ? bank_parts + place : nullptr; }
  // left right^T: to what the first dense layer has for the tap of level l; l = 0: for the point.
  __device__ __forceinline__ void add_to_layer(int l, Column<T> left, Column<T> right, int rights) const {
    T* const to = parts ? parts + net.weight_place(0) + tap_column(net, l) : nullptr;
    sum_outer(net.width(0), rights, left, right, net.layer[0].inputs, to);
  }
  // The same to one of the bank's matrices, which has `lefts` rows or, where that is not said, as many as the bank is wide.
  __device__ __forceinline__ void add_to_bank(int64_t place, Column<T> left, Column<T> right, int rights) const {
    add_to_bank(place, left, right, rights, net.bank.width);
  }
  __device__ __forceinline__ void add_to_bank(int64_t place, Column<T> left, Column<T> right, int rights, int lefts) const {
    sum_outer(lefts, rights, left, right, rights, in_bank(place));
  }
};

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
      for_each(net.bank.width, [&](int j) {
        tap(l, j, alpha * sine_layer(net.bank.omega, rows[net.kept_bank_z(l) + j]).value);
      });
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
  multiply_to<false>(net.layer[0], net.width(0), 3, columns.few, z);
  for_each(net.width(0), [&](int j) { z[j] += net.layer[0].bias[j]; });
  for (int d = 0; d < 3; ++d) columns.few[d] = x[d] * bank.inverse_extent;
  multiply_to<false>(bank.first(), bank.width, 3, columns.few, tap);
  for_each(bank.width, [&](int j) {
    const T at = tap[j] + bank.first().bias[j];
    kept.z(0, j, at);
    tap[j] = sine_layer(bank.omega, at).value;
  });
}

// What the first dense layer's q has for the points, p_0[x]: to kept and to `gradient`.
template <typename T>
__device__ __forceinline__ void differentiate_point(const SdfNetwork<T>& net, Column<T> q, Column<T> few, KeptColumn<T> kept,
                                                    T gradient[3]) {
  multiply_to<true>(net.layer[0], 3, net.width(0), q, few);
  for (int d = 0; d < 3; ++d) kept[net.kept_input_gradient() + d] = gradient[d] = few[d];
}

// The cotangents of the features of level l, in `few`: to kept, and through J to `gradient`.
template <typename T>
__device__ __forceinline__ void differentiate_features(const SdfNetwork<T>& net, int l, Column<T> few, KeptColumn<T> kept,
                                                       T gradient[3]) {
  for_each(net.bank.features, [&](int f) {
    const int k = (l - 1) * net.bank.features + f, row = net.kept_jacobian() + 3 * k;
    kept[net.kept_feature_gradient() + k] = few[f];
    for (int d = 0; d < 3; ++d) gradient[d] += few[f] * kept[row + d];
  });
}

// The end of the reverse pass, from r_0; s: a column for that.
template <typename T>
__device__ __forceinline__ void leave_bank(const SdfNetwork<T>& net, Column<T> r, Column<T> s, Column<T> few,
                                           KeptColumn<T> kept, T gradient[3]) {
  const FilterBank<T>& bank = net.bank;
  for_each(bank.width, [&](int j) {
    kept[net.kept_bank_r(0) + j] = r[j];
    s[j] = r[j] * sine_layer(bank.omega, kept[net.kept_bank_z(0) + j]).slope;
  });
  multiply_to<true>(bank.first(), 3, bank.width, s, few);
  for (int d = 0; d < 3; ++d) gradient[d] += bank.inverse_extent * few[d];
}

// Numbers of the sums over points that a block has for the bank: its parameters and, modulated, all Q and the sums of their
// rows.
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
