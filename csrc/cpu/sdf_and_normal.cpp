// The SDF with its feature and its gradient on the CPU: the formulas of kernels/sdf_network.h on tiles of points, in
// their notation. Points do not depend on each other.
#include "../kernels/launch.h"
#include "parallel.h"
#include "filter_bank_tile.h"

namespace nsr::cpu {
namespace {

constexpr int64_t kGrain = 128;  // points below which a second thread costs more than it brings

template <typename T>
class ForwardTile {
 public:
  explicit ForwardTile(const SdfNetwork<T>& network)
      : network_(network),
        bank_(network),
        activations_(network),
        output_(network.output().outputs),
        q_(kMaxNetworkWidth) {}

  // The points are in kept.input already.
  void run(const KeptRows<T>& kept) {
    const SdfNetwork<T>& net = network_;
    encode_tile<true, T>(net.grid, net.table, kept.input, kept.features, kept.jacobian);
    const KeptBank<T> kept_bank{net, kept};
    if (net.banked()) bank_.evaluate(kept.features, kept.input, &kept_bank);
    const Row<T>* in = kept.input;
    for (int l = 0; l < net.hidden(); ++l) {
      multiply(forward_matrix(net.layer[l]), net.layer[l].bias, net.width(l), net.used_inputs(l), in, kept.z[l]);
      activate_all<T>(net.activation, net.width(l), kept.z[l], activations_.value(l), activations_.slope(l), nullptr);
      in = activations_.value(l);
    }
    const DenseLayer<T>& output = net.output();
    multiply(forward_matrix(output), output.bias, output.outputs, output.inputs, in, output_.at(0));
    differentiate(kept);
  }

  void write(int64_t start, int count, T* sdf, T* feature, T* gradient) {
    const int features = network_.output().outputs - 1;
    for (int i = 0; i < count; ++i) {
      sdf[start + i] = output_.at(0)[0][i];
      for (int f = 0; f < features; ++f) feature[(start + i) * features + f] = output_.at(1 + f)[0][i];
      for (int d = 0; d < 3; ++d) gradient[3 * (start + i) + d] = gradient_[d][i];
    }
  }

 private:
  void differentiate(const KeptRows<T>& kept) {
    const SdfNetwork<T>& net = network_;
    const int last = net.hidden() - 1;
    Row<T>* q = q_.at(0);
    for (int j = 0; j < net.width(last); ++j) {
      const T weight = net.output().weight[j];
      const T* const slope = activations_.slope(last)[j];
      for_each_vector<T>([&](int lane) { store(q[j] + lane, weight * load(slope + lane)); });
    }
    for (int l = last; l > 0; --l) {
      multiply<T>(backward_matrix(net.layer[l]), nullptr, net.width(l - 1), net.width(l), q, kept.p[l - 1]);
      product<T>(net.width(l - 1), kept.p[l - 1], activations_.slope(l - 1), q);
    }
    multiply<T>(backward_matrix(net.layer[0]), nullptr, net.visible(), net.width(0), q, kept.input_gradient);
    std::memcpy(gradient_, kept.input_gradient, sizeof(gradient_));
    if (net.banked()) bank_.differentiate({net, kept}, gradient_);
    for_each_vector<T>([&](int lane) {
      Vector<T> sum[3];
      for (int d = 0; d < 3; ++d) sum[d] = load(gradient_[d] + lane);
      for (int k = 0; k < net.grid_rows(); ++k) {
        const Vector<T> p = load(kept.feature_gradient[k] + lane);
        for (int d = 0; d < 3; ++d) sum[d] += p * load(kept.jacobian[3 * k + d] + lane);
      }
      for (int d = 0; d < 3; ++d) store(gradient_[d] + lane, sum[d]);
    });
  }

  const SdfNetwork<T>& network_;
  BankForward<T> bank_;
  ActivationRows<T> activations_;
  Rows<T> output_, q_;
  alignas(64) Row<T> gradient_[3];
};

}  // namespace

template <typename T>
void sdf_and_normal(const SdfNetwork<T>& network, int64_t n, const T* x, T* sdf, T* feature, T* gradient, T* kept) {
  const int64_t tiles = (n + kLanes - 1) / kLanes;
  parallel_for(0, tiles, kGrain / kLanes, [&](int64_t first, int64_t last) {
    ForwardTile<T> tile(network);
    Rows<T> not_kept(kept ? 0 : network.kept());
    for (int64_t k = first; k < last; ++k) {
      const int64_t start = k * kLanes;
      const int count = int(n - start < kLanes ? n - start : kLanes);
      const KeptRows<T> rows(network, kept ? tile_of(kept, network, k) : not_kept.at(0));
      load_points(x + 3 * start, count, rows.input);
      tile.run(rows);
      tile.write(start, count, sdf, feature, gradient);
    }
  });
}

#define NSR_INSTANTIATE(T) \
  template void sdf_and_normal<T>(const SdfNetwork<T>&, int64_t, const T*, T*, T*, T*, T*);
NSR_INSTANTIATE(float)
NSR_INSTANTIATE(double)
#undef NSR_INSTANTIATE

}  // namespace nsr::cpu
