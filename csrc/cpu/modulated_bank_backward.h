// The backward pass of the modulated filter bank: kernels/filter_bank.h in its notation.
#pragma once

#include "layer_gradients.h"
#include "modulated_bank_tile.h"

namespace nsr::cpu {

// Behind the layers of the bank, three for each level: that of Q_l, whose bias is that of the sums of its rows; C_l; a_l and c_l.
template <typename T>
int squares_layer(const SdfNetwork<T>& network, int l) {
  return network.layers + 2 * network.taps() + 1 + 3 * (l - 1);
}

// Adds to the gradient of W_l what its squares have, and writes those of C_l, a_l and c_l; gradients: of all of the bank.
template <typename T>
void write_modulated(const SdfNetwork<T>& network, const LayerSums<T>& sums, int l, T* gradients) {
  const FilterBank<T>& bank = network.bank;
  const int width = bank.width, layer = squares_layer(network, l);
  std::vector<T> of_squares(size_t(width) * width), of_sums(width);
  sums.write(layer, of_squares.data(), of_sums.data());
  for (int r = 0; r < width; ++r)
    for (int c = 0; c < width; ++c) {
      const int64_t k = int64_t(r) * width + c;
      gradients[bank.weight_place(l) + k] += T(2) * bank.sine(l).weight[k] * (of_squares[k] + of_sums[r]);
    }
  sums.write(layer + 1, gradients + bank.style_place(l), nullptr);
  sums.write(layer + 2, gradients + bank.score_place(l), gradients + bank.score_bias_place(l));
}

// As BankBackward. What belongs to tangents is zero where none were pushed.
template <typename T>
class ModulatedBackward {
 public:
  ModulatedBackward(const SdfNetwork<T>& network, TileSums<T>& sums)
      : network_(network),
        bank_(network.bank),
        sums_(sums),
        levels_(bank_.modulated ? network.taps() : 0),
        rows_(int64_t(levels_ ? kRowsOfLevel * (levels_ + 1) + 8 : 0) * bank_.width),
        scores_(4 * levels_) {}

  void enter(const KeptBank<T>& kept) {
    sine_rows(bank_.omega, bank_.width, kept.z(0), at(kTap, 0), at(kSlopeZ, 0), at(kCurvatureZ, 0));
    for (int l = 1; l <= levels_; ++l) {
      sine_rows(bank_.omega, bank_.width, kept.z(l), at(kTap, l), at(kSlopeZ, l), at(kCurvatureZ, l));
      sine_rows(T(kTwoPi), bank_.width, kept.y(l), at(kGamma, l), at(kSlopeY, l), at(kCurvatureY, l));
      std::memset(at(kTangents, l), 0, sizeof(Row<T>) * size_t(bank_.width) * kTangentRows);
    }
    std::memset(at(kTangents, 0), 0, sizeof(Row<T>) * size_t(bank_.width) * kTangentRows);
    std::memset(scores_.at(0), 0, sizeof(Row<T>) * size_t(4 * levels_));
    std::memset(points_, 0, sizeof(points_));
    features_ = nullptr;
  }

  // features must stay as they are until pull, which may write where they are.
  void push(const KeptBank<T>& kept, const Row<T>* points, const Row<T>* features, Row<T>* taps) {
    const int width = bank_.width;
    features_ = features;
    scale_rows(bank_.inverse_extent, 3, points, points_);
    multiply<T>(forward_matrix(bank_.first()), nullptr, width, 3, points_, at(kTangentZ, 0));
    product(width, at(kTangentZ, 0), at(kSlopeZ, 0), at(kTangentTap, 0));
    for (int l = 1; l <= levels_; ++l) {
      push_layer(kept, l, features + (l - 1) * bank_.features);
      dot_with_score(l, at(kTangentTap, l), tangent_score(l));
    }
    for (int i = 0; i < kLanes; ++i) {
      T mean = T(0);
      for (int l = 1; l <= levels_; ++l) mean += (*kept.alpha(l))[i] * (*tangent_score(l))[i];
      for (int l = 1; l <= levels_; ++l) (*tangent_score(l))[i] -= mean / T(levels_);
    }
    for (int l = 1; l <= levels_; ++l, taps += width) {
      const T* const alpha = *kept.alpha(l);
      const T* const turned = *tangent_score(l);
      for (int j = 0; j < width; ++j)
        for (int i = 0; i < kLanes; ++i)
          taps[j][i] = alpha[i] * (at(kTangentTap, l)[j][i] + turned[i] * at(kTap, l)[j][i]);
    }
  }

