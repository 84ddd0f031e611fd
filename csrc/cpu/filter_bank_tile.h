// Tiles of points through the filter bank of a signed distance network: kernels/filter_bank.h in its notation.
#pragma once

#include "bank_rows.h"
#include "modulated_bank_tile.h"

namespace nsr::cpu {

// The taps, and the reverse pass to the points and the features of the grid.
template <typename T>
class BankForward {
 public:
  explicit BankForward(const SdfNetwork<T>& network)
      : network_(network),
        bank_(network.bank),
        modulated_(network),
        slopes_(network.banked() ? (2 * network.taps() + 1) * bank_.width : 0),
        rows_(network.banked() ? 3 * bank_.width : 0) {}

  // From features [grid_rows] and the points, input [0..2]: the taps behind these. kept: null where values are all.
  void evaluate(const Row<T>* features, Row<T>* input, const KeptBank<T>* kept) {
    if (bank_.modulated) return modulated_.evaluate(features, input, kept);
    const int width = bank_.width;
    Row<T>* const scratch = rows_.at(0);
    Row<T>* const gamma = rows_.at(width);
    Row<T>* const t0 = rows_.at(2 * width);
    scale_rows(bank_.inverse_extent, 3, input, points_);
    Row<T>* z = kept ? kept->z(0) : scratch;
    multiply(forward_matrix(bank_.first()), bank_.first().bias, width, 3, points_, z);
    sine_rows(bank_.omega, width, z, t0, slope_z(0), kNoRows<T>);
    const Row<T>* before = t0;
    for (int l = 1; l <= network_.taps(); ++l) {
      Row<T>* const tap = input + 3 + (l - 1) * width;
      Row<T>* const y = kept ? kept->y(l) : scratch;
      multiply<T>(forward_matrix(bank_.fourier(l)), nullptr, width, bank_.features, features + (l - 1) * bank_.features, y);
      sine_rows(T(kTwoPi), width, y, gamma, slope_y(l), kNoRows<T>);
      z = kept ? kept->z(l) : scratch;
      multiply(forward_matrix(bank_.sine(l)), bank_.sine(l).bias, width, width, before, z);
      sine_rows(bank_.omega, width, z, tap, slope_z(l), kNoRows<T>);
      add(width, gamma, tap);
      before = tap;
    }
  }

  // After evaluate, from p_0 in what is kept: r and the cotangents of the features go there, and gradient [3] gets what
  // the points have beyond the features.
  void differentiate(const KeptBank<T>& kept, Row<T>* gradient) {
    if (bank_.modulated) return modulated_.differentiate(kept, gradient);
    const int width = bank_.width;
    Row<T>* const q = rows_.at(0);
    for (int l = network_.taps(); l > 0; --l) {
      product(width, kept.r(l), slope_y(l), q);
      multiply<T>(backward_matrix(bank_.fourier(l)), nullptr, bank_.features, width, q, kept.feature_gradient(l));
      product(width, kept.r(l), slope_z(l), q);
      multiply<T>(backward_matrix(bank_.sine(l)), nullptr, width, width, q, kept.r(l - 1));
      if (l > 1) add(width, kept.p(l - 1), kept.r(l - 1));
    }
    product(width, kept.r(0), slope_z(0), q);
    multiply<T>(backward_matrix(bank_.first()), nullptr, 3, width, q, points_);
    scale_rows(bank_.inverse_extent, 3, points_, points_);
    add(3, points_, gradient);
  }

 private:
  Row<T>* slope_z(int l) { return slopes_.at(int64_t(l) * bank_.width); }
  Row<T>* slope_y(int l) { return slopes_.at(int64_t(network_.taps() + l) * bank_.width); }

  const SdfNetwork<T>& network_;
  const FilterBank<T>& bank_;
  ModulatedForward<T> modulated_;
  Rows<T> slopes_, rows_;
  alignas(64) Row<T> points_[3];
};

}  // namespace nsr::cpu
