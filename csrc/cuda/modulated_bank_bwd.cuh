// The backward pass of the modulated filter bank for the point of each thread: kernels/filter_bank.h in its notation.
//
// Every function here is called by all threads of a block.
#pragma once

#include "bank_columns.cuh"

namespace nsr::cuda {

// The backward pass, as BankBackward. Of the tangents, `curved` holds those that others follow from, level by level.
template <typename T>
class ModulatedBackward {
 public:
  __device__ ModulatedBackward(const SdfNetwork<T>& network, BankColumns<T> columns, T* parts, T* bank_parts,
                               KeptColumn<T> curved)
      : net_(network), bank_(network.bank), columns_(columns), sums_{network, parts, bank_parts}, curved_(curved) {}

  __device__ __forceinline__ void push(KeptColumn<T> kept, const T g[3], Column<T> q, Column<T> tangent) {
    const int width = bank_.width, levels = net_.taps();
    Column<T> tap = columns_.a, next = columns_.b;
    const Column<T> c = columns_.c, d = columns_.d, few = columns_.few;
    for_each(3, [&](int k) { few[k] = g[k]; });
    sums_.add_to_layer(0, q, few, 3);
    multiply_to<false>(net_.layer[0], net_.width(0), 3, few, tangent);
    for_each(3, [&](int k) { few[k] = g[k] * bank_.inverse_extent; });
    multiply_to<false>(bank_.first(), width, 3, few, tap);
    for_each(width, [&](int j) {
      curved_[tangent_z(0) + j] = tap[j];
      const SinePoint<T> s = z_point(kept, 0, j);
      tap[j] *= s.slope;
      c[j] = kept[net_.kept_bank_r(0) + j] * s.slope;
    });
    sums_.add_to_bank(0, c, few, 3);
    T mean = T(0);
    for (int l = 1; l <= levels; ++l) {
      load_tangent_features(kept, l, g);
      multiply_to<false>(bank_.fourier(l), width, bank_.features, few, c);
      for_each(width, [&](int j) {
        curved_[tangent_y(l) + j] = c[j];
        c[j] *= y_point(kept, l, j).slope;
      });
      multiply_to<false>(bank_.style(l), width, width, c, d);
      for_each(width, [&](int j) {
        curved_[tangent_v(l) + j] = d[j];
        const T v = kept[net_.kept_bank_v(l) + j];
        c[j] = tap[j] * v + z_point(kept, l - 1, j).value * d[j];
        d[j] *= T(2) * v;
      });
      multiply_to<false>(bank_.sine(l), width, width, c, next);
      multiply_to<false>(bank_.square(l), width, width, d, c);
      for_each(width, [&](int j) {
        curved_[tangent_w(l) + j] = next[j];
        curved_[tangent_n(l) + j] = c[j];
        const Demodulation<T> k = demodulate(bank_.row_sum(l, j), kept[net_.kept_bank_n(l) + j]);
        const T of_z = k.slope * c[j] * kept[net_.kept_bank_w(l) + j] + k.value * next[j];
        curved_[tangent_z(l) + j] = of_z;
        next[j] = of_z * z_point(kept, l, j).slope;
      });
      swap(tap, next);
      T score = T(0);
      for_each(width, [&](int j) { score += bank_.score(l)[j] * tap[j]; });
      turned(l) = score;
      mean += kept[net_.kept_bank_alpha(l)] * score / T(levels);
    }
    for (int l = 1; l <= levels; ++l) {
      turned(l) -= mean;
      const T alpha = kept[net_.kept_bank_alpha(l)];
      for_each(width, [&](int j) {
        const SinePoint<T> s = z_point(kept, l, j);
        c[j] = alpha * (curved_[tangent_z(l) + j] * s.slope + turned(l) * s.value);
      });
      sums_.add_to_layer(l, q, c, width);
      multiply_to<false>(layer_of_tap(net_, l), net_.width(0), width, c, tangent, T(1), T(1));
    }
  }