  void pull(const KeptBank<T>& kept, bool, Row<T>* input, Row<T>* features) {
    const int width = bank_.width;
    pull_attention(kept, input);
    for (int l = levels_; l > 0; --l) pull_layer(kept, l, features + (l - 1) * bank_.features);
    Row<T>* const dz = row(0);
    Row<T>* const q = row(1);
    map_rows<T>(width, dz, kDual, at(kSlopeZ, 0), at(kOfTap, 0), at(kCurvatureZ, 0), at(kTangentZ, 0), kept.r(0));
    product(width, kept.r(0), at(kSlopeZ, 0), q);
    sums_.add_weight(network_.layers, q, points_);
    pull_points(kept, dz, sums_, points_, input);
  }

 private:
  // Blocks of rows that every level has.
  enum Block { kTap, kSlopeZ, kCurvatureZ, kGamma, kSlopeY, kCurvatureY, kOfTap, kTangents };
  enum Tangent { kTangentZ = kTangents, kTangentTap, kTangentY, kTangentGamma, kTangentV, kTangentM, kTangentW, kTangentN };
  static constexpr int kTangentRows = kTangentN + 1 - kTangents;
  static constexpr int kRowsOfLevel = kTangentN + 1;
  // dz of S(z): slope, cotangent of S, curvature, tangent of z, r.
  static constexpr auto kDual = [](T slope, T of_value, T curvature, T tangent, T r) {
    return slope * of_value + curvature * tangent * r;
  };

  Row<T>* at(int block, int l) { return rows_.at((int64_t(l) * kRowsOfLevel + block) * bank_.width); }
  Row<T>* row(int k) { return rows_.at((int64_t(levels_ + 1) * kRowsOfLevel + k) * bank_.width); }
  Row<T>* tangent_score(int l) { return scores_.at(l - 1); }  // less their mean
  Row<T>* of_tangent_alpha(int l) { return scores_.at(levels_ + l - 1); }
  Row<T>* of_tangent_score(int l) { return scores_.at(2 * levels_ + l - 1); }
  Row<T>* of_score(int l) { return scores_.at(3 * levels_ + l - 1); }

  void dot_with_score(int l, const Row<T>* in, Row<T>* out) {
    const T* const score = bank_.score(l);
    for_each_vector<T>([&](int lane) {
      Vector<T> sum{};
      for (int j = 0; j < bank_.width; ++j) sum += score[j] * load(in[j] + lane);
      store(*out + lane, sum);
    });
  }

  void push_layer(const KeptBank<T>& kept, int l, const Row<T>* features) {
    const int width = bank_.width;
    Row<T>* const in = row(0);
    multiply<T>(forward_matrix(bank_.fourier(l)), nullptr, width, bank_.features, features, at(kTangentY, l));
    product(width, at(kTangentY, l), at(kSlopeY, l), at(kTangentGamma, l));
    multiply<T>(forward_matrix(bank_.style(l)), nullptr, width, width, at(kTangentGamma, l), at(kTangentV, l));
    map_rows<T>(width, at(kTangentM, l), [](T t, T dt, T v, T dv) { return dt * v + t * dv; }, at(kTap, l - 1),
                at(kTangentTap, l - 1), kept.v(l), at(kTangentV, l));
    multiply<T>(forward_matrix(bank_.sine(l)), nullptr, width, width, at(kTangentM, l), at(kTangentW, l));
    map_rows<T>(width, in, [](T v, T dv) { return T(2) * v * dv; }, kept.v(l), at(kTangentV, l));
    multiply<T>(forward_matrix(bank_.square(l)), nullptr, width, width, in, at(kTangentN, l));
    for (int j = 0; j < width; ++j) {
      const T sum = bank_.row_sum(l, j);
      for (int i = 0; i < kLanes; ++i) {
        const Demodulation<T> k = demodulate(sum, kept.n(l)[j][i]);
        at(kTangentZ, l)[j][i] = k.slope * at(kTangentN, l)[j][i] * kept.w(l)[j][i] + k.value * at(kTangentW, l)[j][i];
      }
    }
    product(width, at(kTangentZ, l), at(kSlopeZ, l), at(kTangentTap, l));
  }

