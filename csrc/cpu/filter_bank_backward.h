// The backward pass of the filter bank of a signed distance network: kernels/filter_bank.h in its notation.
#pragma once

#include <algorithm>
#include <vector>

#include "filter_bank_tile.h"
#include "modulated_bank_backward.h"

namespace nsr::cpu {

// The gradients of the bank come behind those of the dense layers in the sums: its first layer, then two for each level, and
// modulated, three more for each.
template <typename T>
std::vector<SummedLayer> with_bank(std::vector<SummedLayer> layers, const SdfNetwork<T>& network) {
  const int width = network.bank.width;
  if (network.banked()) layers.push_back({width, 3, 3});
  for (int l = 1; l <= network.taps(); ++l) {
    layers.push_back({width, network.bank.features, network.bank.features});
    layers.push_back({width, width, width});
  }
  for (int l = 1; network.bank.modulated && l <= network.taps(); ++l) {
    layers.push_back({width, width, width});
    layers.push_back({width, width, width});
    layers.push_back({1, width, width});
  }
  return layers;
}

// gradients: like the bank's parameters; those of levels that are not active are zero.
template <typename T>
void write_bank(const SdfNetwork<T>& network, const LayerSums<T>& sums, T* gradients) {
  const FilterBank<T>& bank = network.bank;
  std::fill_n(gradients, bank.numbers(), T(0));
  if (network.banked()) sums.write(network.layers, gradients, gradients + bank.first_bias_place());
  for (int l = 1; l <= network.taps(); ++l) {
    sums.write(network.layers + 2 * l - 1, gradients + bank.fourier_place(l), nullptr);
    sums.write(network.layers + 2 * l, gradients + bank.weight_place(l), gradients + bank.bias_place(l));
    if (bank.modulated) write_modulated(network, sums, l, gradients);
  }
}

// Tangents through the bank, and cotangents back, for a loss on values and normals.
template <typename T>
class BankBackward {
 public:
  BankBackward(const SdfNetwork<T>& network, TileSums<T>& sums)
      : network_(network),
        bank_(network.bank),
        sums_(sums),
        modulated_(network, sums),
        points_of_layer_(network.banked() && !bank_.modulated ? 2 * (2 * network.taps() + 1) * bank_.width : 0),
        rows_(network.banked() ? 3 * bank_.width : 0) {}

  // Before the other two.
  void enter(const KeptBank<T>& kept) {
    if (bank_.modulated) return modulated_.enter(kept);
    const int width = bank_.width;
    sine_rows(bank_.omega, width, kept.z(0), first_tap(), z(0).slope, z(0).curvature);
    for (int l = 1; l <= network_.taps(); ++l) {
      sine_rows(bank_.omega, width, kept.z(l), kNoRows<T>, z(l).slope, z(l).curvature);
      sine_rows(T(kTwoPi), width, kept.y(l), kNoRows<T>, y(l).slope, y(l).curvature);
    }
  }

  // From the tangents of points [3] and features [grid_rows]: those of the taps.
  void push(const KeptBank<T>& kept, const Row<T>* points, const Row<T>* features, Row<T>* taps) {
    if (bank_.modulated) return modulated_.push(kept, points, features, taps);
    const int width = bank_.width;
    scale_rows(bank_.inverse_extent, 3, points, points_);
    Row<T>* const t0 = rows_.at(width);
    multiply<T>(forward_matrix(bank_.first()), nullptr, width, 3, points_, t0);
    bend(0, z(0), kept.r(0), t0, points_);
    const Row<T>* before = t0;
    for (int l = 1; l <= network_.taps(); ++l, features += bank_.features, taps += width) {
      multiply<T>(forward_matrix(bank_.fourier(l)), nullptr, width, bank_.features, features, taps);
      bend(2 * l - 1, y(l), kept.r(l), taps, features);
      Row<T>* const from_chain = rows_.at(2 * width);
      multiply<T>(forward_matrix(bank_.sine(l)), nullptr, width, width, before, from_chain);
      bend(2 * l, z(l), kept.r(l), from_chain, before);
      add(width, from_chain, taps);
      before = taps;
    }
  }

  // From the cotangents of the points and taps, input [3 + taps * width]: those of features [grid_rows], and of the points
  // in place. pushed: whether push went before.
  void pull(const KeptBank<T>& kept, bool pushed, Row<T>* input, Row<T>* features) {
    if (bank_.modulated) return modulated_.pull(kept, pushed, input, features);
    const int width = bank_.width;
    Row<T>* const bent = rows_.at(2 * width);
    Row<T>* const below = rows_.at(width);
    for (int l = network_.taps(); l > 0; --l) {
      const Row<T>* const tap = input + 3 + (l - 1) * width;
      unbend(y(l), tap, pushed, bent);
      sums_.add_weight(network_.layers + 2 * l - 1, bent, kept.features(l));
      multiply<T>(backward_matrix(bank_.fourier(l)), nullptr, bank_.features, width, bent,
                  features + (l - 1) * bank_.features);
      unbend(z(l), tap, pushed, bent);
      sums_.add_weight(network_.layers + 2 * l, bent, l > 1 ? kept.tap(l - 1) : first_tap());
      sums_.add_bias(network_.layers + 2 * l, bent);
      multiply<T>(backward_matrix(bank_.sine(l)), nullptr, width, width, bent, below);
      if (l > 1) add(width, below, input + 3 + (l - 2) * width);
    }
    unbend(z(0), below, pushed, bent);
    pull_points(kept, bent, sums_, points_, input);
  }

 private:
  // Rows [width] of one layer: what S'' adds to the cotangent of its z or y takes the place of the curvature.
  struct LayerPoint {
    Row<T>* slope;
    Row<T>* curvature;
  };

  LayerPoint point(int k) {
    return {points_of_layer_.at(2 * int64_t(k) * bank_.width), points_of_layer_.at((2 * int64_t(k) + 1) * bank_.width)};
  }
  LayerPoint z(int l) { return point(l); }
  LayerPoint y(int l) { return point(network_.taps() + l); }
  Row<T>* first_tap() { return rows_.at(0); }

  // tangent, of z, becomes that of S(z); curvature becomes S''(z) tangent r; and what the normal contributes to the gradient
  // of the layer, whose inputs have tangents `before`, is added: its number is from the first of the bank.
  void bend(int layer, const LayerPoint& at, const Row<T>* r, Row<T>* tangent, const Row<T>* before) {
    Row<T>* const q = q_.at(0);
    for (int j = 0; j < bank_.width; ++j)
      for_each_vector<T>([&](int lane) {
        const Vector<T> d = load(tangent[j] + lane), back = load(r[j] + lane), slope = load(at.slope[j] + lane);
        store(q[j] + lane, back * slope);
        store(at.curvature[j] + lane, d * back * load(at.curvature[j] + lane));
        store(tangent[j] + lane, d * slope);
      });
    sums_.add_weight(network_.layers + layer, q, before);
  }

  // out = S' cotangent, and what bend left.
  void unbend(const LayerPoint& at, const Row<T>* cotangent, bool pushed, Row<T>* out) {
    product(bank_.width, cotangent, at.slope, out);
    if (pushed) add(bank_.width, at.curvature, out);
  }

  const SdfNetwork<T>& network_;
  const FilterBank<T>& bank_;
  TileSums<T>& sums_;
  ModulatedBackward<T> modulated_;
  Rows<T> points_of_layer_, rows_;
  Rows<T> q_{kMaxNetworkWidth};
  alignas(64) Row<T> points_[3];
};

}  // namespace nsr::cpu
