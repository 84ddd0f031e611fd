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
  enter_bank(net, x, columns, z, tap, kept);
  for (int l = 1; l <= net.taps(); ++l) {
    encode_level(net.grid, l - 1, net.table, x, [&](int k, T h, T hx, T hy, T hz) {
      columns.few[k - (l - 1) * features] = h;
      kept.feature(k, h, hx, hy, hz);
    });
    multiply<false>(bank.sine(l), bank.sine(l).bias, bank.width, bank.width, tap, [&](int j, T value) {
      kept.z(l, j, value);
      next[j] = sine_layer(bank.omega, value).value;
    });
    multiply<false>(bank.fourier(l), nullptr, bank.width, features, columns.few, [&](int j, T value) {
      kept.y(l, j, value);
      const T both = next[j] + sine_layer(T(kTwoPi), value).value;
      kept.tap(l, j, both);
      next[j] = both;
    });
    swap(tap, next);
    multiply<false>(layer_of_tap(net, l), nullptr, net.width(0), bank.width, tap, [&](int j, T value) { z[j] += value; });
  }
}

// The reverse pass from q_1, the cotangent of the first dense layer's z: p_0, r and the cotangents of the features to kept,
// df/dx to `gradient`.
template <typename T>
__device__ __forceinline__ void differentiate_bank(const SdfNetwork<T>& net, Column<T> q, BankColumns<T> columns,
                                                   KeptColumn<T> kept, T gradient[3]) {
  const FilterBank<T>& bank = net.bank;
  Column<T> r = columns.a, s = columns.b;
  multiply<true>(net.layer[0], nullptr, 3, net.width(0), q, [&](int d, T value) {
    kept[net.kept_input_gradient() + d] = value;
    gradient[d] = value;
  });
  for (int l = net.taps(); l > 0; --l) {
    const bool last = l == net.taps();
    multiply<true>(layer_of_tap(net, l), nullptr, bank.width, net.width(0), q, [&](int j, T value) {
      kept[net.kept_input_gradient() + tap_column(net, l) + j] = value;
      r[j] = last ? value : r[j] + value;
      kept[net.kept_bank_r(l) + j] = r[j];  // of the last level the same row as above
    });
    for (int j = 0; j < bank.width; ++j) s[j] = r[j] * sine_layer(T(kTwoPi), kept[net.kept_bank_y(l) + j]).slope;
    multiply<true>(bank.fourier(l), nullptr, bank.features, bank.width, s, [&](int f, T value) {
      const int k = (l - 1) * bank.features + f, row = net.kept_jacobian() + 3 * k;
      kept[net.kept_feature_gradient() + k] = value;
      for (int d = 0; d < 3; ++d) gradient[d] += value * kept[row + d];
    });
    for (int j = 0; j < bank.width; ++j) s[j] = r[j] * sine_layer(bank.omega, kept[net.kept_bank_z(l) + j]).slope;
    multiply<true>(bank.sine(l), nullptr, bank.width, bank.width, s, [&](int j, T value) { r[j] = value; });
  }
  leave_bank(net, r, s, kept, gradient);
}

// The backward pass. parts: the block's sums, of the dense layers and of the bank, or null where none is wanted; curved: the
// point's, of the dense layers, then z_0 ... and y_1 ... of the bank.
template <typename T>
class BankBackward {
 public:
  __device__ BankBackward(const SdfNetwork<T>& network, BankColumns<T> columns, T* parts, T* bank_parts, KeptColumn<T> curved)
      : net_(network), bank_(network.bank), columns_(columns), parts_(parts), bank_parts_(bank_parts), curved_(curved) {}

  // From the cotangent g of the normal and q_1 in `q`: the tangent of the first dense layer's z.
  __device__ void push(KeptColumn<T> kept, const T g[3], Column<T> q, Column<T> tangent) {
    Column<T> tap = columns_.a, next = columns_.b;
    const Column<T> few = columns_.few;
    for (int d = 0; d < 3; ++d) few[d] = g[d];
    add_to_layer(0, q, few, 3);
    multiply<false>(net_.layer[0], nullptr, net_.width(0), 3, few, [&](int j, T value) { tangent[j] = value; });
    for (int d = 0; d < 3; ++d) few[d] = g[d] * bank_.inverse_extent;
    multiply<false>(bank_.first(), nullptr, bank_.width, 3, few,
                    [&](int j, T value) { tap[j] = bend_z(kept, 0, j, value); });
    add_to_bank(0, columns_.c, few, 3);
    for (int l = 1; l <= net_.taps(); ++l) {
      multiply<false>(bank_.sine(l), nullptr, bank_.width, bank_.width, tap,
                      [&](int j, T value) { next[j] = bend_z(kept, l, j, value); });
      add_to_bank(bank_.weight_place(l), columns_.c, tap, bank_.width);
      for (int f = 0; f < bank_.features; ++f) {
        const int row = net_.kept_jacobian() + 3 * ((l - 1) * bank_.features + f);
        few[f] = g[0] * kept[row] + g[1] * kept[row + 1] + g[2] * kept[row + 2];
      }
      multiply<false>(bank_.fourier(l), nullptr, bank_.width, bank_.features, few,
                      [&](int j, T value) { next[j] += bend_y(kept, l, j, value); });
      add_to_bank(bank_.fourier_place(l), columns_.c, few, bank_.features);
      swap(tap, next);
      add_to_layer(l, q, tap, bank_.width);
      multiply<false>(layer_of_tap(net_, l), nullptr, net_.width(0), bank_.width, tap,
                      [&](int j, T value) { tangent[j] += value; });
    }
  }