  // g: as given to push; not looked at where nothing was pushed.
  template <typename Features>
  __device__ __forceinline__ void pull(KeptColumn<T> kept, bool pushed, const T g[3], Column<T> dz, T grad_x[3],
                                       const Features& grad_feature) {
    const int width = bank_.width;
    Column<T> below = columns_.a, other = columns_.f;
    const Column<T> b = columns_.b, c = columns_.c, few = columns_.few;
    if (!pushed)
      for (int row = tangent_z(0); row < of_weighed(1); ++row) curved_[row] = T(0);
    for_each(3, [&](int k) { few[k] = kept[k]; });
    sums_.add_to_layer(0, dz, few, 3);
    multiply_to<true>(net_.layer[0], 3, net_.width(0), dz, few);
    for_each(3, [&](int k) { grad_x[k] = few[k]; });
    for (int l = 1; l <= net_.taps(); ++l) {
      for_each(width, [&](int j) { c[j] = kept[tap_column(net_, l) + j]; });
      sums_.add_to_layer(l, dz, c, width);
      multiply_to<true>(layer_of_tap(net_, l), width, net_.width(0), dz, c);
      for_each(width, [&](int j) { curved_[of_weighed(l) + j] = c[j]; });
    }
    pull_attention(kept);
    for (int l = net_.taps(); l > 0; --l) {
      pull_layer(kept, l, pushed, g, below, other, grad_feature);
      swap(below, other);
    }
    for_each(width, [&](int j) {
      b[j] = dual(z_point(kept, 0, j), below[j], curved_[tangent_z(0) + j], kept[net_.kept_bank_r(0) + j]);
    });
    for_each(3, [&](int k) { few[k] = kept[k] * bank_.inverse_extent; });
    sums_.add_to_bank(0, b, few, 3);
    sum_rows(width, b, sums_.in_bank(bank_.first_bias_place()));
    multiply_to<true>(bank_.first(), 3, width, b, few);
    for_each(3, [&](int k) { grad_x[k] += bank_.inverse_extent * few[k]; });
  }

  // Rows of `curved`, behind those of the dense layers.
  static __host__ __device__ int rows(const SdfNetwork<T>& net) {
    return (6 * net.taps() + 1) * net.bank.width + 4 * net.taps();
  }

 private:
  __device__ __forceinline__ int first_row() const { return net_.widths_before(net_.hidden()); }
  __device__ __forceinline__ int tangent_z(int l) const { return first_row() + l * bank_.width; }
  __device__ __forceinline__ int tangent_y(int l) const { return tangent_z(net_.taps() + l); }
  __device__ __forceinline__ int tangent_v(int l) const { return tangent_y(net_.taps() + l); }
  __device__ __forceinline__ int tangent_w(int l) const { return tangent_v(net_.taps() + l); }
  __device__ __forceinline__ int tangent_n(int l) const { return tangent_w(net_.taps() + l); }
  __device__ __forceinline__ int scores() const { return tangent_n(net_.taps() + 1); }
  __device__ __forceinline__ int of_weighed(int l) const { return scores() + 4 * net_.taps() + (l - 1) * bank_.width; }
  // The tangent of the score, less their mean; the cotangents of alpha's tangent, of the score's, and of the score.
  __device__ __forceinline__ T& turned(int l) const { return curved_[scores() + l - 1]; }
  __device__ __forceinline__ T& of_tangent_alpha(int l) const { return curved_[scores() + net_.taps() + l - 1]; }
  __device__ __forceinline__ T& of_tangent_score(int l) const { return curved_[scores() + 2 * net_.taps() + l - 1]; }
  __device__ __forceinline__ T& of_score(int l) const { return curved_[scores() + 3 * net_.taps() + l - 1]; }

  __device__ __forceinline__ SinePoint<T> z_point(KeptColumn<T> kept, int l, int j) const {
    return sine_layer(bank_.omega, kept[net_.kept_bank_z(l) + j]);
  }
  __device__ __forceinline__ SinePoint<T> y_point(KeptColumn<T> kept, int l, int j) const {
    return sine_layer(T(kTwoPi), kept[net_.kept_bank_y(l) + j]);
  }
  static __device__ T dual(const SinePoint<T>& s, T of_value, T tangent, T r) {
    return s.slope * of_value + s.curvature * tangent * r;
  }

  __device__ __forceinline__ void load_tangent_features(KeptColumn<T> kept, int l, const T g[3]) {
    for_each(bank_.features, [&](int f) {
      const int row = net_.kept_jacobian() + 3 * ((l - 1) * bank_.features + f);
      columns_.few[f] = g[0] * kept[row] + g[1] * kept[row + 1] + g[2] * kept[row + 2];
    });
  }