  // From the cotangents of what the attention made of the taps, those of the taps and of the scores.
  void pull_attention(const KeptBank<T>& kept, const Row<T>* input) {
    const int width = bank_.width;
    Row<T>* const of_alpha = of_score(1);
    for (int l = 1; l <= levels_; ++l) {
      const Row<T>* const of_weighed = input + 3 + (l - 1) * width;
      dot_rows(width, at(kTap, l), kept.p(l), *of_tangent_alpha(l));
      dot_rows(width, at(kTap, l), of_weighed, of_alpha[l - 1]);
      alignas(64) Row<T> more;
      dot_rows(width, at(kTangentTap, l), kept.p(l), more);
      for (int i = 0; i < kLanes; ++i) of_alpha[l - 1][i] += more[i];
    }
    for (int i = 0; i < kLanes; ++i) {
      T mean = T(0), of_mean = T(0), both = T(0);
      for (int l = 1; l <= levels_; ++l) {
        mean += (*kept.alpha(l))[i] * (*of_tangent_alpha(l))[i] / T(levels_);
        of_mean += (*kept.alpha(l))[i] * of_alpha[l - 1][i] / T(levels_);
      }
      for (int l = 1; l <= levels_; ++l)
        both += (*kept.alpha(l))[i] / T(levels_) * ((*of_tangent_alpha(l))[i] - mean) * (*tangent_score(l))[i];
      for (int l = 1; l <= levels_; ++l) {
        const T alpha = (*kept.alpha(l))[i], centred = (*of_tangent_alpha(l))[i] - mean;
        (*of_tangent_score(l))[i] = alpha * centred;
        of_alpha[l - 1][i] = alpha * (of_alpha[l - 1][i] - of_mean + centred * (*tangent_score(l))[i] - both);
      }
    }
    for (int l = 1; l <= levels_; ++l) {
      const Row<T>* const of_weighed = input + 3 + (l - 1) * width;
      const T* const alpha = *kept.alpha(l);
      const T* const turned = *tangent_score(l);
      for (int j = 0; j < width; ++j)
        for (int i = 0; i < kLanes; ++i)
          at(kOfTap, l)[j][i] = alpha[i] * (of_weighed[j][i] + turned[i] * kept.p(l)[j][i]) +
                                (*of_score(l))[i] * bank_.score(l)[j];
      const int layer = squares_layer(network_, l) + 2;
      sums_.add_weight(layer, of_score(l), at(kTap, l));
      sums_.add_weight(layer, of_tangent_score(l), at(kTangentTap, l));
      sums_.add_bias(layer, of_score(l));
    }
  }

