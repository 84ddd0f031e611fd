// The backward pass of the colour network on the GPU: the formulas of kernels/color_network.h with a thread per point, in
// their notation. Only the scatter into the table uses atomics (grid_gradient.cuh).
#include "color_network_tile.cuh"
#include "grid_gradient.cuh"

namespace nsr::cuda {
namespace {

// From the cotangent of the colour to that of a_0, in the column returned where it is wanted; adds the gradients of the
// layers to `parts` unless null. real: whether the thread has a point; others have cotangents of zero.
template <typename T>
__device__ Column<T> through_layers(const ColorNetwork<T>& net, int rows, KeptColumn<T> kept, const T* grad_rgb, bool real,
                                    bool want_input, T* parts) {
  Column<T> dz = shared_column<T>(0), below = shared_column<T>(rows);
  const Column<T> before = shared_column<T>(2 * rows);
  for (int c = 0; c < kColors; ++c) {
    const T rgb = kept[net.kept_rgb() + c];
    dz[c] = real ? T(2) * rgb * (T(1) - rgb) * grad_rgb[c] : T(0);
  }
  for (int l = net.hidden(); l >= 0; --l) {
    const int row = l ? net.kept_hidden(l - 1) : 0, inputs = net.used_inputs(l);
    if (parts) {
      for (int k = 0; k < inputs; ++k) before[k] = kept[row + k];
      add_outer(net.width(l), inputs, dz, before, net.layer[l].inputs, parts + net.weight_place(l));
      add_rows(net.width(l), dz, parts + net.bias_place(l));
    }
    if (l == 0 && !want_input) break;
    multiply<true>(net.layer[l], nullptr, inputs, net.width(l), dz,
                   [&](int k, T value) { below[k] = l && kept[row + k] <= T(0) ? T(0) : value; });
    swap(dz, below);
  }
  return dz;
}

// From the cotangent of a_0 to the gradients of the inputs.
template <typename T>
__device__ void write_inputs(const ColorNetwork<T>& net, int64_t i, KeptColumn<T> kept, Column<T> grad,
                             const ColorGradients<T>& to) {
  if (to.points) {
    T sum[3] = {grad[0], grad[1], grad[2]};
    for (int k = 0; k < net.visible(); ++k)
      for (int d = 0; d < 3; ++d) sum[d] += grad[net.grid_at() + k] * kept[net.kept_jacobian() + 3 * k + d];
    for (int d = 0; d < 3; ++d) to.points[3 * i + d] = sum[d];
  }
  if (to.view_dirs) {
    const int at = net.view_at();
    const HarmonicsGradient<T> g =
        harmonics_vjp(net.view_degree, kept[at], kept[at + 1], kept[at + 2], [&](int k) { return grad[at + k]; });
    to.view_dirs[3 * i] = -g.x;
    to.view_dirs[3 * i + 1] = -g.y;
    to.view_dirs[3 * i + 2] = -g.z;
  }
  for (int d = 0; d < 3 && to.normals; ++d) to.normals[3 * i + d] = grad[net.normal_at() + d];
  for (int f = 0; f < net.features && to.features; ++f)
    to.features[i * net.features + f] = grad[net.feature_at() + f];
}

// parts [blocks, parameters] or null; grad_grid [tiles of kLanes points, visible, kLanes] or null.
template <typename T>
__global__ void color_network_bwd_kernel(ColorNetwork<T> network, int rows, int64_t n, T* kept_rows, const T* grad_rgb,
                                         ColorGradients<T> gradients, T* parts, T* grad_grid) {
  const ColorNetwork<T>& net = network;
  T* const own_parts = parts ? parts + blockIdx.x * net.parameters() : nullptr;
  for (int64_t first = int64_t(blockIdx.x) * blockDim.x; first < n; first += int64_t(gridDim.x) * blockDim.x) {
    const int64_t i = first + threadIdx.x, at = point_of(i, n);
    const KeptColumn<T> kept = kept_column(kept_rows, net.kept(), at);
    const Column<T> grad = through_layers(net, rows, kept, grad_rgb + kColors * at, i < n, gradients.any_input(), own_parts);
    if (i >= n || !gradients.any_input()) continue;
    write_inputs(net, i, kept, grad, gradients);
    for (int k = 0; k < net.visible() && grad_grid; ++k)
      kept_column(grad_grid, net.visible(), i)[k] = grad[net.grid_at() + k];
  }
}

// The cotangents of the grid's active outputs; none of its Jacobian.
template <typename T>
struct GridCotangents {
  int visible;
  T* grad_grid;

  __device__ __forceinline__ CellCotangent<T> operator()(int64_t i, int k) const {
    return {kept_column(grad_grid, visible, i)[k], T(0), T(0), T(0)};
  }
};

template <typename T>
TilePlan plan(const ColorNetwork<T>& network, int64_t n) {
  return plan_tiles<T>(color_network_bwd_kernel<T>, n, 3 * widest(network));
}

}  // namespace

template <typename T>
int64_t color_network_bwd_scratch(const ColorNetwork<T>& network, int64_t n, int64_t entries, const T*, const T*, const T*,
                                  const ColorGradients<T>& gradients) {
  const TilePlan tiles = plan(network, n);
  const int64_t parts = gradients.layers.wanted() ? parts_numbers(network, tiles) : 0;
  const int64_t of_table = gradients.table ? scatter_scratch(network.grid, entries) : 0;
  const int64_t inputs = gradients.table ? kept_numbers(network.visible(), n) : 0;
  return tiles.scratch(size_t(of_table) + sizeof(T) * size_t(parts + inputs));
}

template <typename T>
void color_network_bwd(void* stream, const ColorNetwork<T>& network, int64_t n, int64_t entries, const T* points,
                       const T* kept, const T* grad_rgb, const ColorGradients<T>& gradients, void* scratch) {
  const TilePlan tiles = plan(network, n);
  // The table's part first: it has the numbers that need the widest alignment.
  const int64_t of_table = gradients.table ? scatter_scratch(network.grid, entries) : 0;
  T* const numbers = reinterpret_cast<T*>(static_cast<unsigned char*>(scratch) + of_table);
  const bool want_layers = gradients.layers.wanted();  // also of no points, for which the scratch is none
  const int64_t count = want_layers ? parts_numbers(network, tiles) : 0;
  T* const parts = want_layers ? numbers : nullptr;
  T* const grad_grid = gradients.table ? numbers + count : nullptr;
  if (count) cudaMemsetAsync(parts, 0, sizeof(T) * size_t(count), static_cast<cudaStream_t>(stream));
  launch_tiles(stream, tiles, color_network_bwd_kernel<T>, network, widest(network), n, const_cast<T*>(kept), grad_rgb,
               gradients, parts, grad_grid);
  if (want_layers) sum_blocks(stream, network, tiles, parts, gradients.layers);
  if (gradients.table)
    scatter_to_table(stream, network.grid, n, entries, points, GridCotangents<T>{network.visible(), grad_grid},
                     gradients.table, scratch);
}

#define NSR_INSTANTIATE(T)                                                                                             \
  template int64_t color_network_bwd_scratch<T>(const ColorNetwork<T>&, int64_t, int64_t, const T*, const T*, const T*, \
                                                const ColorGradients<T>&);                                             \
  template void color_network_bwd<T>(void*, const ColorNetwork<T>&, int64_t, int64_t, const T*, const T*, const T*,    \
                                     const ColorGradients<T>&, void*);
NSR_INSTANTIATE(float)
NSR_INSTANTIATE(double)
#undef NSR_INSTANTIATE

}  // namespace nsr::cuda
