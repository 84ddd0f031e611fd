// The backward pass of the SDF with its feature and gradient on the CPU: the formulas of kernels/sdf_network.h on tiles
// of points, in their notation.
#include <algorithm>

#include "../kernels/launch.h"
#include "filter_bank_backward.h"
#include "hash_grid_backward.h"

namespace nsr::cpu {
namespace {

template <typename T>
class BackwardTile {
 public:
  BackwardTile(const SdfNetwork<T>& network, LayerSums<T>& sums)
      : network_(network),
        sums_(sums),
        bank_(network, sums_),
        activations_(network),
        grad_output_(network.output().outputs),
        widest_(std::max(kMaxNetworkWidth, network.visible())),
        curved_(int64_t(kMaxNetworkWidth) * network.hidden()),
        even_(widest_),
        odd_(widest_),
        q_(kMaxNetworkWidth),
        grad_input_(network.visible()),
        features_(network.banked() ? network.grid_rows() : 0) {}

  // Adds to the sums of the layers, and leaves the cotangents of x (but for what the grid has) and of the grid's features in
  // grad_point [3 + grid_rows], unless null.
  void run(const KeptRows<T>& kept, const SdfCotangents<T>& cotangents, int64_t tile, int64_t n, Row<T>* grad_point) {
    const int64_t start = tile * kLanes;
    sums_.enter(tile);
    load_cotangents(cotangents, start, int(n - start < kLanes ? n - start : kLanes));
    for (int l = 0; l < network_.hidden(); ++l)
      activate_all<T>(network_.activation, network_.width(l), kept.z[l], activations_.value(l), activations_.slope(l),
                      activations_.curvature(l));
    const KeptBank<T> kept_bank{network_, kept};
    if (network_.banked()) bank_.enter(kept_bank);
    const bool with_normal = cotangents.gradient != nullptr;
    if (with_normal) through_normal(kept);
    if (!network_.banked()) return through_value(kept, with_normal, grad_point);
    through_value(kept, with_normal, grad_input_.at(0));
    Row<T>* const grad_features = grad_point ? grad_point + 3 : features_.at(0);
    bank_.pull(kept_bank, with_normal, grad_input_.at(0), grad_features);
    if (grad_point) std::memcpy(grad_point, grad_input_.at(0), 3 * sizeof(Row<T>));
  }

  const Row<T>* grad_normal() const { return grad_normal_; }

 private:
  void load_cotangents(const SdfCotangents<T>& cotangents, int64_t start, int count) {
    const int features = network_.output().outputs - 1;
    std::memset(grad_output_.at(0), 0, sizeof(Row<T>) * (features + 1));
    std::memset(grad_normal_, 0, sizeof(grad_normal_));
    for (int i = 0; i < count; ++i) {
      if (cotangents.sdf) grad_output_.at(0)[0][i] = cotangents.sdf[start + i];
      for (int f = 0; cotangents.feature && f < features; ++f)
        grad_output_.at(1 + f)[0][i] = cotangents.feature[(start + i) * features + f];
      for (int d = 0; cotangents.gradient && d < 3; ++d) grad_normal_[d][i] = cotangents.gradient[3 * (start + i) + d];
    }
  }

  // From the normal, forwards through the pass that made it: dp_0 ... dp_L, and what s'' contributes to dz_l in
  // curved(l).
  void through_normal(const KeptRows<T>& kept) {
    const SdfNetwork<T>& net = network_;
    Row<T>* dp = even_.at(0);
    Row<T>* const of_features = net.banked() ? features_.at(0) : dp + 3;
    std::memcpy(dp, grad_normal_, sizeof(grad_normal_));
    for_each_vector<T>([&](int lane) {
      Vector<T> g[3];
      for (int d = 0; d < 3; ++d) g[d] = load(grad_normal_[d] + lane);
      for (int k = 0; k < net.grid_rows(); ++k) {
        Vector<T> sum{};
        for (int d = 0; d < 3; ++d) sum += g[d] * load(kept.jacobian[3 * k + d] + lane);
        store(of_features[k] + lane, sum);
      }
    });
    if (net.banked()) bank_.push({net, kept}, grad_normal_, of_features, dp + 3);
    for (int l = 0; l < net.hidden(); ++l) {
      Row<T>* dq = (l % 2 ? even_ : odd_).at(0);
      multiply<T>(forward_matrix(net.layer[l]), nullptr, net.width(l), net.used_inputs(l), dp, dq);
      bend(kept, l, dq);
      sums_.add_weight(l, q_.at(0), dp);
      dp = dq;
    }
    sums_.add_first_row(net.hidden(), dp);  // dW_out[0]
  }

  // q_l to q_, dq_l p_l s''(z_l) to curved(l), and dq_l to dp_l = dq_l s'(z_l) in place.
  void bend(const KeptRows<T>& kept, int l, Row<T>* dq) {
    const bool last = l + 1 == network_.hidden();
    for (int j = 0; j < network_.width(l); ++j) {
      const T* const slope = activations_.slope(l)[j];
      const T* const curvature = activations_.curvature(l)[j];
      for_each_vector<T>([&](int lane) {
        const Vector<T> p = last ? Vector<T>{} + network_.output().weight[j] : load(kept.p[l][j] + lane);
        const Vector<T> d = load(dq[j] + lane), s1 = load(slope + lane);
        store(q_.at(j)[0] + lane, p * s1);
        store(curved(l)[j] + lane, d * p * load(curvature + lane));
        store(dq[j] + lane, d * s1);
      });
    }
  }

