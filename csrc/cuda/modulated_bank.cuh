// The modulated filter bank for the point of each thread: kernels/filter_bank.h in its notation. As in filter_bank.cuh the taps
// are never side by side, so the attention over the levels is summed up as they come.
//
// Every function here is called by all threads of a block.
#pragma once

#include "bank_columns.cuh"

namespace nsr::cuda {

// z_1 of the first dense layer.
template <typename T, typename Kept>
__device__ __forceinline__ void through_modulated_bank(const SdfNetwork<T>& net, const T x[3], BankColumns<T> columns,
                                                       Column<T> z, const Kept& kept) {
  const FilterBank<T>& bank = net.bank;
  const int features = net.grid.features;
  Column<T> tap = columns.a, next = columns.b;
  const Column<T> c = columns.c, d = columns.d, few = columns.few, weighed = columns.weighed;
  enter_bank(net, x, columns, z, tap, kept);
  T most = T(0), total = T(0);
  for (int l = 1; l <= net.taps(); ++l) {
    encode_level(net.grid, l - 1, net.table, x, [&](int k, T h, T hx, T hy, T hz) {
      few[k - (l - 1) * features] = h;
      kept.feature(k, h, hx, hy, hz);
    });
    multiply_to<false>(bank.fourier(l), bank.width, features, few, c);
    for_each(bank.width, [&](int j) {
      kept.y(l, j, c[j]);
      c[j] = sine_layer(T(kTwoPi), c[j]).value;
    });
    multiply_to<false>(bank.style(l), bank.width, bank.width, c, d);
    for_each(bank.width, [&](int j) {
      d[j] += T(1);
      kept.v(l, j, d[j]);
      c[j] = tap[j] * d[j];
      d[j] *= d[j];
    });
    multiply_to<false>(bank.sine(l), bank.width, bank.width, c, next);
    multiply_to<false>(bank.square(l), bank.width, bank.width, d, c);
    for_each(bank.width, [&](int j) {
      const T n = c[j] + T(kTinySquare);
      const T at = demodulate(bank.row_sum(l, j), n).value * next[j] + bank.sine(l).bias[j];
      kept.w(l, j, next[j]);
      kept.n(l, j, n);
      kept.z(l, j, at);
      next[j] = sine_layer(bank.omega, at).value;
    });
    swap(tap, next);
    T score = bank.score_bias(l);
    for_each(bank.width, [&](int j) { score += bank.score(l)[j] * tap[j]; });
    columns.levels[l - 1] = score;
    // The sums so far are in units of exp(most).
    const T above = l == 1 || score > most ? score : most;
    const T fade = l == 1 ? T(0) : std::exp(most - above), share = std::exp(score - above);
    most = above;
    total = total * fade + share;
    multiply_to<false>(layer_of_tap(net, l), net.width(0), bank.width, tap, weighed, share, fade);
  }
  for_each(net.width(0), [&](int j) { z[j] += weighed[j] * (T(net.taps()) / total); });
  kept.attend(columns.levels, most, total);
}

// As differentiate_bank.
template <typename T>
__device__ __forceinline__ void differentiate_modulated_bank(const SdfNetwork<T>& net, Column<T> q, BankColumns<T> columns,
                                                             KeptColumn<T> kept, T gradient[3]) {
  const FilterBank<T>& bank = net.bank;
  const int levels = net.taps();
  Column<T> a = columns.a, b = columns.b;
  const Column<T> c = columns.c, d = columns.d, few = columns.few;
  const auto tap = [&](int l, int j) { return sine_layer(bank.omega, kept[net.kept_bank_z(l) + j]).value; };
  const auto of_alpha = [&](int l) -> T& { return columns.levels[l - 1]; };
  differentiate_point(net, q, few, kept, gradient);
  T mean = T(0);
  for (int l = 1; l <= levels; ++l) {
    T sum = T(0);
    multiply_to<true>(layer_of_tap(net, l), bank.width, net.width(0), q, d);
    for_each(bank.width, [&](int j) {
      kept[net.kept_input_gradient() + tap_column(net, l) + j] = d[j];
      sum += tap(l, j) * d[j];
    });
    of_alpha(l) = sum;
    mean += kept[net.kept_bank_alpha(l)] * sum / T(levels);
  }
  for (int l = levels; l > 0; --l) {
    const T alpha = kept[net.kept_bank_alpha(l)], of_score = alpha * (of_alpha(l) - mean);
    for_each(bank.width, [&](int j) {
      const T p = kept[net.kept_input_gradient() + tap_column(net, l) + j];
      const T r = alpha * p + of_score * bank.score(l)[j] + (l < levels ? a[j] : T(0));
      kept[net.kept_bank_r(l) + j] = r;
      const T of_z = r * sine_layer(bank.omega, kept[net.kept_bank_z(l) + j]).slope;
      const Demodulation<T> k = demodulate(bank.row_sum(l, j), kept[net.kept_bank_n(l) + j]);
      b[j] = k.value * of_z;
      c[j] = k.slope * kept[net.kept_bank_w(l) + j] * of_z;
    });
    multiply_to<true>(bank.sine(l), bank.width, bank.width, b, d);
    multiply_to<true>(bank.square(l), bank.width, bank.width, c, a);
    for_each(bank.width, [&](int j) {
      const T v = kept[net.kept_bank_v(l) + j];
      b[j] = tap(l - 1, j) * d[j] + T(2) * v * a[j];
      a[j] = v * d[j];
    });
    multiply_to<true>(bank.style(l), bank.width, bank.width, b, c);
    for_each(bank.width, [&](int j) { c[j] *= sine_layer(T(kTwoPi), kept[net.kept_bank_y(l) + j]).slope; });
    multiply_to<true>(bank.fourier(l), bank.features, bank.width, c, few);
    differentiate_features(net, l, few, kept, gradient);
  }
  leave_bank(net, a, b, few, kept, gradient);
}

}  // namespace nsr::cuda