  // From the cotangent dz of the first dense layer's z: grad_x, but for what the grid has, and those of the features.
  template <typename Features>
  __device__ void pull(KeptColumn<T> kept, bool pushed, const T[3], Column<T> dz, T grad_x[3], const Features& grad_feature) {
    const Column<T> dt = columns_.a, bent = columns_.b, value = columns_.c, few = columns_.few;
    for (int d = 0; d < 3; ++d) few[d] = kept[d];
    add_to_layer(0, dz, few, 3);
    multiply<true>(net_.layer[0], nullptr, 3, net_.width(0), dz, [&](int d, T v) { grad_x[d] = v; });
    for (int l = net_.taps(); l > 0; --l) {
      const bool last = l == net_.taps();
      for (int j = 0; j < bank_.width; ++j) value[j] = kept[tap_column(net_, l) + j];
      add_to_layer(l, dz, value, bank_.width);
      multiply<true>(layer_of_tap(net_, l), nullptr, bank_.width, net_.width(0), dz,
                     [&](int j, T v) { dt[j] = last ? v : dt[j] + v; });
      for (int j = 0; j < bank_.width; ++j)
        bent[j] = unbend(T(kTwoPi), kept[net_.kept_bank_y(l) + j], dt[j], pushed, y_row(l) + j);
      for (int f = 0; f < bank_.features; ++f) few[f] = kept[net_.kept_features() + (l - 1) * bank_.features + f];
      add_to_bank(bank_.fourier_place(l), bent, few, bank_.features);
      multiply<true>(bank_.fourier(l), nullptr, bank_.features, bank_.width, bent,
                     [&](int f, T v) { grad_feature((l - 1) * bank_.features + f, v); });
      for (int j = 0; j < bank_.width; ++j) {
        bent[j] = unbend(bank_.omega, kept[net_.kept_bank_z(l) + j], dt[j], pushed, z_row(l) + j);
        value[j] = l > 1 ? kept[tap_column(net_, l - 1) + j] : sine_layer(bank_.omega, kept[net_.kept_bank_z(0) + j]).value;
      }
      add_to_bank(bank_.weight_place(l), bent, value, bank_.width);
      if (bank_parts_) add_rows(bank_.width, bent, bank_parts_ + bank_.bias_place(l));
      multiply<true>(bank_.sine(l), nullptr, bank_.width, bank_.width, bent, [&](int j, T v) { dt[j] = v; });
    }
    for (int j = 0; j < bank_.width; ++j)
      bent[j] = unbend(bank_.omega, kept[net_.kept_bank_z(0) + j], dt[j], pushed, z_row(0) + j);
    for (int d = 0; d < 3; ++d) few[d] = kept[d] * bank_.inverse_extent;
    add_to_bank(0, bent, few, 3);
    if (bank_parts_) add_rows(bank_.width, bent, bank_parts_ + bank_.first_bias_place());
    multiply<true>(bank_.first(), nullptr, 3, bank_.width, bent,
                   [&](int d, T v) { grad_x[d] += bank_.inverse_extent * v; });
  }

  // Rows of `curved`, behind those of the dense layers.
  static __host__ __device__ int rows(const SdfNetwork<T>& net) { return (2 * net.taps() + 1) * net.bank.width; }

 private:
  __device__ int z_row(int l) const { return net_.widths_before(net_.hidden()) + l * bank_.width; }
  __device__ int y_row(int l) const { return z_row(net_.taps() + l); }

  // What S makes of the tangent of its z; leaves S' r in column c, and S'' tangent r in `curved`.
  __device__ T bend(T frequency, T z, T r, int j, T tangent, int curved_row) {
    const SinePoint<T> s = sine_layer(frequency, z);
    columns_.c[j] = r * s.slope;
    curved_[curved_row + j] = tangent * r * s.curvature;
    return tangent * s.slope;
  }
  __device__ T bend_z(KeptColumn<T> kept, int l, int j, T tangent) {
    return bend(bank_.omega, kept[net_.kept_bank_z(l) + j], kept[net_.kept_bank_r(l) + j], j, tangent, z_row(l));
  }
  __device__ T bend_y(KeptColumn<T> kept, int l, int j, T tangent) {
    return bend(T(kTwoPi), kept[net_.kept_bank_y(l) + j], kept[net_.kept_bank_r(l) + j], j, tangent, y_row(l));
  }
  __device__ T unbend(T frequency, T z, T cotangent, bool pushed, int curved_row) {
    return cotangent * sine_layer(frequency, z).slope + (pushed ? curved_[curved_row] : T(0));
  }

  __device__ void add_to_layer(int l, Column<T> left, Column<T> right, int rights) {
    if (!parts_) return;
    T* const to = parts_ + net_.weight_place(0) + tap_column(net_, l);
    add_outer(net_.width(0), rights, left, right, net_.layer[0].inputs, to);
  }
  __device__ void add_to_bank(int64_t place, Column<T> left, Column<T> right, int rights) {
    if (bank_parts_) add_outer(bank_.width, rights, left, right, rights, bank_parts_ + place);
  }

  const SdfNetwork<T>& net_;
  const FilterBank<T>& bank_;
  BankColumns<T> columns_;
  T* parts_;
  T* bank_parts_;
  KeptColumn<T> curved_;
};

}  // namespace nsr::cuda
