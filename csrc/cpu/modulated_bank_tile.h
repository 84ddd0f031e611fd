// Tiles of points through the modulated filter bank: kernels/filter_bank.h in its notation.
#pragma once

#include <cmath>

#include "bank_rows.h"

namespace nsr::cpu {

// out [count] = fn(a, b, ...) number by number.
template <typename T, typename Fn, typename... Inputs>
void map_rows(int count, Row<T>* out, const Fn& fn, const Inputs*... in) {
  for (int r = 0; r < count; ++r) {
    T* const to = out[r];
    [&](const auto*... from) {
#pragma GCC ivdep
      for (int i = 0; i < kLanes; ++i) to[i] = fn(from[i]...);
    }(static_cast<const T*>(in[r])...);
  }
}

// out = sum over the rows of a b.
template <typename T>
void dot_rows(int count, const Row<T>* a, const Row<T>* b, T* out) {
  for_each_vector<T>([&](int lane) {
    Vector<T> sum{};
    for (int r = 0; r < count; ++r) sum += load(a[r] + lane) * load(b[r] + lane);
    store(out + lane, sum);
  });
}

// alpha [levels] from the scores of the levels, in place: levels times their softmax.
template <typename T>
void attend(int levels, Row<T>* scores) {
  for (int i = 0; i < kLanes; ++i) {
    T most = scores[0][i], sum = T(0);
    for (int l = 1; l < levels; ++l) most = scores[l][i] > most ? scores[l][i] : most;
    for (int l = 0; l < levels; ++l) sum += scores[l][i] = std::exp(scores[l][i] - most);
    for (int l = 0; l < levels; ++l) scores[l][i] *= T(levels) / sum;
  }
}

// in [levels] becomes alpha (in - mean), where the mean over the levels is weighed by alpha: softmax's derivative.
template <typename T>
void through_attention(int levels, const Row<T>* alpha, Row<T>* in) {
  for (int i = 0; i < kLanes; ++i) {
    T mean = T(0);
    for (int l = 0; l < levels; ++l) mean += alpha[l][i] * in[l][i];
    mean /= T(levels);
    for (int l = 0; l < levels; ++l) in[l][i] = alpha[l][i] * (in[l][i] - mean);
  }
}

template <typename T>
class ModulatedForward {
 public:
  explicit ModulatedForward(const SdfNetwork<T>& network)
      : network_(network),
        bank_(network.bank),
        ones_(bank_.modulated ? bank_.width : 0, T(1)),
        tiny_(ones_.size(), T(kTinySquare)),
        slopes_(rows_of(2 * network.taps() + 1)),
        taps_(rows_of(network.taps() + 1)),
        rows_(rows_of(6)),
        scores_(rows_of(1) ? network.taps() : 0) {}

  // As BankForward's.
  void evaluate(const Row<T>* features, Row<T>* input, const KeptBank<T>* kept) {
    const int width = bank_.width, levels = network_.taps();
    Row<T>* z = kept ? kept->z(0) : row(0);
    scale_rows(bank_.inverse_extent, 3, input, points_);
    multiply(forward_matrix(bank_.first()), bank_.first().bias, width, 3, points_, z);
    sine_rows(bank_.omega, width, z, tap(0), slope_z(0), kNoRows<T>);
    for (int l = 1; l <= levels; ++l) {
      layer(l, features + (l - 1) * bank_.features, kept);
      const T* const score = bank_.score(l);
      for_each_vector<T>([&](int lane) {
        Vector<T> sum = Vector<T>{} + bank_.score_bias(l);
        for (int j = 0; j < width; ++j) sum += score[j] * load(tap(l)[j] + lane);
        store(scores_.at(l - 1)[0] + lane, sum);
      });
    }
    attend(levels, scores_.at(0));
    for (int l = 1; l <= levels; ++l) {
      const T* const alpha = scores_.at(l - 1)[0];
      for (int j = 0; j < width; ++j)
        for (int i = 0; i < kLanes; ++i) input[3 + (l - 1) * width + j][i] = alpha[i] * tap(l)[j][i];
      if (kept) std::memcpy(kept->alpha(l), alpha, sizeof(Row<T>));
    }
  }

