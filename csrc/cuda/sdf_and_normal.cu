// The SDF with its feature and its gradient on the GPU: the formulas of kernels/sdf_network.h with a thread per point, in
// their notation. Points do not depend on each other.
#include "sdf_network_tile.cuh"

namespace nsr::cuda {
namespace {

template <typename T>
struct SdfOutputs {
  T* sdf;
  T* feature;
  T* gradient;
};

// a_0 to `input` and `kept`, and J to `kept`.
template <typename T>
__device__ void encode_point(const SdfNetwork<T>& net, const T x[3], Column<T> input, KeptColumn<T> kept) {
  for (int d = 0; d < 3; ++d) kept[d] = input[d] = x[d];
  for (int l = 0; l < net.grid.active_levels; ++l)
    encode_level(net.grid, l, net.table, x, [&](int k, T h, T hx, T hy, T hz) {
      kept[3 + k] = input[3 + k] = h;
      const int row = net.kept_jacobian() + 3 * k;
      kept[row] = hx;
      kept[row + 1] = hy;
      kept[row + 2] = hz;
    });
}

// The reverse pass from q_L, which is in `q`: p_l to kept, df/dx to `gradient`. bank_row: of the bank's columns.
template <BankKind kBank, typename T>
__device__ void differentiate(const SdfNetwork<T>& net, Column<T> q, Column<T> free, int bank_row, KeptColumn<T> kept,
                              T gradient[3]) {
  for (int l = net.hidden() - 1; l > 0; --l) {
    const int z = net.kept_z(l - 1), p = net.kept_p(l - 1);
    multiply<true>(net.layer[l], nullptr, net.width(l - 1), net.width(l), q, [&](int j, T value) {
      kept[p + j] = value;
      free[j] = value * activate(net.activation, kept[z + j]).slope;
    });
    swap(q, free);
  }
  if constexpr (kBank == kPublishedBank)
    return differentiate_bank(net, q, BankColumns<T>(net, bank_row, false), kept, gradient);
  if constexpr (kBank == kModulatedBank)
    return differentiate_modulated_bank(net, q, BankColumns<T>(net, bank_row, false), kept, gradient);
  gradient[0] = gradient[1] = gradient[2] = T(0);
  multiply<true>(net.layer[0], nullptr, net.visible(), net.width(0), q, [&](int k, T value) {
    kept[net.kept_input_gradient() + k] = value;
    const int row = net.kept_jacobian() + 3 * (k - 3);
    for (int d = 0; d < 3; ++d) gradient[d] += k < 3 ? (k == d ? value : T(0)) : value * kept[row + d];
  });
}

// kept is by point where `all_kept`, else by thread.
template <BankKind kBank, typename T>
__global__ void sdf_and_normal_kernel(SdfNetwork<T> network, int widest, int64_t n, const T* x, SdfOutputs<T> outputs,
                                      T* kept_rows, bool all_kept) {
  const SdfNetwork<T>& net = network;
  const int last = net.hidden() - 1, features = net.output().outputs - 1;
  for (int64_t first = int64_t(blockIdx.x) * blockDim.x; first < n; first += int64_t(gridDim.x) * blockDim.x) {
    const int64_t i = first + threadIdx.x, at = point_of(i, n);
    const KeptColumn<T> kept = kept_column(kept_rows, net.kept(), all_kept ? slot_of(i, n) : thread_index());
    Column<T> in = shared_column<T>(0), out = shared_column<T>(widest);
    const T point[3] = {x[3 * at], x[3 * at + 1], x[3 * at + 2]};
    if constexpr (kBank != kNoBank) {
      through_any_bank<kBank>(net, point, 2 * widest, in, BankKept<T>{net, kept});
      for (int j = 0; j < net.width(0); ++j) {
        const T z = in[j];
        kept[net.kept_z(0) + j] = z;
        in[j] = activate(net.activation, z).value;
      }
    } else {
      encode_point(net, point, in, kept);
    }
    for (int l = kBank != kNoBank ? 1 : 0; l <= last; ++l) {
      const int z_row = net.kept_z(l);
      multiply<false>(net.layer[l], net.layer[l].bias, net.width(l), net.used_inputs(l), in, [&](int j, T z) {
        kept[z_row + j] = z;
        out[j] = activate(net.activation, z).value;
      });
      swap(in, out);
    }
    multiply<false>(net.output(), net.output().bias, net.output().outputs, net.output().inputs, in, [&](int j, T value) {
      if (i >= n) return;
      if (j == 0)
        outputs.sdf[i] = value;
      else
        outputs.feature[i * features + j - 1] = value;
    });
    const int z_row = net.kept_z(last);
    for (int j = 0; j < net.width(last); ++j)
      out[j] = net.output().weight[j] * activate(net.activation, kept[z_row + j]).slope;
    T gradient[3];
    differentiate<kBank>(net, out, in, 2 * widest, kept, gradient);
    for (int d = 0; d < 3 && i < n; ++d) outputs.gradient[3 * i + d] = gradient[d];
  }
}

template <typename T>
auto kernel_of(const SdfNetwork<T>& network) {
  return with_bank_kind(network, [](auto kind) { return sdf_and_normal_kernel<decltype(kind)::value, T>; });
}

template <typename T>
TilePlan plan(const SdfNetwork<T>& network, int64_t n) {
  return plan_tiles<T>(kernel_of(network), n, 2 * widest(network) + bank_rows(network, false));
}

}  // namespace

template <typename T>
int64_t sdf_and_normal_scratch(const SdfNetwork<T>& network, int64_t n, const T*, T*, T*, T*, T* kept) {
  const TilePlan tiles = plan(network, n);
  return tiles.scratch(kept ? 0 : sizeof(T) * size_t(tiles.slots()) * size_t(network.kept()));
}

template <typename T>
void sdf_and_normal(void* stream, const SdfNetwork<T>& network, int64_t n, const T* x, T* sdf, T* feature, T* gradient,
                    T* kept, void* scratch) {
  launch_tiles(stream, plan(network, n), kernel_of(network), network, widest(network), n, x,
               SdfOutputs<T>{sdf, feature, gradient}, kept ? kept : static_cast<T*>(scratch), kept != nullptr);
}

#define NSR_INSTANTIATE(T)                                                                                          \
  template int64_t sdf_and_normal_scratch<T>(const SdfNetwork<T>&, int64_t, const T*, T*, T*, T*, T*);              \
  template void sdf_and_normal<T>(void*, const SdfNetwork<T>&, int64_t, const T*, T*, T*, T*, T*, void*);
NSR_INSTANTIATE(float)
NSR_INSTANTIATE(double)
#undef NSR_INSTANTIATE

}  // namespace nsr::cuda