  __device__ __forceinline__ void pull_attention(KeptColumn<T> kept) {
    const int levels = net_.taps();
    T mean = T(0), of_mean = T(0), both = T(0);
    for (int l = 1; l <= levels; ++l) {
      T of_tangent = T(0), of_alpha = T(0);
      for_each(bank_.width, [&](int j) {
        const SinePoint<T> s = z_point(kept, l, j);
        const T p = kept[net_.kept_input_gradient() + tap_column(net_, l) + j];
        of_tangent += s.value * p;
        of_alpha += s.value * curved_[of_weighed(l) + j] + curved_[tangent_z(l) + j] * s.slope * p;
      });
      of_tangent_alpha(l) = of_tangent;
      of_score(l) = of_alpha;
      mean += kept[net_.kept_bank_alpha(l)] * of_tangent / T(levels);
      of_mean += kept[net_.kept_bank_alpha(l)] * of_alpha / T(levels);
    }
    for (int l = 1; l <= levels; ++l)
      both += kept[net_.kept_bank_alpha(l)] / T(levels) * (of_tangent_alpha(l) - mean) * turned(l);
    for (int l = 1; l <= levels; ++l) {
      const T alpha = kept[net_.kept_bank_alpha(l)], centred = of_tangent_alpha(l) - mean;
      of_tangent_score(l) = alpha * centred;
      of_score(l) = alpha * (of_score(l) - of_mean + centred * turned(l) - both);
    }
  }

  // below: the cotangent of t_l from the next level, unused for the last; leaves that of t_{l-1} in `next`.
  template <typename Features>
  __device__ __forceinline__ void pull_layer(KeptColumn<T> kept, int l, bool pushed, const T g[3], Column<T> below,
                                             Column<T> next, const Features& grad_feature) {
    const int width = bank_.width;
    const T alpha = kept[net_.kept_bank_alpha(l)];
    const Column<T> b = columns_.b, c = columns_.c, d = columns_.d, e = columns_.e, few = columns_.few;
    for_each(width, [&](int j) {
      const T p = kept[net_.kept_input_gradient() + tap_column(net_, l) + j];
      const T from_next = l < net_.taps() ? below[j] : T(0);
      const T of_tap = alpha * (curved_[of_weighed(l) + j] + turned(l) * p) + of_score(l) * bank_.score(l)[j] + from_next;
      below[j] = dual(z_point(kept, l, j), of_tap, curved_[tangent_z(l) + j], kept[net_.kept_bank_r(l) + j]);
      c[j] = z_point(kept, l, j).value;
      d[j] = curved_[tangent_z(l) + j] * z_point(kept, l, j).slope;
    });
    add_score(l, of_score(l), c, true);
    add_score(l, of_tangent_score(l), d, false);
    sum_rows(width, below, sums_.in_bank(bank_.bias_place(l)));  // below is dz_l from here on

    const auto tap = [&](int j) { return z_point(kept, l - 1, j).value; };
    const auto tangent_tap = [&](int j) { return curved_[tangent_z(l - 1) + j] * z_point(kept, l - 1, j).slope; };
    const auto v = [&](int j) { return kept[net_.kept_bank_v(l) + j]; };
    const auto dv = [&](int j) { return curved_[tangent_v(l) + j]; };
    for_each(width, [&](int j) {
      b[j] = demodulated(kept, l, j, below[j]).w;
      c[j] = tap(j) * v(j);
    });
    sums_.add_to_bank(bank_.weight_place(l), b, c, width);
    multiply_to<true>(bank_.sine(l), width, width, b, d);
    for_each(width, [&](int j) {
      b[j] = demodulated(kept, l, j, below[j]).tangent_w;
      c[j] = tangent_tap(j) * v(j) + tap(j) * dv(j);
    });
    sums_.add_to_bank(bank_.weight_place(l), b, c, width);
    multiply_to<true>(bank_.sine(l), width, width, b, e);
    for_each(width, [&](int j) {
      next[j] = v(j) * d[j] + dv(j) * e[j];
      const T tangent = tap(j) * e[j];
      d[j] = tap(j) * d[j] + tangent_tap(j) * e[j];
      e[j] = tangent;
      b[j] = demodulated(kept, l, j, below[j]).sum;
    });
    sum_rows(width, b, sums_.in_bank(sum_place(l)));
    for_each(width, [&](int j) {
      b[j] = demodulated(kept, l, j, below[j]).n;
      c[j] = v(j) * v(j);
    });
    sums_.add_to_bank(square_place(l), b, c, width);
    multiply_to<true>(bank_.square(l), width, width, b, c);
    for_each(width, [&](int j) {
      d[j] += T(2) * v(j) * c[j];
      b[j] = demodulated(kept, l, j, below[j]).tangent_n;
      c[j] = T(2) * v(j) * dv(j);
    });
    sums_.add_to_bank(square_place(l), b, c, width);
    multiply_to<true>(bank_.square(l), width, width, b, c);
    for_each(width, [&](int j) {
      d[j] += T(2) * dv(j) * c[j];
      e[j] += T(2) * v(j) * c[j];
    });

    for_each(width, [&](int j) { b[j] = y_point(kept, l, j).value; });
    sums_.add_to_bank(bank_.style_place(l), d, b, width);
    for_each(width, [&](int j) { b[j] = curved_[tangent_y(l) + j] * y_point(kept, l, j).slope; });
    sums_.add_to_bank(bank_.style_place(l), e, b, width);
    multiply_to<true>(bank_.style(l), width, width, d, b);
    multiply_to<true>(bank_.style(l), width, width, e, c);
    for_each(width, [&](int j) {
      const SinePoint<T> s = y_point(kept, l, j);
      d[j] = dual(s, b[j], curved_[tangent_y(l) + j], c[j]);
      e[j] = s.slope * c[j];
    });
    for_each(bank_.features, [&](int f) { few[f] = kept[net_.kept_features() + (l - 1) * bank_.features + f]; });
    sums_.add_to_bank(bank_.fourier_place(l), d, few, bank_.features);
    if (pushed) {
      load_tangent_features(kept, l, g);
      sums_.add_to_bank(bank_.fourier_place(l), e, few, bank_.features);
    }
    multiply_to<true>(bank_.fourier(l), bank_.features, width, d, few);
    for_each(bank_.features, [&](int f) { grad_feature((l - 1) * bank_.features + f, few[f]); });
  }