  void pull_layer(const KeptBank<T>& kept, int l, Row<T>* features) {
    const int width = bank_.width, layer = network_.layers + 2 * l, squares = squares_layer(network_, l);
    Row<T>* const dz = row(0);
    map_rows<T>(width, dz, kDual, at(kSlopeZ, l), at(kOfTap, l), at(kCurvatureZ, l), at(kTangentZ, l), kept.r(l));
    sums_.add_bias(layer, dz);
    Row<T>* const dw = row(1);
    Row<T>* const q = row(2);  // the cotangent of w's tangent
    Row<T>* const dn = row(3);
    Row<T>* const pn = row(4);
    Row<T>* const dsum = row(5);
    for (int j = 0; j < width; ++j) through_demodulation(kept, l, j, dz, dw, q, dn, pn, dsum);
    Row<T>* const m = row(6);
    product(width, at(kTap, l - 1), kept.v(l), m);
    sums_.add_weight(layer, dw, m);
    sums_.add_weight(layer, q, at(kTangentM, l));
    product(width, kept.v(l), kept.v(l), m);
    sums_.add_weight(squares, dn, m);
    map_rows<T>(width, m, [](T v, T dv) { return T(2) * v * dv; }, kept.v(l), at(kTangentV, l));
    sums_.add_weight(squares, pn, m);
    sums_.add_bias(squares, dsum);

    Row<T>* const dm = row(5);
    Row<T>* const pm = row(0);
    Row<T>* const ds = row(6);
    Row<T>* const ps = row(7);
    multiply<T>(backward_matrix(bank_.sine(l)), nullptr, width, width, dw, dm);
    multiply<T>(backward_matrix(bank_.sine(l)), nullptr, width, width, q, pm);
    multiply<T>(backward_matrix(bank_.square(l)), nullptr, width, width, dn, ds);
    multiply<T>(backward_matrix(bank_.square(l)), nullptr, width, width, pn, ps);
    Row<T>* const below = at(kOfTap, l - 1);
    map_rows<T>(width, row(1), [](T v, T dv, T of_m, T of_tangent) { return v * of_m + dv * of_tangent; }, kept.v(l),
                at(kTangentV, l), dm, pm);
    if (l > 1)
      add(width, row(1), below);
    else
      std::memcpy(below, row(1), sizeof(Row<T>) * size_t(width));
    Row<T>* const dv = row(2);
    Row<T>* const pv = row(3);
    for (int j = 0; j < width; ++j)
      for (int i = 0; i < kLanes; ++i) {
        const T t = at(kTap, l - 1)[j][i], dt = at(kTangentTap, l - 1)[j][i], v = kept.v(l)[j][i];
        dv[j][i] = t * dm[j][i] + dt * pm[j][i] + T(2) * (v * ds[j][i] + at(kTangentV, l)[j][i] * ps[j][i]);
        pv[j][i] = t * pm[j][i] + T(2) * v * ps[j][i];
      }
    sums_.add_weight(squares + 1, dv, at(kGamma, l));
    sums_.add_weight(squares + 1, pv, at(kTangentGamma, l));
    Row<T>* const dgamma = row(0);
    Row<T>* const pgamma = row(1);
    multiply<T>(backward_matrix(bank_.style(l)), nullptr, width, width, dv, dgamma);
    multiply<T>(backward_matrix(bank_.style(l)), nullptr, width, width, pv, pgamma);
    Row<T>* const dy = row(2);
    map_rows<T>(width, dy, kDual, at(kSlopeY, l), dgamma, at(kCurvatureY, l), at(kTangentY, l), pgamma);
    sums_.add_weight(layer - 1, dy, kept.features(l));
    if (features_) {
      product(width, pgamma, at(kSlopeY, l), row(3));
      sums_.add_weight(layer - 1, row(3), features_ + (l - 1) * bank_.features);
    }
    multiply<T>(backward_matrix(bank_.fourier(l)), nullptr, bank_.features, width, dy, features);
  }

  // Row j of z = k w + b, k = sqrt(sum / n).
  void through_demodulation(const KeptBank<T>& kept, int l, int j, const Row<T>* dz, Row<T>* dw, Row<T>* q, Row<T>* dn,
                            Row<T>* pn, Row<T>* dsum) {
    const T sum = bank_.row_sum(l, j);
    for (int i = 0; i < kLanes; ++i) {
      const T n = kept.n(l)[j][i], w = kept.w(l)[j][i], tangent_n = at(kTangentN, l)[j][i];
      const Demodulation<T> k = demodulate(sum, n);
      const T pz = kept.r(l)[j][i] * at(kSlopeZ, l)[j][i], pk = w * pz;
      const T dk = w * dz[j][i] + at(kTangentW, l)[j][i] * pz;
      dw[j][i] = k.value * dz[j][i] + k.slope * tangent_n * pz;
      q[j][i] = k.value * pz;
      dn[j][i] = k.slope * dk + k.curvature * tangent_n * pk;
      pn[j][i] = k.slope * pk;
      dsum[j][i] = k.value / (T(2) * sum) * (dk - T(0.5) * tangent_n / n * pk);
    }
  }

  const SdfNetwork<T>& network_;
  const FilterBank<T>& bank_;
  TileSums<T>& sums_;
  int levels_;
  Rows<T> rows_, scores_;
  const Row<T>* features_ = nullptr;  // tangents, where pushed
  alignas(64) Row<T> points_[3];      // tangents of x / extent
};

}  // namespace nsr::cpu
