// The colour network on the GPU: the formulas of kernels/color_network.h with a thread per point, in their notation.
// Points do not depend on each other.
#include "color_network_tile.cuh"

namespace nsr::cuda {
namespace {

// a_0 and J; nothing is kept where `kept` is null.
template <typename T>
__device__ void encode_inputs(const ColorNetwork<T>& net, const ColorInputs<T>& inputs, int64_t i, Column<T> input,
                              KeptColumn<T> kept) {
  T point[3];
  for (int d = 0; d < 3; ++d) point[d] = input[d] = inputs.points[3 * i + d];
  for (int l = 0; l < net.grid.active_levels; ++l)
    encode_level(net.grid, l, net.table, point, [&](int k, T h, T hx, T hy, T hz) {
      input[net.grid_at() + k] = h;
      if (!kept.at) return;
      const int row = net.kept_jacobian() + 3 * k;
      kept[row] = hx;
      kept[row + 1] = hy;
      kept[row + 2] = hz;
    });
  for (int k = net.visible(); k < net.grid.outputs(); ++k) input[net.grid_at() + k] = T(0);
  if (net.view_degree > 0) {
    T way[3];
    for (int d = 0; d < 3; ++d) way[d] = input[net.view_at() + d] = -inputs.view_dirs[3 * i + d];
    harmonics_beyond_direction(net.view_degree, way[0], way[1], way[2],
                               [&](int k, T value) { input[net.view_at() + k] = value; });
  }
  for (int d = 0; d < 3 && net.with_normal; ++d) input[net.normal_at() + d] = inputs.normals[3 * i + d];
  for (int f = 0; f < net.features; ++f) input[net.feature_at() + f] = inputs.features[i * net.features + f];
  for (int k = 0; k < net.inputs() && kept.at; ++k) kept[k] = input[k];
}

template <typename T>
__global__ void color_network_kernel(ColorNetwork<T> network, int rows, int64_t n, ColorInputs<T> inputs, T* rgb,
                                     T* kept_rows) {
  const ColorNetwork<T>& net = network;
  for (int64_t first = int64_t(blockIdx.x) * blockDim.x; first < n; first += int64_t(gridDim.x) * blockDim.x) {
    const int64_t i = first + threadIdx.x, at = point_of(i, n);
    const KeptColumn<T> kept = kept_rows ? kept_column(kept_rows, net.kept(), slot_of(i, n)) : KeptColumn<T>{nullptr};
    Column<T> in = shared_column<T>(0), out = shared_column<T>(rows);
    encode_inputs(net, inputs, at, in, kept);
    for (int l = 0; l < net.hidden(); ++l) {
      const int row = net.kept_hidden(l);
      multiply<false>(net.layer[l], net.layer[l].bias, net.width(l), net.used_inputs(l), in, [&](int j, T z) {
        out[j] = relu(z);
        if (kept.at) kept[row + j] = relu(z);
      });
      swap(in, out);
    }
    multiply<false>(net.output(), net.output().bias, kColors, net.output().inputs, in, [&](int c, T z) {
      const T color = color_of(z);
      if (kept.at) kept[net.kept_rgb() + c] = color;
      if (i < n) rgb[kColors * i + c] = color;
    });
  }
}

template <typename T>
TilePlan plan(const ColorNetwork<T>& network, int64_t n) {
  return plan_tiles<T>(color_network_kernel<T>, n, 2 * widest(network));
}

}  // namespace

template <typename T>
int64_t color_network_scratch(const ColorNetwork<T>& network, int64_t n, const ColorInputs<T>&, T*, T*) {
  return plan(network, n).scratch(0);
}

template <typename T>
void color_network(void* stream, const ColorNetwork<T>& network, int64_t n, const ColorInputs<T>& inputs, T* rgb,
                   T* kept, void*) {
  launch_tiles(stream, plan(network, n), color_network_kernel<T>, network, widest(network), n, inputs, rgb, kept);
}

#define NSR_INSTANTIATE(T)                                                                                        \
  template int64_t color_network_scratch<T>(const ColorNetwork<T>&, int64_t, const ColorInputs<T>&, T*, T*);      \
  template void color_network<T>(void*, const ColorNetwork<T>&, int64_t, const ColorInputs<T>&, T*, T*, void*);
NSR_INSTANTIATE(float)
NSR_INSTANTIATE(double)
#undef NSR_INSTANTIATE

}  // namespace nsr::cuda
