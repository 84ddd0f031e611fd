// What the filter banks share on the CPU: sines of rows, and where a tile keeps the bank's rows.
#pragma once

#include "layer_gradients.h"
#include "sdf_and_normal_tile.h"

namespace nsr::cpu {

template <typename T>
constexpr Row<T>* kNoRows = nullptr;

// value, slope and curvature [count] of S_frequency at z [count]; null: not wanted.
template <typename T>
void sine_rows(T frequency, int count, const Row<T>* z, Row<T>* value, Row<T>* slope, Row<T>* curvature) {
  alignas(64) Row<T> not_wanted[3];
  for (int r = 0; r < count; ++r) {
    T* const zeroth = value ? value[r] : not_wanted[0];
    T* const first = slope ? slope[r] : not_wanted[1];
    T* const second = curvature ? curvature[r] : not_wanted[2];
    const T* const at = z[r];
#pragma GCC ivdep
    for (int i = 0; i < kLanes; ++i) {
      const SinePoint<T> s = sine_layer(frequency, at[i]);
      zeroth[i] = s.value;
      first[i] = s.slope;
      second[i] = s.curvature;
    }
  }
}

// out [count] = factor in.
template <typename T>
void scale_rows(T factor, int count, const Row<T>* in, Row<T>* out) {
  for (int r = 0; r < count; ++r)
    for_each_vector<T>([&](int lane) { store(out[r] + lane, factor * load(in[r] + lane)); });
}

// Of what the forward pass keeps of a tile, the rows of the bank.
template <typename T>
struct KeptBank {
  const SdfNetwork<T>& network;
  const KeptRows<T>& rows;

  Row<T>* z(int l) const { return rows.input + network.kept_bank_z(l); }
  Row<T>* y(int l) const { return rows.input + network.kept_bank_y(l); }
  Row<T>* r(int l) const { return rows.input + network.kept_bank_r(l); }
  Row<T>* p(int l) const { return rows.input_gradient + 3 + (l - 1) * network.bank.width; }
  Row<T>* tap(int l) const { return rows.input + 3 + (l - 1) * network.bank.width; }
  Row<T>* v(int l) const { return rows.input + network.kept_bank_v(l); }
  Row<T>* w(int l) const { return rows.input + network.kept_bank_w(l); }
  Row<T>* n(int l) const { return rows.input + network.kept_bank_n(l); }
  Row<T>* alpha(int l) const { return rows.input + network.kept_bank_alpha(l); }
  Row<T>* features(int l) const { return rows.features + (l - 1) * network.grid.features; }
  Row<T>* feature_gradient(int l) const { return rows.feature_gradient + (l - 1) * network.grid.features; }
};

// The end of the backward pass, from the cotangent of z_0: to the sums of the bank's first layer and to `input`.
// points: 3 rows that are free.
template <typename T>
void pull_points(const KeptBank<T>& kept, const Row<T>* dz, TileSums<T>& sums, Row<T>* points, Row<T>* input) {
  const FilterBank<T>& bank = kept.network.bank;
  const int layer = kept.network.layers;  // behind the dense ones
  scale_rows(bank.inverse_extent, 3, kept.rows.input, points);
  sums.add_weight(layer, dz, points);
  sums.add_bias(layer, dz);
  multiply<T>(backward_matrix(bank.first()), nullptr, 3, bank.width, dz, points);
  scale_rows(bank.inverse_extent, 3, points, points);
  add(3, points, input);
}

}  // namespace nsr::cpu
