// The backward pass of the SDF with its feature and gradient on the GPU: the formulas of kernels/sdf_network.h with a
// thread per point, in their notation. Only the scatter into the table uses atomics (grid_gradient.cuh).
#include "grid_gradient.cuh"
#include "sdf_network_tile.cuh"

namespace nsr::cuda {
namespace {

// What a block or a point has besides the outputs.
template <typename T>
struct Scratch {
  T* parts;       // [blocks, parameters] sums over points
  T* curved;      // [slots / kLanes, hidden widths, kLanes], dq_l p_l s''(z_l) of the points in flight
  T* grad_input;  // [tiles of kLanes points, visible, kLanes], the cotangent of a_0
};

template <typename T>
int64_t curved_numbers(const SdfNetwork<T>& network, const TilePlan& plan) {
  return plan.slots() * network.widths_before(network.hidden());
}

template <typename T>
class BackwardPoint {
 public:
  __device__ BackwardPoint(const SdfNetwork<T>& network, int rows, T* parts, KeptColumn<T> curved)
      : net_(network),
        parts_(parts),
        curved_(curved),
        a_(shared_column<T>(0)),
        b_(shared_column<T>(rows)),
        c_(shared_column<T>(2 * rows)) {}

  // g: the cotangent of the normal. Forwards through the pass that made it: dp_0 ... dp_L, and what s'' contributes to
  // dz_l in `curved`.
  __device__ void through_normal(KeptColumn<T> kept, const T g[3]) {
    Column<T> dp = a_, dq = b_;
    for (int d = 0; d < 3; ++d) dp[d] = g[d];
    for (int k = 0; k < net_.visible() - 3; ++k) {
      const int row = net_.kept_jacobian() + 3 * k;
      dp[3 + k] = g[0] * kept[row] + g[1] * kept[row + 1] + g[2] * kept[row + 2];
    }
    for (int l = 0; l < net_.hidden(); ++l) {
      const int z = net_.kept_z(l), p = net_.kept_p(l), curved = net_.widths_before(l);
      const bool last = l + 1 == net_.hidden();
      multiply<false>(net_.layer[l], nullptr, net_.width(l), net_.used_inputs(l), dp, [&](int j, T value) {
        const T backwards = last ? net_.output().weight[j] : kept[p + j];
        const ActivationPoint<T> s = activate(net_.activation, kept[z + j]);
        c_[j] = backwards * s.slope;
        curved_[curved + j] = value * backwards * s.curvature;
        dq[j] = value * s.slope;
      });
      add_weight(l, c_, dp);
      swap(dp, dq);
    }
    if (parts_) add_rows(net_.width(net_.hidden() - 1), dp, parts_ + net_.weight_place(net_.hidden()));  // dW_out[0]
  }

  // From the values, backwards; their cotangents are load(j). Leaves the cotangent of a_0 in the column returned, where it
  // is wanted.
  template <typename Load>
  __device__ Column<T> through_value(KeptColumn<T> kept, bool with_normal, bool want_input, const Load& load) {
    const DenseLayer<T>& output = net_.output();
    Column<T> dz = a_, below = b_;
    for (int j = 0; j < output.outputs; ++j) dz[j] = load(j);
    for (int l = net_.hidden(); l >= 0; --l) {
      load_input(kept, l);
      add_weight(l, dz, c_);
      if (parts_) add_rows(net_.width(l), dz, parts_ + net_.bias_place(l));
      if (l == 0 && !want_input) break;
      const int z = l ? net_.kept_z(l - 1) : 0, curved = l ? net_.widths_before(l - 1) : 0;
      multiply<true>(net_.layer[l], nullptr, net_.used_inputs(l), net_.width(l), dz, [&](int j, T value) {
        if (l > 0) value *= activate(net_.activation, kept[z + j]).slope;
        if (l > 0 && with_normal) value += curved_[curved + j];
        below[j] = value;
      });
      swap(dz, below);
    }
    return dz;
  }

