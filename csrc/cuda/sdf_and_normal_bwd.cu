// The backward pass of the SDF with its feature and gradient on the GPU: the formulas of kernels/sdf_network.h with a
// thread per point, in their notation. Only the scatter into the table uses atomics (grid_gradient.cuh).
#include "grid_gradient.cuh"
#include "modulated_bank_bwd.cuh"
#include "sdf_network_tile.cuh"

namespace nsr::cuda {
namespace {

// What a block or a point has besides the outputs.
template <typename T>
struct Scratch {
  T* parts;       // [blocks, parameters] sums over points
  T* bank_parts;  // [blocks, bank_sums]
  T* curved;      // [slots / kLanes, curved_rows, kLanes], what s'' adds to the cotangents of the points in flight
  T* grad_input;  // [tiles of kLanes points, 3 + grid_rows, kLanes], the cotangents of x and of the grid's features
};

template <typename T>
__host__ __device__ int curved_rows(const SdfNetwork<T>& network) {
  const int of_layers = network.widths_before(network.hidden());
  if (!network.banked()) return of_layers;
  return of_layers + (network.bank.modulated ? ModulatedBackward<T>::rows(network) : BankBackward<T>::rows(network));
}

template <typename T>
int64_t curved_numbers(const SdfNetwork<T>& network, const TilePlan& plan) {
  return plan.slots() * curved_rows(network);
}

template <BankKind kBank, typename T>
class BackwardPoint {
 public:
  __device__ BackwardPoint(const SdfNetwork<T>& network, int rows, T* parts, T* bank_parts, KeptColumn<T> curved)
      : net_(network),
        bank_(network, BankColumns<T>(network, 3 * rows, true), parts, bank_parts, curved),
        parts_(parts),
        curved_(curved),
        a_(shared_column<T>(0)),
        b_(shared_column<T>(rows)),
        c_(shared_column<T>(2 * rows)) {}

  // g: the cotangent of the normal. Forwards through the pass that made it: dp_0 ... dp_L, and what s'' contributes to
  // dz_l in `curved`.
  __device__ void through_normal(KeptColumn<T> kept, const T g[3]) {
    Column<T> dp = a_, dq = b_;
    if constexpr (kBank != kNoBank) {
      for (int j = 0; j < net_.width(0); ++j)
        c_[j] = backwards(kept, 0, j) * activate(net_.activation, kept[net_.kept_z(0) + j]).slope;
      bank_.push(kept, g, c_, dq);
      for (int j = 0; j < net_.width(0); ++j) dq[j] = bend(kept, 0, j, dq[j]);
      swap(dp, dq);
    } else {
      for (int d = 0; d < 3; ++d) dp[d] = g[d];
      for (int k = 0; k < net_.grid_rows(); ++k) {
        const int row = net_.kept_jacobian() + 3 * k;
        dp[3 + k] = g[0] * kept[row] + g[1] * kept[row + 1] + g[2] * kept[row + 2];
      }
    }
    for (int l = kBank != kNoBank ? 1 : 0; l < net_.hidden(); ++l) {
      multiply<false>(net_.layer[l], nullptr, net_.width(l), net_.used_inputs(l), dp,
                      [&](int j, T value) { dq[j] = bend(kept, l, j, value); });
      add_weight(l, c_, dp);
      swap(dp, dq);
    }
    if (parts_) add_rows(net_.width(net_.hidden() - 1), dp, parts_ + net_.weight_place(net_.hidden()));  // dW_out[0]
  }

  // From the values, backwards; their cotangents are load(j). Where they are wanted, gives emit(row, cotangent) those of x,
  // rows 0 to 2, and of the grid's features.
  template <typename Load, typename Emit>
  __device__ void through_value(KeptColumn<T> kept, bool with_normal, const T g[3], bool want_input, const Load& load,
                                const Emit& emit) {
    const DenseLayer<T>& output = net_.output();
    Column<T> dz = a_, below = b_;
    for (int j = 0; j < output.outputs; ++j) dz[j] = load(j);
    for (int l = net_.hidden(); l >= 0; --l) {
      if (kBank != kNoBank && l == 0) break;
      load_input(kept, l);
      add_weight(l, dz, c_);
      if (parts_) add_rows(net_.width(l), dz, parts_ + net_.bias_place(l));
      if (l == 0 && !want_input) return;
      const int z = l ? net_.kept_z(l - 1) : 0, curved = l ? net_.widths_before(l - 1) : 0;
      multiply<true>(net_.layer[l], nullptr, net_.used_inputs(l), net_.width(l), dz, [&](int j, T value) {
        if (l > 0) value *= activate(net_.activation, kept[z + j]).slope;
        if (l > 0 && with_normal) value += curved_[curved + j];
        below[j] = value;
      });
      swap(dz, below);
    }
    if constexpr (kBank != kNoBank) {
      if (parts_) add_rows(net_.width(0), dz, parts_ + net_.bias_place(0));
      T grad_x[3];
      bank_.pull(kept, with_normal, g, dz, grad_x, [&](int k, T value) { emit(3 + k, value); });
      for (int d = 0; d < 3; ++d) emit(d, grad_x[d]);
    } else {
      for (int k = 0; k < net_.visible(); ++k) emit(k, dz[k]);
    }
  }