  // From the values, backwards.
  void through_value(const KeptRows<T>& kept, bool with_normal, Row<T>* grad_input) {
    const SdfNetwork<T>& net = network_;
    const int last = net.hidden() - 1;
    const DenseLayer<T>& output = net.output();
    sums_.add_weight(net.hidden(), grad_output_.at(0), activations_.value(last));
    sums_.add_bias(net.hidden(), grad_output_.at(0));
    Row<T>* da = even_.at(0);
    multiply<T>(backward_matrix(output), nullptr, output.inputs, output.outputs, grad_output_.at(0), da);
    for (int l = last; l >= 0; --l) {
      Row<T>* dz = q_.at(0);
      product<T>(net.width(l), da, activations_.slope(l), dz);
      if (with_normal) add(net.width(l), curved(l), dz);
      sums_.add_weight(l, dz, l > 0 ? activations_.value(l - 1) : kept.input);
      sums_.add_bias(l, dz);
      Row<T>* out = l > 0 ? da : grad_input;
      if (out) multiply<T>(backward_matrix(net.layer[l]), nullptr, net.used_inputs(l), net.width(l), dz, out);
    }
  }

  Row<T>* curved(int l) { return curved_.at(l * kMaxNetworkWidth); }

  const SdfNetwork<T>& network_;
  TileSums<T> sums_;
  BankBackward<T> bank_;
  ActivationRows<T> activations_;
  Rows<T> grad_output_;
  int widest_;
  Rows<T> curved_, even_, odd_, q_, grad_input_, features_;
  alignas(64) Row<T> grad_normal_[3];
};

// What the cotangents of the grid are made of: a = what BackwardTile::run leaves behind the points, b = P g^T with the
// cotangents P of the features in the normal's pass. Rows of every tile.
template <typename T>
class GridCotangents {
 public:
  static constexpr bool kJacobian = true;

  GridCotangents(const SdfNetwork<T>& network, T* kept, int64_t tiles, bool with_normal)
      : network_(network), kept_(kept), with_normal_(with_normal), rows_(tiles * rows_of_tile()) {}

  Row<T>* grad_point(int64_t tile) { return rows_.at(tile * rows_of_tile()); }
  Row<T>* grad_normal(int64_t tile) { return rows_.at((tile + 1) * rows_of_tile() - 3); }

  template <int kChunk>
  void load(int64_t start, int, int k, TileCotangents<kChunk, kLanes, T>& to) const {
    const int64_t tile = start / kLanes;
    const Row<T>* const a = rows_.at(tile * rows_of_tile()) + 3 + k;
    std::memcpy(to.a, a, sizeof(to.a));
    if (!with_normal_) {
      std::memset(to.b, 0, sizeof(to.b));
      return;
    }
    const Row<T>* const g = rows_.at((tile + 1) * rows_of_tile() - 3);
    const Row<T>* const p = KeptRows<T>(network_, tile_of(kept_, network_, tile)).feature_gradient + k;
    for (int f = 0; f < kChunk; ++f)
      for (int d = 0; d < 3; ++d)
        for_each_vector<T>(
            [&](int lane) { store(to.b[d][f] + lane, cpu::load(p[f] + lane) * cpu::load(g[d] + lane)); });
  }

 private:
  int64_t rows_of_tile() const { return 3 + network_.grid_rows() + 3; }

  const SdfNetwork<T>& network_;
  T* kept_;
  bool with_normal_;
  Rows<T> rows_;
};

}  // namespace

template <typename T>
void sdf_and_normal_bwd(const SdfNetwork<T>& network, int64_t n, int64_t entries, const T* x, const T* kept_rows,
                        const SdfCotangents<T>& cotangents, const SdfGradients<T>& gradients) {
  T* const kept = const_cast<T*>(kept_rows);  // only read
  const int64_t tiles = (n + kLanes - 1) / kLanes;
  const bool need_grid = gradients.x || gradients.table;
  const bool need_layers = gradients.layers.wanted() || gradients.bank;
  LayerSums<T> sums(with_bank(summed_layers(network), network), need_layers ? tiles : 0);
  GridCotangents<T> grid_cotangents(network, kept, need_grid ? tiles : 0, cotangents.gradient != nullptr);
  for_runs_of_chunks(tiles, [&](int64_t first, int64_t last) {
    BackwardTile<T> tile(network, sums);
    for (int64_t k = first; k < last; ++k) {
      tile.run(KeptRows<T>(network, tile_of(kept, network, k)), cotangents, k, n,
               need_grid ? grid_cotangents.grad_point(k) : nullptr);
      if (need_grid) std::memcpy(grid_cotangents.grad_normal(k), tile.grad_normal(), 3 * sizeof(Row<T>));
    }
  });
  if (need_layers) sums.add_chunks();
  if (gradients.layers.wanted()) write_layers(sums, network.layers, gradients.layers);
  if (gradients.bank) write_bank(network, sums, gradients.bank);
  if (gradients.table) scatter_to_table<kLanes>(network.grid, n, entries, x, grid_cotangents, gradients.table);
  if (gradients.x) {
    contract_to_points<kLanes>(network.grid, n, x, network.table, grid_cotangents, gradients.x);
    for (int64_t i = 0; i < n; ++i)
      for (int d = 0; d < 3; ++d) gradients.x[3 * i + d] += grid_cotangents.grad_point(i / kLanes)[d][i % kLanes];
  }
}

#define NSR_INSTANTIATE(T)                                                                                        \
  template void sdf_and_normal_bwd<T>(const SdfNetwork<T>&, int64_t, int64_t, const T*, const T*,                 \
                                      const SdfCotangents<T>&, const SdfGradients<T>&);
NSR_INSTANTIATE(float)
NSR_INSTANTIATE(double)
#undef NSR_INSTANTIATE

}  // namespace nsr::cpu
