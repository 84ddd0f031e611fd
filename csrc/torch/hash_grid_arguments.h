// The arguments of a hash grid, as every op on one takes them: checks, and the description that kernels/ works with.
#pragma once

#include <ATen/Context.h>
#include <ATen/core/Tensor.h>

#include "../kernels/hash_grid.h"

namespace nsr {

using at::IntArrayRef;
using at::Tensor;

// half_fits: whether a table of half precision may stand beside points in float.
inline void check_points_and_table(const Tensor& x, const Tensor& table, const char* op, bool half_fits = false) {
  TORCH_CHECK(x.dim() == 2 && x.size(1) == 3, op, ": expected x [N, 3], got ", x.sizes());
  TORCH_CHECK(table.dim() == 2, op, ": expected table [T, F], got ", table.sizes());
  const bool half = half_fits && x.scalar_type() == at::kFloat && table.scalar_type() == at::kHalf;
  TORCH_CHECK(half || x.scalar_type() == table.scalar_type(), op, ": expected x and table of one dtype, got ",
              x.scalar_type(), " and ", table.scalar_type());
  TORCH_CHECK(x.device() == table.device(), op, ": expected x and table on one device, got ", x.device(), " and ",
              table.device());
}

// Contiguous and aligned, so that the features of an entry can be read with one instruction on a GPU.
inline Tensor contiguous_table(const Tensor& table) {
  const Tensor entries = table.contiguous();
  return reinterpret_cast<uintptr_t>(entries.const_data_ptr()) % 16 == 0 ? entries : entries.clone();
}

inline HashGrid make_grid(const Tensor& table, IntArrayRef resolutions, IntArrayRef offsets, bool smoothstep,
                          double extent, int64_t active, const char* op) {
  const int64_t levels = int64_t(resolutions.size());
  TORCH_CHECK(levels >= 1 && levels <= kMaxGridLevels, op, ": expected 1 to ", kMaxGridLevels, " levels, got ", levels);
  TORCH_CHECK(int64_t(offsets.size()) == levels + 1, op, ": expected ", levels + 1, " offsets, got ", offsets.size());
  TORCH_CHECK(extent > 0, op, ": expected an extent > 0, got ", extent);
  TORCH_CHECK(active >= 0 && active <= levels, op, ": expected active_levels in [0, ", levels, "], got ", active);
  TORCH_CHECK(offsets[0] == 0 && offsets[levels] == table.size(0), op, ": expected offsets from 0 to the ",
              table.size(0), " entries of the table, got ", offsets);
  HashGrid grid;
  grid.levels = int32_t(levels);
  grid.active_levels = int32_t(active);
  grid.features = int32_t(table.size(1));
  grid.smoothstep = smoothstep;
  grid.deterministic = at::globalContext().deterministicAlgorithms();
  grid.inverse_extent = 1.0 / extent;
  for (int64_t l = 0; l < levels; ++l) {
    const int64_t entries = offsets[l + 1] - offsets[l];
    TORCH_CHECK(entries > 0 && entries <= (int64_t(1) << 30) && resolutions[l] >= 1 && resolutions[l] < (1 << 20), op,
                ": level ", l, " has ", entries, " entries and resolution ", resolutions[l]);
    grid.level[l] = make_grid_level(offsets[l], entries, int32_t(resolutions[l]));
    TORCH_CHECK(!grid.level[l].hashed || (entries & (entries - 1)) == 0, op, ": level ", l,
                " is hashed, so its number of entries must be a power of two, got ", entries);
  }
  return grid;
}

}  // namespace nsr
