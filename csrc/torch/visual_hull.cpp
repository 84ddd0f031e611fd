// visual_hull: checks, allocation, dispatch. Schema in library.cpp, documentation in nsr/ops/visual_hull.py.
#include <ATen/Dispatch.h>
#include <ATen/ops/empty.h>

#include "device.h"

namespace nsr {
namespace {

using at::IntArrayRef;
using at::Tensor;

void check_like_projections(const Tensor& tensor, const Tensor& projections, IntArrayRef shape, const char* name) {
  TORCH_CHECK(tensor.sizes() == shape && tensor.scalar_type() == projections.scalar_type() &&
                  tensor.device() == projections.device(),
              "nsr::visual_hull: expected ", name, " of shape ", shape, ", dtype ", projections.scalar_type(), " on ",
              projections.device(), ", as projections; got ", tensor.sizes(), ", ", tensor.scalar_type(), " on ",
              tensor.device());
}

Tensor visual_hull(const Tensor& masks, const Tensor& projections, const Tensor& focals, const Tensor& axis, double reach,
                   int64_t min_views, int64_t max_misses) {
  TORCH_CHECK(masks.dim() == 3 && masks.scalar_type() == at::kBool, "nsr::visual_hull: expected masks bool [V, H, W], got ",
              masks.scalar_type(), " ", masks.sizes());
  const int64_t views = masks.size(0), height = masks.size(1), width = masks.size(2), resolution = axis.numel();
  TORCH_CHECK(height >= 1 && height < kFarRows && width >= 1 && width < kFarRows,
              "nsr::visual_hull: expected masks of 1 to ", kFarRows - 1, " rows and columns, got ", height, " and ", width);
  check_like_projections(projections, projections, {views, 3, 4}, "projections");
  check_like_projections(focals, projections, {views}, "focals");
  check_like_projections(axis, projections, {resolution}, "axis");
  TORCH_CHECK(masks.device() == projections.device(), "nsr::visual_hull: expected masks on ", projections.device(),
              ", as projections; got ", masks.device());
  TORCH_CHECK(reach >= 0, "nsr::visual_hull: expected reach >= 0, got ", reach);
  TORCH_CHECK(max_misses >= 0, "nsr::visual_hull: expected max_misses >= 0, got ", max_misses);

  const Tensor masks_ = masks.contiguous(), projections_ = projections.contiguous();
  const Tensor focals_ = focals.contiguous(), axis_ = axis.contiguous();
  const Tensor columns = at::empty(masks.sizes(), masks.options().dtype(at::kShort));
  const Tensor occupied = at::empty({resolution, resolution, resolution}, masks.options());
  NSR_LAUNCH(masks, visual_hull_columns, views, int32_t(height), int32_t(width), masks_.const_data_ptr<bool>(),
             columns.mutable_data_ptr<int16_t>());
  const HullRules rules{reach, min_views, max_misses};
  AT_DISPATCH_FLOATING_TYPES(projections.scalar_type(), "visual_hull", [&] {
    const HullViews<scalar_t> hull_views{columns.const_data_ptr<int16_t>(),
                                         projections_.const_data_ptr<scalar_t>(),
                                         focals_.const_data_ptr<scalar_t>(),
                                         views,
                                         int32_t(height),
                                         int32_t(width)};
    NSR_LAUNCH(masks, visual_hull, hull_views, rules, resolution, axis_.const_data_ptr<scalar_t>(),
               occupied.mutable_data_ptr<bool>());
  });
  return occupied;
}

}  // namespace

NSR_REGISTER(m) { m.impl("visual_hull", &visual_hull); }

}  // namespace nsr