 private:
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
  T* parts_;  // this block's, or null where no gradient of a layer is wanted
  KeptColumn<T> curved_;
  Column<T> a_, b_, c_;
};

template <typename T>
__global__ void sdf_and_normal_bwd_kernel(SdfNetwork<T> network, int rows, int64_t n, const T* x, T* kept_rows,
                                          SdfCotangents<T> cotangents, T* grad_x, bool want_input, Scratch<T> scratch) {
  const SdfNetwork<T>& net = network;
  const int features = net.output().outputs - 1;
  const KeptColumn<T> curved =
      kept_column(scratch.curved, net.widths_before(net.hidden()), thread_index());
  BackwardPoint<T> backward(net, rows, scratch.parts ? scratch.parts + blockIdx.x * net.parameters() : nullptr, curved);
  for (int64_t first = int64_t(blockIdx.x) * blockDim.x; first < n; first += int64_t(gridDim.x) * blockDim.x) {
    const int64_t i = first + threadIdx.x, at = point_of(i, n);  // threads behind the end have cotangents of zero
    const bool real = i < n, with_normal = cotangents.gradient != nullptr;
    const KeptColumn<T> kept = kept_column(kept_rows, net.kept(), at);
    T g[3] = {};
    for (int d = 0; d < 3 && real && with_normal; ++d) g[d] = cotangents.gradient[3 * i + d];
    if (with_normal) backward.through_normal(kept, g);
    const Column<T> grad_input = backward.through_value(kept, with_normal, want_input, [&](int j) {
      if (!real) return T(0);
      if (j == 0) return cotangents.sdf ? cotangents.sdf[i] : T(0);
      return cotangents.feature ? cotangents.feature[i * features + j - 1] : T(0);
    });
    if (!real || !want_input) continue;
    const KeptColumn<T> grad_kept = kept_column(scratch.grad_input, net.visible(), i);
    for (int k = 0; k < net.visible(); ++k) grad_kept[k] = grad_input[k];
    if (!grad_x) continue;
    const T point[3] = {x[3 * i], x[3 * i + 1], x[3 * i + 2]};
    T grad[3] = {grad_input[0], grad_input[1], grad_input[2]};
    for (int l = 0; l < net.grid.active_levels; ++l)
      contract_level(net.grid, l, net.table, point, [&](int k) {
        const T p = with_normal ? kept[net.kept_input_gradient() + 3 + k] : T(0);
        return CellCotangent<T>{grad_input[3 + k], p * g[0], p * g[1], p * g[2]};
      }, grad);
    for (int d = 0; d < 3; ++d) grad_x[3 * i + d] = grad[d];
  }
}

// The cotangents of the grid: a = the rows 3 ... of the cotangent of a_0, b = p_0 g^T.
template <typename T>
struct GridCotangents {
  int visible, kept, input_gradient;
  const T* grad_input;
  const T* kept_rows;
  const T* grad_normal;  // null: zeros

  __device__ __forceinline__ CellCotangent<T> operator()(int64_t i, int k) const {
    CellCotangent<T> cotangent = {};
    cotangent.a = kept_column(grad_input, visible, i)[3 + k];
    if (!grad_normal) return cotangent;
    const T p = kept_column(kept_rows, kept, i)[input_gradient + 3 + k];
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
TilePlan plan(const SdfNetwork<T>& network, int64_t n) {
  return plan_tiles<T>(sdf_and_normal_bwd_kernel<T>, n, 3 * backward_rows(network));
}

}  // namespace

template <typename T>
int64_t sdf_and_normal_bwd_scratch(const SdfNetwork<T>& network, int64_t n, int64_t entries, const T*, const T*,
                                   const SdfCotangents<T>&, const SdfGradients<T>& gradients) {
  const TilePlan tiles = plan(network, n);
  const int64_t parts = gradients.layers.wanted() ? parts_numbers(network, tiles) : 0;
  const int64_t inputs = gradients.x || gradients.table ? kept_numbers(network.visible(), n) : 0;
  const int64_t of_table = gradients.table ? scatter_scratch(network.grid, entries) : 0;
  return tiles.scratch(size_t(of_table) + sizeof(T) * size_t(parts + curved_numbers(network, tiles) + inputs));
}

template <typename T>
void sdf_and_normal_bwd(void* stream, const SdfNetwork<T>& network, int64_t n, int64_t entries, const T* x,
                        const T* kept, const SdfCotangents<T>& cotangents, const SdfGradients<T>& gradients,
                        void* scratch) {
  const TilePlan tiles = plan(network, n);
  const bool want_layers = gradients.layers.wanted(), want_input = gradients.x || gradients.table;
  const auto queue = static_cast<cudaStream_t>(stream);
  // The table's part first: it has the numbers that need the widest alignment.
  const int64_t of_table = gradients.table ? scatter_scratch(network.grid, entries) : 0;
  T* const numbers = reinterpret_cast<T*>(static_cast<unsigned char*>(scratch) + of_table);
  const int64_t parts = want_layers ? parts_numbers(network, tiles) : 0;
  const int64_t curved = curved_numbers(network, tiles);
  const Scratch<T> places{want_layers ? numbers : nullptr, numbers + parts, numbers + parts + curved};
  if (parts) cudaMemsetAsync(places.parts, 0, sizeof(T) * size_t(parts), queue);
  launch_tiles(stream, tiles, sdf_and_normal_bwd_kernel<T>, network, backward_rows(network), n, x, const_cast<T*>(kept),
               cotangents, gradients.x, want_input, places);
  if (want_layers)
    sum_blocks(stream, network, tiles, places.parts, gradients.layers);
  if (gradients.table) {
    const GridCotangents<T> of_grid{network.visible(), network.kept(),     network.kept_input_gradient(),
                                    places.grad_input, kept, cotangents.gradient};
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