 private:
  __device__ T backwards(KeptColumn<T> kept, int l, int j) const {
    return l + 1 == net_.hidden() ? net_.output().weight[j] : kept[net_.kept_p(l) + j];
  }

  // What s makes of the tangent of z_l; leaves q_l in c_, and what s'' adds to dz_l in `curved`.
  __device__ T bend(KeptColumn<T> kept, int l, int j, T tangent) {
    const T p = backwards(kept, l, j);
    const ActivationPoint<T> s = activate(net_.activation, kept[net_.kept_z(l) + j]);
    c_[j] = p * s.slope;
    curved_[net_.widths_before(l) + j] = tangent * p * s.curvature;
    return tangent * s.slope;
  }

  // a_{l-1} to c_, where the gradient of a weight wants it.
  __device__ void load_input(KeptColumn<T> kept, int l) {
    if (!parts_) return;
    const int z = l ? net_.kept_z(l - 1) : 0;
    for (int k = 0; k < net_.used_inputs(l); ++k) c_[k] = l ? activate(net_.activation, kept[z + k]).value : kept[k];
  }

  __device__ void add_weight(int l, Column<T> left, Column<T> right) {
    if (parts_)
      add_outer(net_.width(l), net_.used_inputs(l), left, right, net_.layer[l].inputs, parts_ + net_.weight_place(l));
  }

  const SdfNetwork<T>& net_;
  std::conditional_t<kBank == kModulatedBank, ModulatedBackward<T>, BankBackward<T>> bank_;
  T* parts_;  // this block's, or null where no gradient of a layer is wanted
  KeptColumn<T> curved_;
  Column<T> a_, b_, c_;
};

template <BankKind kBank, typename T>
__global__ void sdf_and_normal_bwd_kernel(SdfNetwork<T> network, int rows, int64_t n, const T* x, T* kept_rows,
                                          SdfCotangents<T> cotangents, T* grad_x, bool want_input, Scratch<T> scratch) {
  const SdfNetwork<T>& net = network;
  const int features = net.output().outputs - 1;
  const KeptColumn<T> curved = kept_column(scratch.curved, curved_rows(net), thread_index());
  BackwardPoint<kBank, T> backward(
      net, rows, scratch.parts ? scratch.parts + blockIdx.x * net.parameters() : nullptr,
      scratch.bank_parts ? scratch.bank_parts + blockIdx.x * bank_sums(net.bank) : nullptr, curved);
  for (int64_t first = int64_t(blockIdx.x) * blockDim.x; first < n; first += int64_t(gridDim.x) * blockDim.x) {
    const int64_t i = first + threadIdx.x, at = point_of(i, n);  // threads behind the end have cotangents of zero
    const bool real = i < n, with_normal = cotangents.gradient != nullptr, keep = real && want_input;
    const KeptColumn<T> kept = kept_column(kept_rows, net.kept(), at);
    const KeptColumn<T> grad_input = kept_column(scratch.grad_input, 3 + net.grid_rows(), i);
    T g[3] = {};
    for (int d = 0; d < 3 && real && with_normal; ++d) g[d] = cotangents.gradient[3 * i + d];
    if (with_normal) backward.through_normal(kept, g);
    const auto load = [&](int j) {
      if (!real) return T(0);
      if (j == 0) return cotangents.sdf ? cotangents.sdf[i] : T(0);
      return cotangents.feature ? cotangents.feature[i * features + j - 1] : T(0);
    };
    backward.through_value(kept, with_normal, g, want_input, load, [&](int k, T value) {
      if (keep) grad_input[k] = value;
    });
    if (!keep || !grad_x) continue;
    const T point[3] = {x[3 * i], x[3 * i + 1], x[3 * i + 2]};
    T grad[3] = {grad_input[0], grad_input[1], grad_input[2]};
    for (int l = 0; l < net.grid.active_levels; ++l)
      contract_level(net.grid, l, net.table, point, [&](int k) {
        const T p = with_normal ? kept[net.kept_feature_gradient() + k] : T(0);
        return CellCotangent<T>{grad_input[3 + k], p * g[0], p * g[1], p * g[2]};
      }, grad);
    for (int d = 0; d < 3; ++d) grad_x[3 * i + d] = grad[d];
  }
}

// The cotangents of the grid: a = the rows 3 ... of grad_input, b = P g^T with the cotangents P of the features in the normal's
// pass.
template <typename T>
struct GridCotangents {
  int rows, kept, feature_gradient;
  const T* grad_input;
  const T* kept_rows;
  const T* grad_normal;  // null: zeros

