// What the SDF with normal and its backward pass share on the CPU: the rows that one keeps for the other, in the
// notation of kernels/sdf_network.h, and the activation with its derivatives.
#pragma once

#include "../kernels/sdf_network.h"
#include "network_tile.h"

namespace nsr::cpu {

// The rows that the forward pass keeps of a tile, where SdfNetwork::kept_... says.
template <typename T>
struct KeptRows {
  Row<T>* input;             // a_0
  Row<T>* input_gradient;    // p_0
  Row<T>* jacobian;          // J
  Row<T>* features;          // of the grid: of a_0, where there is no bank
  Row<T>* feature_gradient;  // of p_0, where there is no bank
  Row<T>* z[kMaxDenseLayers];
  Row<T>* p[kMaxDenseLayers];  // of all hidden layers but the last

  KeptRows(const SdfNetwork<T>& network, Row<T>* row)
      : input(row),
        input_gradient(row + network.kept_input_gradient()),
        jacobian(row + network.kept_jacobian()),
        features(row + network.kept_features()),
        feature_gradient(row + network.kept_feature_gradient()) {
    for (int l = 0; l < network.hidden(); ++l) z[l] = row + network.kept_z(l);
    for (int l = 0; l + 1 < network.hidden(); ++l) p[l] = row + network.kept_p(l);
  }
};

// value, slope and curvature [count] of s at z [count]; null: not wanted.
template <Activation kind, typename T>
void activate_all(int count, const Row<T>* z, Row<T>* value, Row<T>* slope, Row<T>* curvature) {
  for (int r = 0; r < count; ++r) {
    alignas(64) Row<T> curved;
    T* const second = curvature ? curvature[r] : curved;
    const T* const at = z[r];
    T* const first = slope[r];
    T* const zeroth = value[r];
#pragma GCC ivdep
    for (int i = 0; i < kLanes; ++i) {
      const ActivationPoint<T> s = activate<kind>(at[i]);
      zeroth[i] = s.value;
      first[i] = s.slope;
      second[i] = s.curvature;
    }
  }
}

template <typename T>
void activate_all(Activation kind, int count, const Row<T>* z, Row<T>* value, Row<T>* slope, Row<T>* curvature) {
  if (kind == kSquareplus)
    activate_all<kSquareplus>(count, z, value, slope, curvature);
  else
    activate_all<kSoftplus100>(count, z, value, slope, curvature);
}

// out [count] = a * b.
template <typename T>
void product(int count, const Row<T>* a, const Row<T>* b, Row<T>* out) {
  for (int r = 0; r < count; ++r)
    for_each_vector<T>([&](int lane) { store(out[r] + lane, load(a[r] + lane) * load(b[r] + lane)); });
}

// to [count] += in.
template <typename T>
void add(int count, const Row<T>* in, Row<T>* to) {
  for (int r = 0; r < count; ++r)
    for_each_vector<T>([&](int lane) { store(to[r] + lane, load(to[r] + lane) + load(in[r] + lane)); });
}

// Rows of the value, slope and, for the backward pass, curvature of every hidden layer.
template <typename T>
class ActivationRows {
 public:
  explicit ActivationRows(const SdfNetwork<T>& network) : rows_(3 * kMaxNetworkWidth * network.hidden()) {}
  Row<T>* value(int l) { return rows_.at(3 * l * kMaxNetworkWidth); }
  Row<T>* slope(int l) { return rows_.at((3 * l + 1) * kMaxNetworkWidth); }
  Row<T>* curvature(int l) { return rows_.at((3 * l + 2) * kMaxNetworkWidth); }

 private:
  Rows<T> rows_;
};

}  // namespace nsr::cpu
