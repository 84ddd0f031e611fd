// The colour network on the CPU: the formulas of kernels/color_network.h on tiles of points, in their notation. Points
// do not depend on each other.
#include <cstring>

#include "../kernels/launch.h"
#include "color_network_tile.h"
#include "parallel.h"

namespace nsr::cpu {
namespace {

constexpr int64_t kGrain = 128;  // points below which a second thread costs more than it brings

// The harmonics of the way to the camera, from its three rows on.
template <typename T>
void harmonics_rows(int degree, Row<T>* rows) {
#pragma GCC ivdep
  for (int i = 0; i < kLanes; ++i)
    harmonics_beyond_direction(degree, rows[0][i], rows[1][i], rows[2][i], [&](int k, T value) { rows[k][i] = value; });
}

// a_0, and with kJacobian J.
template <bool kJacobian, typename T>
void encode_inputs(const ColorNetwork<T>& network, const ColorInputs<T>& inputs, int64_t start, int count,
                   const ColorRows<T>& rows) {
  Row<T>* const grid = rows.input + network.grid_at();
  Row<T>* const view = rows.input + network.view_at();
  load_columns(inputs.points + 3 * start, 3, count, rows.input);
  encode_tile<kJacobian, T>(network.grid, network.table, rows.input, grid, rows.jacobian);
  std::memset(grid + network.visible(), 0, sizeof(Row<T>) * (network.grid.outputs() - network.visible()));
  if (network.view_degree > 0) {
    load_columns(inputs.view_dirs + 3 * start, 3, count, view);
    for (int d = 0; d < 3; ++d)
      for_each_vector<T>([&](int lane) { store(view[d] + lane, -load(view[d] + lane)); });
    harmonics_rows<T>(network.view_degree, view);
  }
  if (network.with_normal) load_columns(inputs.normals + 3 * start, 3, count, rows.input + network.normal_at());
  load_columns(inputs.features + network.features * start, network.features, count, rows.input + network.feature_at());
}

template <typename T>
void shade(const ColorNetwork<T>& network, const ColorRows<T>& rows) {
  for (int l = 0; l < network.layers; ++l) {
    const DenseLayer<T>& layer = network.layer[l];
    Row<T>* const out = l < network.hidden() ? rows.hidden[l] : rows.rgb;
    multiply(forward_matrix(layer), layer.bias, layer.outputs, layer.inputs, rows.before(l), out);
    T* const z = out[0];
    if (l < network.hidden()) {
#pragma GCC ivdep
      for (int k = 0; k < layer.outputs * kLanes; ++k) z[k] = relu(z[k]);
    } else {
      for (int k = 0; k < layer.outputs * kLanes; ++k) z[k] = color_of(z[k]);
    }
  }
}

}  // namespace

template <typename T>
void color_network(const ColorNetwork<T>& network, int64_t n, const ColorInputs<T>& inputs, T* rgb, T* kept) {
  const int64_t tiles = (n + kLanes - 1) / kLanes;
  parallel_for(0, tiles, kGrain / kLanes, [&](int64_t first, int64_t last) {
    Rows<T> not_kept(kept ? 0 : network.kept());
    for (int64_t k = first; k < last; ++k) {
      const int64_t start = k * kLanes;
      const int count = int(n - start < kLanes ? n - start : kLanes);
      const ColorRows<T> rows(network, kept ? tile_of(kept, network, k) : not_kept.at(0));
      if (kept)
        encode_inputs<true>(network, inputs, start, count, rows);
      else
        encode_inputs<false>(network, inputs, start, count, rows);
      shade(network, rows);
      store_columns(rows.rgb, kColors, count, rgb + kColors * start);
    }
  });
}

#define NSR_INSTANTIATE(T) \
  template void color_network<T>(const ColorNetwork<T>&, int64_t, const ColorInputs<T>&, T*, T*);
NSR_INSTANTIATE(float)
NSR_INSTANTIATE(double)
#undef NSR_INSTANTIATE

}  // namespace nsr::cpu
