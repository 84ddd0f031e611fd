// The filter bank of a signed distance network for the point of each thread: kernels/filter_bank.h in its notation. The taps
// are never side by side: what the first dense layer makes of one is added up before the next is there.
//
// Every function here is called by all threads of a block.
#pragma once

#include "bank_columns.cuh"

namespace nsr::cuda {

// z_1 of the first dense layer.
template <typename T, typename Kept>
__device__ __forceinline__ void through_bank(const SdfNetwork<T>& net, const T x[3], BankColumns<T> columns, Column<T> z,
                                             const Kept& kept) {
  const FilterBank<T>& bank = net.bank;
  const int features = net.grid.features;
  Column<T> tap = columns.a, next = columns.b;
  const Column<T> y = columns.c;
  enter_bank(net, x, columns, z, tap, kept);
  for (int l = 1; l <= net.taps(); ++l) {
    encode_level(net.grid, l - 1, net.table, x, [&](int k, T h, T hx, T hy, T hz) {
      columns.few[k - (l - 1) * features] = h;
      kept.feature(k, h, hx, hy, hz);
    });
    multiply_to<false>(bank.sine(l), bank.width, bank.width, tap, next);
    multiply_to<false>(bank.fourier(l), bank.width, features, columns.few, y);
    for_each(bank.width, [&](int j) {
      const T at = next[j] + bank.sine(l).bias[j];
      kept.z(l, j, at);
      kept.y(l, j, y[j]);
      next[j] = sine_layer(bank.omega, at).value + sine_layer(T(kTwoPi), y[j]).value;
      kept.tap(l, j, next[j]);
    });
    swap(tap, next);
    multiply_to<false>(layer_of_tap(net, l), net.width(0), bank.width, tap, z, T(1), T(1));
  }
}

// The reverse pass from q_1, the cotangent of the first dense layer's z: p_0, r and the cotangents of the features to kept,
// df/dx to `gradient`.
template <typename T>
__device__ __forceinline__ void differentiate_bank(const SdfNetwork<T>& net, Column<T> q, BankColumns<T> columns,
                                                   KeptColumn<T> kept, T gradient[3]) {
  const FilterBank<T>& bank = net.bank;
  const Column<T> r = columns.a, s = columns.b, p = columns.c, few = columns.few;
  differentiate_point(net, q, few, kept, gradient);
  for (int l = net.taps(); l > 0; --l) {
    multiply_to<true>(layer_of_tap(net, l), bank.width, net.width(0), q, p);
    for_each(bank.width, [&](int j) {
      kept[net.kept_input_gradient() + tap_column(net, l) + j] = p[j];
      r[j] = p[j] + (l < net.taps() ? r[j] : T(0));
      kept[net.kept_bank_r(l) + j] = r[j];  // of the last level the same row as above
      s[j] = r[j] * sine_layer(T(kTwoPi), kept[net.kept_bank_y(l) + j]).slope;
    });
    multiply_to<true>(bank.fourier(l), bank.features, bank.width, s, few);
    differentiate_features(net, l, few, kept, gradient);
    for_each(bank.width, [&](int j) { s[j] = r[j] * sine_layer(bank.omega, kept[net.kept_bank_z(l) + j]).slope; });
    multiply_to<true>(bank.sine(l), bank.width, bank.width, s, r);
  }
  leave_bank(net, r, s, few, kept, gradient);
}

// The backward pass. parts: the block's sums, of the dense layers and of the bank, or null where none is wanted; curved: the
// point's, of the dense layers, then z_0 ... and y_1 ... of the bank.
template <typename T>
class BankBackward {
 public:
  __device__ BankBackward(const SdfNetwork<T>& network, BankColumns<T> columns, T* parts, T* bank_parts, KeptColumn<T> curved)
      : net_(network), bank_(network.bank), columns_(columns), sums_{network, parts, bank_parts}, curved_(curved) {}

  // From the cotangent g of the normal and q_1 in `q`: the tangent of the first dense layer's z.
  __device__ __forceinline__ void push(KeptColumn<T> kept, const T g[3], Column<T> q, Column<T> tangent) {
    Column<T> tap = columns_.a, next = columns_.b;
    const Column<T> few = columns_.few;
    for (int d = 0; d < 3; ++d) few[d] = g[d];
    sums_.add_to_layer(0, q, few, 3);
    multiply_to<false>(net_.layer[0], net_.width(0), 3, few, tangent);
    for (int d = 0; d < 3; ++d) few[d] = g[d] * bank_.inverse_extent;
    multiply_to<false>(bank_.first(), bank_.width, 3, few, tap);
    for_each(bank_.width, [&](int j) { tap[j] = bend_z(kept, 0, j, tap[j]); });
    sums_.add_to_bank(0, columns_.c, few, 3);
    for (int l = 1; l <= net_.taps(); ++l) {
      multiply_to<false>(bank_.sine(l), bank_.width, bank_.width, tap, next);
      for_each(bank_.width, [&](int j) { next[j] = bend_z(kept, l, j, next[j]); });
      sums_.add_to_bank(bank_.weight_place(l), columns_.c, tap, bank_.width);
      for_each(bank_.features, [&](int f) {
        const int row = net_.kept_jacobian() + 3 * ((l - 1) * bank_.features + f);
        few[f] = g[0] * kept[row] + g[1] * kept[row + 1] + g[2] * kept[row + 2];
      });
      multiply_to<false>(bank_.fourier(l), bank_.width, bank_.features, few, tap);
      for_each(bank_.width, [&](int j) { next[j] += bend_y(kept, l, j, tap[j]); });
      sums_.add_to_bank(bank_.fourier_place(l), columns_.c, few, bank_.features);
      swap(tap, next);
      sums_.add_to_layer(l, q, tap, bank_.width);
      multiply_to<false>(layer_of_tap(net_, l), net_.width(0), bank_.width, tap, tangent, T(1), T(1));
    }
  }