  // Cotangents of what z = k w + b is made of.
  struct Demodulated {
    T w, tangent_w, n, tangent_n, sum;
  };
  __device__ __forceinline__ Demodulated demodulated(KeptColumn<T> kept, int l, int j, T dz) const {
    const T total = bank_.row_sum(l, j), n = kept[net_.kept_bank_n(l) + j], w = kept[net_.kept_bank_w(l) + j];
    const T of_n = curved_[tangent_n(l) + j];
    const Demodulation<T> k = demodulate(total, n);
    const T pz = kept[net_.kept_bank_r(l) + j] * z_point(kept, l, j).slope, pk = w * pz;
    const T dk = w * dz + curved_[tangent_w(l) + j] * pz;
    return {k.value * dz + k.slope * of_n * pz, k.value * pz, k.slope * dk + k.curvature * of_n * pk, k.slope * pk,
            k.value / (T(2) * total) * (dk - T(0.5) * of_n / n * pk)};
  }

  // The gradients of Q_l and of the sums of its rows lie behind the bank's in the parts.
  __device__ __forceinline__ int64_t square_place(int l) const {
    return bank_.numbers() + int64_t(l - 1) * bank_.width * bank_.width;
  }
  __device__ __forceinline__ int64_t sum_place(int l) const {
    return square_place(bank_.levels + 1) + int64_t(l - 1) * bank_.width;
  }

  __device__ __forceinline__ void add_score(int l, T factor, Column<T> right, bool bias) {
    columns_.few[0] = factor;
    sums_.add_to_bank(bank_.score_place(l), columns_.few, right, bank_.width, 1);
    if (bias) sum_rows(1, columns_.few, sums_.in_bank(bank_.score_bias_place(l)));
  }

  const SdfNetwork<T>& net_;
  const FilterBank<T>& bank_;
  BankColumns<T> columns_;
  BankSums<T> sums_;
  KeptColumn<T> curved_;
};

}  // namespace nsr::cuda
