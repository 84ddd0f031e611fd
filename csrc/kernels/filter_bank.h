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
//
// Modulated, the sines say instead how much of each input a layer takes, and its weights keep their length (Karras et al. 2020,
// eq. 1 and 3); the taps are weighed by an attention over the L levels shown. With the squares Q_l of the weights W_l,
//     v_l = 1 + C_l S_2pi(y_l),   m_l = t_{l-1} v_l,   k_l = sqrt((Q_l 1 + tiny) / (Q_l v_l^2 + tiny)),
//     z_l = k_l (W_l m_l) + b_l,
//     t_l = S_omega(z_l),   e_l = a_l . t_l + c_l,   alpha = L softmax(e),   and the taps are alpha_l t_l.
// Its backward pass is that of all of these with their tangents, number by number; what is marked ' below belongs to tangents:
//     r = dt',  dz' = S' r,  dz = S' dt + S'' z' r,  dw' = k dz',  dw = k dz + k' dz',  dk' = w dz',  dk = w dz + w' dz',
//     dn' = -k/(2n) dk',  dn = -k/(2n) dk + 3k/(4n^2) n' dk',  and of the sum of Q's row, k/(2 sum) (dk - n'/(2n) dk').
#pragma once

#include <cmath>
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

constexpr double kTinySquare = 1e-8;  // beside squared lengths of weights

// k(n) = sqrt(sum / n), dk/dn and d2k/dn2.
template <typename T>
struct Demodulation {
  T value, slope, curvature;
};

template <typename T>
NSR_HD Demodulation<T> demodulate(T sum, T n) {
  const T k = std::sqrt(sum / n);
  return {k, T(-0.5) * k / n, T(0.75) * k / (n * n)};
}

// The parameters, one behind the other: W_0 [width, 3], b_0 [width], all B [levels, width, features], all W
// [levels, width, width], all b [levels, width]; modulated, all C [levels, width, width], a [levels, width] and c [levels] besides. Levels
// count from 1, as above.
template <typename T>
struct FilterBank {
  int32_t width;     // of every layer; 0: no bank, the grid's features go on as they are
  int32_t features;  // of a level of the grid
  int32_t levels;    // of the grid
  bool modulated;
  T omega;
  T inverse_extent;
  const T* parameters;
  const T* squares;  // modulated: all Q [levels, width, width], and the sums of their rows [levels, width]
  const T* sums;

  NSR_HD int64_t first_bias_place() const { return 3 * int64_t(width); }
  NSR_HD int64_t fourier_place(int l) const { return 4 * int64_t(width) + int64_t(l - 1) * width * features; }
  NSR_HD int64_t weight_place(int l) const { return fourier_place(levels + 1) + int64_t(l - 1) * width * width; }
  NSR_HD int64_t bias_place(int l) const { return weight_place(levels + 1) + int64_t(l - 1) * width; }
  NSR_HD int64_t style_place(int l) const { return bias_place(levels + 1) + int64_t(l - 1) * width * width; }
  NSR_HD int64_t score_place(int l) const { return style_place(levels + 1) + int64_t(l - 1) * width; }
  NSR_HD int64_t score_bias_place(int l) const { return score_place(levels + 1) + (l - 1); }
  NSR_HD int64_t numbers() const {
    return !width ? 0 : modulated ? score_bias_place(levels + 1) : bias_place(levels + 1);
  }

  NSR_HD DenseLayer<T> first() const { return {parameters, parameters + first_bias_place(), 3, width}; }
  NSR_HD DenseLayer<T> fourier(int l) const { return {parameters + fourier_place(l), nullptr, features, width}; }
  NSR_HD DenseLayer<T> sine(int l) const {
    return {parameters + weight_place(l), parameters + bias_place(l), width, width};
  }
  NSR_HD DenseLayer<T> style(int l) const { return {parameters + style_place(l), nullptr, width, width}; }
  NSR_HD DenseLayer<T> square(int l) const {
    return {squares + int64_t(l - 1) * width * width, nullptr, width, width};
  }
  NSR_HD T row_sum(int l, int row) const { return sums[(l - 1) * width + row] + T(kTinySquare); }
  NSR_HD const T* score(int l) const { return parameters + score_place(l); }
  NSR_HD T score_bias(int l) const { return parameters[score_bias_place(l)]; }
};

}  // namespace nsr
