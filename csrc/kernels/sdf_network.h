// A signed distance network: hash grid and raw coordinates, then dense layers with a smooth ReLU between them,
//     a_0 = (x, grid(x)) or, with a filter bank (filter_bank.h), (x, taps of the bank),
//     z_l = W_l a_{l-1} + b_l,   a_l = s(z_l),   (f, feature) = W_out a_L + b_out.
//
// The surface normal df/dx is a forward output, by the reverse pass
//     p_L = W_out[0],   q_l = p_l s'(z_l),   p_{l-1} = W_l^T q_l,   df/dx = p_0[x] + J^T p_0[grid],   J = dgrid/dx.
// A loss on it differentiates that pass, which needs s'': with g = dloss/d(df/dx), and dp_0 = (g, J g),
//     dq_l = W_l dp_{l-1},   dp_l = dq_l s'(z_l),   dz_l += dq_l p_l s''(z_l),   dW_l += q_l dp_{l-1}^T,
//     dW_out[0] += dp_L,
// and, since grid and J are linear in the table, a scatter of the cotangents (0, p_0 g^T) of (grid, J). The rest is
// ordinary backpropagation from dz_L = (W_out^T dout) s'(z_L) + ... down to dx and the cotangent of the grid.
//
// Levels of the grid that are not active are zero: the columns of W_1 behind them take no part in anything.
#pragma once

#include <cmath>
#include <cstdint>

#include "dense_layers.h"
#include "filter_bank.h"
#include "hash_grid.h"
#include "hd.h"

namespace nsr {

enum Activation : int32_t { kSoftplus100 = 0, kSquareplus = 1 };

constexpr double kSquareplusWidth = 1e-3;
constexpr double kSoftplusSharpness = 100.0;

// s(z), s'(z), s''(z).
template <typename T>
struct ActivationPoint {
  T value, slope, curvature;
};

// (z + sqrt(z^2 + b)) / 2 (Barron 2021, eq. 1).
template <typename T>
NSR_HD ActivationPoint<T> squareplus(T z) {
  const T root = std::sqrt(z * z + T(kSquareplusWidth));
  const T value = T(0.5) * (z + root);
  return {value, value / root, T(0.5 * kSquareplusWidth) / (root * root * root)};
}

// log(1 + exp(beta z)) / beta with beta = 100 (Yariv et al. 2020, sec. B.2). Exponents are never positive: no overflow.
template <typename T>
NSR_HD ActivationPoint<T> softplus_100(T z) {
  const T beta = T(kSoftplusSharpness);
  const T e = std::exp(-std::fabs(beta * z));
  const T larger_share = T(1) / (T(1) + e), smaller_share = e / (T(1) + e);
  const T slope = z >= T(0) ? larger_share : smaller_share;
  const T value = (z > T(0) ? z : T(0)) + std::log1p(e) / beta;
  return {z == z ? value : z, z == z ? slope : z, beta * larger_share * smaller_share};
}

template <Activation kind, typename T>
NSR_HD ActivationPoint<T> activate(T z) {
  if constexpr (kind == kSquareplus)
    return squareplus(z);
  else
    return softplus_100(z);
}

template <typename T>
NSR_HD ActivationPoint<T> activate(Activation kind, T z) {
  return kind == kSquareplus ? squareplus(z) : softplus_100(z);
}

// Of the inputs of the first layer, the point and those of the active levels of the grid are used.
template <typename T>
struct SdfNetwork : DenseLayers<T> {
  HashGrid grid;
  const T* table;
  Activation activation;
  FilterBank<T> bank;

  NSR_HD int visible() const { return this->first_inputs; }
  NSR_HD int grid_rows() const { return grid.active_levels * grid.features; }
  NSR_HD int taps() const { return bank.width > 0 ? grid.active_levels : 0; }
  NSR_HD bool banked() const { return taps() > 0; }

  // The numbers per point that the forward pass with normal keeps for its backward pass, and their places: a_0, p_0, the
  // rows of J (3 k + d is d h_k / d x_d), z_l of every hidden layer, p_l of all but the last; of a bank besides: the grid's
  // features F and their cotangents; z_l, l from 0 on; y_l, l from 1 on; r_l, from 0 on (the last is in p_0, unless
  // modulated); modulated: v_l, w_l = W_l m_l and n_l = Q_l v_l^2 + tiny, and alpha_l.
  NSR_HD int kept_input_gradient() const { return visible(); }
  NSR_HD int kept_jacobian() const { return 2 * visible(); }
  NSR_HD int kept_z(int l) const { return kept_jacobian() + 3 * grid_rows() + this->widths_before(l); }
  NSR_HD int kept_p(int l) const { return kept_z(this->hidden()) + this->widths_before(l); }
  NSR_HD int kept_bank() const { return kept_p(this->hidden() - 1); }
  NSR_HD int kept_features() const { return banked() ? kept_bank() : 3; }
  NSR_HD int kept_feature_gradient() const { return banked() ? kept_bank() + grid_rows() : kept_input_gradient() + 3; }
  NSR_HD int kept_bank_z(int l) const { return kept_bank() + 2 * grid_rows() + l * bank.width; }
  NSR_HD int kept_bank_y(int l) const { return kept_bank_z(taps() + l); }
  NSR_HD int kept_bank_r(int l) const {
    return l < taps() || bank.modulated ? kept_bank_y(taps() + 1 + l) : kept_input_gradient() + 3 + (l - 1) * bank.width;
  }
  NSR_HD int kept_bank_v(int l) const { return kept_bank_y(2 * taps() + 1 + l); }
  NSR_HD int kept_bank_w(int l) const { return kept_bank_v(taps() + l); }
  NSR_HD int kept_bank_n(int l) const { return kept_bank_w(taps() + l); }
  NSR_HD int kept_bank_alpha(int l) const { return kept_bank_n(taps() + 1) + l - 1; }
  NSR_HD int kept() const {
    if (!banked()) return kept_bank();
    return bank.modulated ? kept_bank_alpha(taps() + 1) : kept_bank_y(2 * taps() + 1);
  }
};

// Cotangents of the outputs, each [n, ...] or null for zeros: sdf [n], feature [n, width of the output layer - 1],
// gradient [n, 3].
template <typename T>
struct SdfCotangents {
  const T* sdf;
  const T* feature;
  const T* gradient;
};

// Where the backward pass writes; a null pointer: not wanted. x [n, 3], table [entries, features], bank like its parameters.
template <typename T>
struct SdfGradients {
  T* x;
  T* table;
  LayerGradients<T> layers;
  T* bank;
};

}  // namespace nsr
