// Neural Fourier Filter Bank (Wu, Jin and Yi 2023) behind a hash grid: each level's features F_l(x), as sines of growing
// frequency, enter a chain of sine layers, and what the chain has there is the level's tap t_l. With S_w(z) = sin(w z),
//     t_0 = S_omega(z_0), z_0 = W_0 x/extent + b_0,   t_l = S_omega(z_l) + S_2pi(y_l), z_l = W_l t_{l-1} + b_l, y_l = B_l F_l.
//
// The derivatives are those of sdf_network.h, in its notation: with the cotangents p_l of the taps as inputs of what follows,
// the reverse pass of the normal is
//     r_L = p_L,   r_{l-1} = p_{l-1} + W_l^T (S'_omega(z_l) r_l),   and   B_l^T (S'_2pi(y_l) r_l)   to F_l.
// A loss on the normal has tangents of everything, from dF = J g on; with S'' and the cotangents dt_l of the taps' values,
//     dz_l = S'(z_l) dt_l + S''(z_l) tangent(z_l) r_l,   dW_l = dz_l t_{l-1}^T + (S'(z_l) r_l) tangent(t_{l-1})^T,
// and so for y_l and B_l.
#pragma once

#include <cstdint>

#include "dense_layers.h"
#include "hd.h"
#include "sine.h"

namespace nsr {

constexpr double kTwoPi = 6.283185307179586;

// S_w(z) with its derivatives.
template <typename T>
struct SinePoint {
  T value, slope, curvature;
};

template <typename T>
NSR_HD SinePoint<T> sine_layer(T frequency, T z) {
  const SineCosine<T> at = sine_cosine(frequency * z);
  return {at.sine, frequency * at.cosine, -frequency * frequency * at.sine};
}

// The parameters, one behind the other: W_0 [width, 3], b_0 [width], all B [levels, width, features], all W
// [levels, width, width], all b [levels, width]. Levels count from 1, as above.
template <typename T>
struct FilterBank {
  int32_t width;     // of every layer; 0: no bank, the grid's features go on as they are
  int32_t features;  // of a level of the grid
  int32_t levels;    // of the grid
  T omega;
  T inverse_extent;
  const T* parameters;

  NSR_HD int64_t first_bias_place() const { return 3 * int64_t(width); }
  NSR_HD int64_t fourier_place(int l) const { return 4 * int64_t(width) + int64_t(l - 1) * width * features; }
  NSR_HD int64_t weight_place(int l) const { return fourier_place(levels + 1) + int64_t(l - 1) * width * width; }
  NSR_HD int64_t bias_place(int l) const { return weight_place(levels + 1) + int64_t(l - 1) * width; }
  NSR_HD int64_t numbers() const { return width ? bias_place(levels + 1) : 0; }

  NSR_HD DenseLayer<T> first() const { return {parameters, parameters + first_bias_place(), 3, width}; }
  NSR_HD DenseLayer<T> fourier(int l) const { return {parameters + fourier_place(l), nullptr, features, width}; }
  NSR_HD DenseLayer<T> sine(int l) const {
    return {parameters + weight_place(l), parameters + bias_place(l), width, width};
  }
};

}  // namespace nsr