  __device__ __forceinline__ CellCotangent<T> operator()(int64_t i, int k) const {
    CellCotangent<T> cotangent = {};
    cotangent.a = kept_column(grad_input, rows, i)[3 + k];
    if (!grad_normal) return cotangent;
    const T p = kept_column(kept_rows, kept, i)[feature_gradient + k];
    cotangent.bx = p * grad_normal[3 * i];
    cotangent.by = p * grad_normal[3 * i + 1];
    cotangent.bz = p * grad_normal[3 * i + 2];
    return cotangent;
  }
};

template <typename T>
int backward_rows(const SdfNetwork<T>& network) {
  return larger(widest(network), network.output().outputs);
}

template <typename T>
auto kernel_of(const SdfNetwork<T>& network) {
  return with_bank_kind(network, [](auto kind) { return sdf_and_normal_bwd_kernel<decltype(kind)::value, T>; });
}

template <typename T>
TilePlan plan(const SdfNetwork<T>& network, int64_t n) {
  return plan_tiles<T>(kernel_of(network), n, 3 * backward_rows(network) + bank_rows(network, true));
}

// Numbers of the scratch, in this order.
template <typename T>
struct ScratchSizes {
  int64_t parts, bank_parts, curved, grad_input;

  ScratchSizes(const SdfNetwork<T>& network, const TilePlan& plan, int64_t n, const SdfGradients<T>& gradients)
      : parts(gradients.layers.wanted() ? parts_numbers(network, plan) : 0),
        bank_parts(gradients.bank && network.banked() ? int64_t(plan.blocks) * bank_sums(network.bank) : 0),
        curved(curved_numbers(network, plan)),
        grad_input(gradients.x || gradients.table ? kept_numbers(3 + network.grid_rows(), n) : 0) {}

  Scratch<T> at(T* numbers) const {
    T* const behind_parts = numbers + parts + bank_parts;
    return {parts ? numbers : nullptr, bank_parts ? numbers + parts : nullptr, behind_parts, behind_parts + curved};
  }
  size_t bytes() const { return sizeof(T) * size_t(parts + bank_parts + curved + grad_input); }
};

}  // namespace

template <typename T>
int64_t sdf_and_normal_bwd_scratch(const SdfNetwork<T>& network, int64_t n, int64_t entries, const T*, const T*,
                                   const SdfCotangents<T>&, const SdfGradients<T>& gradients) {
  const TilePlan tiles = plan(network, n);
  const int64_t of_table = gradients.table ? scatter_scratch(network.grid, entries) : 0;
  return tiles.scratch(size_t(of_table) + ScratchSizes<T>(network, tiles, n, gradients).bytes());
}

template <typename T>
void sdf_and_normal_bwd(void* stream, const SdfNetwork<T>& network, int64_t n, int64_t entries, const T* x,
                        const T* kept, const SdfCotangents<T>& cotangents, const SdfGradients<T>& gradients,
                        void* scratch) {
  const TilePlan tiles = plan(network, n);
  const auto queue = static_cast<cudaStream_t>(stream);
  // The table's part first: it has the numbers that need the widest alignment.
  const int64_t of_table = gradients.table ? scatter_scratch(network.grid, entries) : 0;
  const ScratchSizes<T> sizes(network, tiles, n, gradients);
  T* const numbers = reinterpret_cast<T*>(static_cast<unsigned char*>(scratch) + of_table);
  const Scratch<T> places = sizes.at(numbers);
  if (sizes.parts + sizes.bank_parts)
    cudaMemsetAsync(numbers, 0, sizeof(T) * size_t(sizes.parts + sizes.bank_parts), queue);
  launch_tiles(stream, tiles, kernel_of(network), network, backward_rows(network), n, x, const_cast<T*>(kept), cotangents,
               gradients.x, gradients.x || gradients.table, places);
  if (gradients.layers.wanted()) sum_blocks(stream, network, tiles, places.parts, gradients.layers);
  if (gradients.bank) sum_bank(stream, network.bank, network.banked() ? tiles.blocks : 0, places.bank_parts, gradients.bank);
  if (gradients.table) {
    const GridCotangents<T> of_grid{3 + network.grid_rows(), network.kept(),     network.kept_feature_gradient(),
                                    places.grad_input,       kept,               cotangents.gradient};
    scatter_to_table(stream, network.grid, n, entries, x, of_grid, gradients.table, scratch);
  }
}

#define NSR_INSTANTIATE(T)                                                                                      \
  template int64_t sdf_and_normal_bwd_scratch<T>(const SdfNetwork<T>&, int64_t, int64_t, const T*, const T*,    \
                                                 const SdfCotangents<T>&, const SdfGradients<T>&);              \
  template void sdf_and_normal_bwd<T>(void*, const SdfNetwork<T>&, int64_t, int64_t, const T*, const T*,        \
                                      const SdfCotangents<T>&, const SdfGradients<T>&, void*);
NSR_INSTANTIATE(float)
NSR_INSTANTIATE(double)
#undef NSR_INSTANTIATE

}  // namespace nsr::cuda
