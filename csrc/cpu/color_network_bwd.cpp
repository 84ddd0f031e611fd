// The backward pass of the colour network on the CPU: the formulas of kernels/color_network.h on tiles of points, in
// their notation.
#include <algorithm>
#include <cstring>

#include "../kernels/launch.h"
#include "color_network_tile.h"
#include "hash_grid_backward.h"
#include "layer_gradients.h"

namespace nsr::cpu {
namespace {

// The cotangent of the way to the camera, in place of that of its harmonics; view: the way's three rows.
template <typename T>
void harmonics_rows_vjp(int degree, const Row<T>* view, Row<T>* grad) {
#pragma GCC ivdep
  for (int i = 0; i < kLanes; ++i) {
    const HarmonicsGradient<T> g =
        harmonics_vjp(degree, view[0][i], view[1][i], view[2][i], [&](int k) { return grad[k][i]; });
    grad[0][i] = g.x;
    grad[1][i] = g.y;
    grad[2][i] = g.z;
  }
}

template <typename T>
class BackwardTile {
 public:
  BackwardTile(const ColorNetwork<T>& network, LayerSums<T>& sums, const ColorGradients<T>& gradients)
      : network_(network),
        sums_(sums),
        gradients_(gradients),
        even_(kMaxNetworkWidth),
        odd_(kMaxNetworkWidth),
        grad_input_(network.inputs()) {}

  // Adds to the sums of the layers, writes the gradients of the inputs, and leaves the cotangent of the grid's active
  // levels in grad_grid unless null.
  void run(const ColorRows<T>& rows, const T* grad_rgb, int64_t tile, int64_t n, Row<T>* grad_grid) {
    const int64_t start = tile * kLanes;
    const int count = int(n - start < kLanes ? n - start : kLanes);
    sums_.enter(tile);
    through_color(rows, grad_rgb + kColors * start, count);
    through_layers(rows);
    if (!gradients_.any_input()) return;
    write_inputs(rows, start, count);
    if (grad_grid) std::memcpy(grad_grid, grad_input_.at(network_.grid_at()), sizeof(Row<T>) * network_.visible());
  }

 private:
  // dz of the output layer.
  void through_color(const ColorRows<T>& rows, const T* grad_rgb, int count) {
    Row<T>* const dz = even_.at(0);
    std::memset(dz, 0, sizeof(Row<T>) * kColors);
    for (int i = 0; i < count; ++i)
      for (int c = 0; c < kColors; ++c) {
        const T rgb = rows.rgb[c][i];
        dz[c][i] = T(2) * rgb * (T(1) - rgb) * grad_rgb[kColors * i + c];
      }
  }

  // From there to grad_input_.
  void through_layers(const ColorRows<T>& rows) {
    Row<T>* dz = even_.at(0);
    Row<T>* below = odd_.at(0);
    for (int l = network_.hidden(); l >= 0; --l) {
      const DenseLayer<T>& layer = network_.layer[l];
      sums_.add_weight(l, dz, rows.before(l));
      sums_.add_bias(l, dz);
      if (l > 0) {
        multiply<T>(backward_matrix(layer), nullptr, layer.inputs, layer.outputs, dz, below);
        through_relu(layer.inputs * kLanes, rows.hidden[l - 1][0], below[0]);
        std::swap(dz, below);
      } else if (gradients_.any_input()) {
        multiply<T>(backward_matrix(layer), nullptr, layer.inputs, layer.outputs, dz, grad_input_.at(0));
      }
    }
  }

  static void through_relu(int numbers, const T* value, T* grad) {
#pragma GCC ivdep
    for (int k = 0; k < numbers; ++k) grad[k] = value[k] <= T(0) ? T(0) : grad[k];
  }

