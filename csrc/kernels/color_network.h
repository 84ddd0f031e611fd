// A colour network: what a surface point looks like from a direction v (Yariv et al. 2020, eq. 5), by hash grid,
// spherical harmonics Y of the way to the camera, and dense layers with ReLU between them,
//     a_0 = (x, grid(x), Y(-v), normal, feature),   z_l = W_l a_{l-1} + b_l,   a_l = max(z_l, 0),
//     rgb = (tanh(W_out a_L + b_out) + 1) / 2.
// Backwards, with z the argument of tanh, dz = 2 rgb (1 - rgb) drgb, dz_l = [a_l > 0] W_{l+1}^T dz_{l+1}, and from
// da_0 = W_1^T dz_1, block by block,
//     dx = da_0[x] + J^T da_0[grid] with J = dgrid/dx,   dv = -(dY/d(-v))^T da_0[Y],
// and a scatter of da_0[grid] into the table.
#pragma once

#include <cmath>
#include <cstdint>

#include "dense_layers.h"
#include "hash_grid.h"
#include "spherical_harmonics.h"

namespace nsr {

constexpr int kColors = 3;

// (tanh(z) + 1) / 2, which is the logistic function of 2 z. No overflow: exp(inf) gives 0.
template <typename T>
NSR_HD T color_of(T z) {
  return T(1) / (T(1) + std::exp(T(-2) * z));
}

// max(z, 0); NaN stays NaN.
template <typename T>
NSR_HD T relu(T z) {
  return z < T(0) ? T(0) : z;
}

template <typename T>
struct ColorNetwork : DenseLayers<T> {
  HashGrid grid;
  const T* table;
  int32_t view_degree;  // of the harmonics; 1: the direction alone, 0: the colour does not depend on it
  bool with_normal;
  int32_t features;

  // The first numbers of the blocks of a_0. Levels that are not active are zeros.
  NSR_HD int grid_at() const { return 3; }
  NSR_HD int view_at() const { return 3 + int(grid.outputs()); }
  NSR_HD int normal_at() const { return view_at() + harmonics_count(view_degree); }
  NSR_HD int feature_at() const { return normal_at() + (with_normal ? 3 : 0); }
  NSR_HD int inputs() const { return feature_at() + features; }
  // Outputs of the grid that are not always zero.
  NSR_HD int visible() const { return grid.active_levels * grid.features; }

  // The numbers per point that the forward pass keeps for its backward pass, and their places: a_0, the rows of J
  // (3 k + d is d h_k / d x_d, of active levels), a_l of every hidden layer, rgb.
  NSR_HD int kept_jacobian() const { return inputs(); }
  NSR_HD int kept_hidden(int l) const { return kept_jacobian() + 3 * visible() + this->widths_before(l); }
  NSR_HD int kept_rgb() const { return kept_hidden(this->hidden()); }
  NSR_HD int kept() const { return kept_rgb() + kColors; }
};

// points, normals and view directions (from the camera) [n, 3], features [n, features]. Normals and directions are null
// where the network does not take them.
template <typename T>
struct ColorInputs {
  const T* points;
  const T* normals;
  const T* view_dirs;
  const T* features;
};

// Where the backward pass writes, in the shapes of the inputs and parameters; a null pointer: not wanted.
template <typename T>
struct ColorGradients {
  T* points;
  T* normals;
  T* view_dirs;
  T* features;
  T* table;
  LayerGradients<T> layers;

  NSR_HD bool any_input() const { return points || normals || view_dirs || features || table; }
};

}  // namespace nsr