  // As BankForward's.
  void differentiate(const KeptBank<T>& kept, Row<T>* gradient) {
    const int width = bank_.width, levels = network_.taps();
    Row<T>* const of_chain = row(0);
    Row<T>* const q = row(1);
    Row<T>* const of_m = row(2);
    Row<T>* const of_n = row(3);
    Row<T>* const of_v = row(4);
    Row<T>* const from_n = row(5);
    for (int l = 1; l <= levels; ++l) dot_rows(width, tap(l), kept.p(l), scores_.at(l - 1)[0]);
    through_attention(levels, kept.alpha(1), scores_.at(0));
    for (int l = levels; l > 0; --l) {
      const T* const alpha = *kept.alpha(l);
      const T* const of_score = scores_.at(l - 1)[0];
      for (int j = 0; j < width; ++j)
        for (int i = 0; i < kLanes; ++i)
          kept.r(l)[j][i] = alpha[i] * kept.p(l)[j][i] + of_score[i] * bank_.score(l)[j] +
                            (l < levels ? of_chain[j][i] : T(0));
      for (int j = 0; j < width; ++j) {
        const T sum = bank_.row_sum(l, j);
        for (int i = 0; i < kLanes; ++i) {
          const Demodulation<T> k = demodulate(sum, kept.n(l)[j][i]);
          const T of_z = kept.r(l)[j][i] * slope_z(l)[j][i];
          q[j][i] = k.value * of_z;
          of_n[j][i] = k.slope * kept.w(l)[j][i] * of_z;
        }
      }
      multiply<T>(backward_matrix(bank_.sine(l)), nullptr, width, width, q, of_m);
      multiply<T>(backward_matrix(bank_.square(l)), nullptr, width, width, of_n, from_n);
      map_rows<T>(width, of_v, [](T t, T m, T v, T n) { return t * m + T(2) * v * n; }, tap(l - 1), of_m, kept.v(l), from_n);
      product(width, kept.v(l), of_m, of_chain);
      multiply<T>(backward_matrix(bank_.style(l)), nullptr, width, width, of_v, q);
      product(width, q, slope_y(l), q);
      multiply<T>(backward_matrix(bank_.fourier(l)), nullptr, bank_.features, width, q, kept.feature_gradient(l));
    }
    std::memcpy(kept.r(0), of_chain, sizeof(Row<T>) * size_t(width));
    product(width, of_chain, slope_z(0), q);
    multiply<T>(backward_matrix(bank_.first()), nullptr, 3, width, q, points_);
    scale_rows(bank_.inverse_extent, 3, points_, points_);
    add(3, points_, gradient);
  }

 private:
  int64_t rows_of(int count) const { return bank_.modulated ? int64_t(count) * bank_.width : 0; }
  Row<T>* row(int k) { return rows_.at(int64_t(k) * bank_.width); }
  Row<T>* tap(int l) { return taps_.at(int64_t(l) * bank_.width); }
  Row<T>* slope_z(int l) { return slopes_.at(int64_t(l) * bank_.width); }
  Row<T>* slope_y(int l) { return slopes_.at(int64_t(network_.taps() + l) * bank_.width); }

  // t_l from t_{l-1}.
  void layer(int l, const Row<T>* features, const KeptBank<T>* kept) {
    const int width = bank_.width;
    Row<T>* const y = kept ? kept->y(l) : row(0);
    Row<T>* const v = kept ? kept->v(l) : row(2);
    Row<T>* const w = kept ? kept->w(l) : row(4);
    Row<T>* const n = kept ? kept->n(l) : row(5);
    Row<T>* const z = kept ? kept->z(l) : row(0);
    multiply<T>(forward_matrix(bank_.fourier(l)), nullptr, width, bank_.features, features, y);
    sine_rows(T(kTwoPi), width, y, row(1), slope_y(l), kNoRows<T>);
    multiply(forward_matrix(bank_.style(l)), ones_.data(), width, width, row(1), v);
    product(width, tap(l - 1), v, row(3));
    multiply<T>(forward_matrix(bank_.sine(l)), nullptr, width, width, row(3), w);
    product(width, v, v, row(3));
    multiply(forward_matrix(bank_.square(l)), tiny_.data(), width, width, row(3), n);
    for (int j = 0; j < width; ++j) {
      const T sum = bank_.row_sum(l, j), bias = bank_.sine(l).bias[j];
#pragma GCC ivdep
      for (int i = 0; i < kLanes; ++i) z[j][i] = demodulate(sum, n[j][i]).value * w[j][i] + bias;
    }
    sine_rows(bank_.omega, width, z, tap(l), slope_z(l), kNoRows<T>);
  }

  const SdfNetwork<T>& network_;
  const FilterBank<T>& bank_;
  std::vector<T> ones_, tiny_;
  Rows<T> slopes_, taps_, rows_, scores_;
  alignas(64) Row<T> points_[3];
};

}  // namespace nsr::cpu