  void write_inputs(const ColorRows<T>& rows, int64_t start, int count) {
    if (gradients_.points) {
      add_through_grid(rows);
      store_columns(grad_input_.at(0), 3, count, gradients_.points + 3 * start);
    }
    if (gradients_.view_dirs) {
      Row<T>* const grad = grad_input_.at(network_.view_at());
      harmonics_rows_vjp<T>(network_.view_degree, rows.input + network_.view_at(), grad);
      for (int d = 0; d < 3; ++d)
        for_each_vector<T>([&](int lane) { store(grad[d] + lane, -load(grad[d] + lane)); });
      store_columns(grad, 3, count, gradients_.view_dirs + 3 * start);
    }
    if (gradients_.normals)
      store_columns(grad_input_.at(network_.normal_at()), 3, count, gradients_.normals + 3 * start);
    if (gradients_.features)
      store_columns(grad_input_.at(network_.feature_at()), network_.features, count,
                    gradients_.features + network_.features * start);
  }

  // da_0[x] += J^T da_0[grid].
  void add_through_grid(const ColorRows<T>& rows) {
    const Row<T>* const grid = grad_input_.at(network_.grid_at());
    Row<T>* const grad = grad_input_.at(0);
    for_each_vector<T>([&](int lane) {
      Vector<T> sum[3];
      for (int d = 0; d < 3; ++d) sum[d] = load(grad[d] + lane);
      for (int k = 0; k < network_.visible(); ++k) {
        const Vector<T> a = load(grid[k] + lane);
        for (int d = 0; d < 3; ++d) sum[d] += a * load(rows.jacobian[3 * k + d] + lane);
      }
      for (int d = 0; d < 3; ++d) store(grad[d] + lane, sum[d]);
    });
  }

  const ColorNetwork<T>& network_;
  TileSums<T> sums_;
  const ColorGradients<T>& gradients_;
  Rows<T> even_, odd_, grad_input_;
};

// The cotangents of the grid's active outputs, rows of every tile; none of its Jacobian.
template <typename T>
class GridCotangents {
 public:
  static constexpr bool kJacobian = false;

  GridCotangents(int rows_per_tile, int64_t tiles) : rows_per_tile_(rows_per_tile), rows_(tiles * rows_per_tile) {}

  Row<T>* of_tile(int64_t tile) { return rows_.at(tile * rows_per_tile_); }

  template <int kChunk>
  void load(int64_t start, int, int k, TileCotangents<kChunk, kLanes, T>& to) const {
    std::memcpy(to.a, rows_.at(start / kLanes * rows_per_tile_) + k, sizeof(to.a));
  }

 private:
  int rows_per_tile_;
  Rows<T> rows_;
};

}  // namespace

template <typename T>
void color_network_bwd(const ColorNetwork<T>& network, int64_t n, int64_t entries, const T* points,
                       const T* kept_rows, const T* grad_rgb, const ColorGradients<T>& gradients) {
  T* const kept = const_cast<T*>(kept_rows);  // only read
  const int64_t tiles = (n + kLanes - 1) / kLanes;
  LayerSums<T> sums(summed_layers(network), gradients.layers.wanted() ? tiles : 0);
  GridCotangents<T> grid_cotangents(network.visible(), gradients.table ? tiles : 0);
  for_runs_of_chunks(tiles, [&](int64_t first, int64_t last) {
    BackwardTile<T> tile(network, sums, gradients);
    for (int64_t k = first; k < last; ++k)
      tile.run(ColorRows<T>(network, tile_of(kept, network, k)), grad_rgb, k, n,
               gradients.table ? grid_cotangents.of_tile(k) : nullptr);
  });
  if (gradients.layers.wanted()) {
    sums.add_chunks();
    write_layers(sums, network.layers, gradients.layers);
  }
  if (gradients.table) scatter_to_table<kLanes>(network.grid, n, entries, points, grid_cotangents, gradients.table);
}

#define NSR_INSTANTIATE(T)                                                                                       \
  template void color_network_bwd<T>(const ColorNetwork<T>&, int64_t, int64_t, const T*, const T*, const T*,     \
                                     const ColorGradients<T>&);
NSR_INSTANTIATE(float)
NSR_INSTANTIATE(double)
#undef NSR_INSTANTIATE

}  // namespace nsr::cpu