  // From the cotangent dz of the first dense layer's z: grad_x, but for what the grid has, and those of the features.
  template <typename Features>
  __device__ __forceinline__ void pull(KeptColumn<T> kept, bool pushed, const T[3], Column<T> dz, T grad_x[3],
                                       const Features& grad_feature) {
    const Column<T> dt = columns_.a, bent = columns_.b, value = columns_.c, few = columns_.few;
    for (int d = 0; d < 3; ++d) few[d] = kept[d];
    sums_.add_to_layer(0, dz, few, 3);
    multiply_to<true>(net_.layer[0], 3, net_.width(0), dz, few);
    for (int d = 0; d < 3; ++d) grad_x[d] = few[d];
    for (int l = net_.taps(); l > 0; --l) {
      for_each(bank_.width, [&](int j) { value[j] = kept[tap_column(net_, l) + j]; });
      sums_.add_to_layer(l, dz, value, bank_.width);
      multiply_to<true>(layer_of_tap(net_, l), bank_.width, net_.width(0), dz, dt, T(1), l < net_.taps() ? T(1) : T(0));
      for_each(bank_.width, [&](int j) {
        bent[j] = unbend(T(kTwoPi), kept[net_.kept_bank_y(l) + j], dt[j], pushed, y_row(l) + j);
      });
      for_each(bank_.features, [&](int f) { few[f] = kept[net_.kept_features() + (l - 1) * bank_.features + f]; });
      sums_.add_to_bank(bank_.fourier_place(l), bent, few, bank_.features);
      multiply_to<true>(bank_.fourier(l), bank_.features, bank_.width, bent, few);
      for_each(bank_.features, [&](int f) { grad_feature((l - 1) * bank_.features + f, few[f]); });
      for_each(bank_.width, [&](int j) {
        bent[j] = unbend(bank_.omega, kept[net_.kept_bank_z(l) + j], dt[j], pushed, z_row(l) + j);
        value[j] = l > 1 ? kept[tap_column(net_, l - 1) + j] : sine_layer(bank_.omega, kept[net_.kept_bank_z(0) + j]).value;
      });
      sums_.add_to_bank(bank_.weight_place(l), bent, value, bank_.width);
      sum_rows(bank_.width, bent, sums_.in_bank(bank_.bias_place(l)));
      multiply_to<true>(bank_.sine(l), bank_.width, bank_.width, bent, dt);
    }
    for_each(bank_.width, [&](int j) {
      bent[j] = unbend(bank_.omega, kept[net_.kept_bank_z(0) + j], dt[j], pushed, z_row(0) + j);
    });
    for (int d = 0; d < 3; ++d) few[d] = kept[d] * bank_.inverse_extent;
    sums_.add_to_bank(0, bent, few, 3);
    sum_rows(bank_.width, bent, sums_.in_bank(bank_.first_bias_place()));
    multiply_to<true>(bank_.first(), 3, bank_.width, bent, few);
    for (int d = 0; d < 3; ++d) grad_x[d] += bank_.inverse_extent * few[d];
  }

  // Rows of `curved`, behind those of the dense layers.
  static __host__ __device__ int rows(const SdfNetwork<T>& net) { return (2 * net.taps() + 1) * net.bank.width; }

 private:
  __device__ __forceinline__ int z_row(int l) const { return net_.widths_before(net_.hidden()) + l * bank_.width; }
  __device__ __forceinline__ int y_row(int l) const { return z_row(net_.taps() + l); }

  // What S makes of the tangent of its z; leaves S' r in column c, and S'' tangent r in `curved`.
  __device__ __forceinline__ T bend(T frequency, T z, T r, int j, T tangent, int curved_row) {
    const SinePoint<T> s = sine_layer(frequency, z);
    columns_.c[j] = r * s.slope;
    curved_[curved_row + j] = tangent * r * s.curvature;
    return tangent * s.slope;
  }
  __device__ __forceinline__ T bend_z(KeptColumn<T> kept, int l, int j, T tangent) {
    return bend(bank_.omega, kept[net_.kept_bank_z(l) + j], kept[net_.kept_bank_r(l) + j], j, tangent, z_row(l));
  }
  __device__ __forceinline__ T bend_y(KeptColumn<T> kept, int l, int j, T tangent) {
    return bend(T(kTwoPi), kept[net_.kept_bank_y(l) + j], kept[net_.kept_bank_r(l) + j], j, tangent, y_row(l));
  }
  __device__ __forceinline__ T unbend(T frequency, T z, T cotangent, bool pushed, int curved_row) {
    return cotangent * sine_layer(frequency, z).slope + (pushed ? curved_[curved_row] : T(0));
  }

  const SdfNetwork<T>& net_;
  const FilterBank<T>& bank_;
  BankColumns<T> columns_;
  BankSums<T> sums_;
  KeptColumn<T> curved_;
};

}  // namespace nsr::cuda
