// patch_ncc and its derivative: checks, allocation, dispatch. Schemas in library.cpp, documentation in
// nsr/ops/patch_ncc.py.
#include <ATen/Dispatch.h>
#include <ATen/ops/empty.h>

#include <limits>
#include <tuple>

#include "device.h"

namespace nsr {
namespace {

using at::IntArrayRef;
using at::Tensor;

void check_shape(const Tensor& tensor, IntArrayRef shape, const char* name) {
  TORCH_CHECK(tensor.sizes() == shape, "nsr::patch_ncc: expected ", name, " of shape ", shape, ", got ", tensor.sizes());
}

void check_like_x(const Tensor& tensor, const Tensor& x, IntArrayRef shape, const char* name) {
  check_shape(tensor, shape, name);
  TORCH_CHECK(tensor.scalar_type() == x.scalar_type() && tensor.device() == x.device(), "nsr::patch_ncc: expected ",
              name, " with the dtype and device of x, ", x.scalar_type(), " on ", x.device(), "; got ",
              tensor.scalar_type(), " on ", tensor.device());
}

void check_indices(const Tensor& tensor, const Tensor& x, IntArrayRef shape, const char* name) {
  check_shape(tensor, shape, name);
  TORCH_CHECK(tensor.scalar_type() == at::kLong && tensor.device() == x.device(), "nsr::patch_ncc: expected ", name,
              " of dtype Long on the device of x, ", x.device(), "; got ", tensor.scalar_type(), " on ",
              tensor.device());
}

void check_images(const Tensor& images, const Tensor& ray_matrices, const Tensor& projections, const Tensor& centers,
                  const Tensor& x) {
  TORCH_CHECK(images.dim() == 3 && images.size(1) >= 2 && images.size(2) >= 2 &&
                  images.size(1) * images.size(2) <= std::numeric_limits<int32_t>::max(),
              "nsr::patch_ncc: expected images [V, H, W] of 2 x 2 to 2^31 pixels, got ", images.sizes());
  const int64_t views = images.size(0);
  check_like_x(images, x, images.sizes(), "images");
  check_like_x(ray_matrices, x, {views, 3, 3}, "ray_matrices");
  check_like_x(projections, x, {views, 3, 3}, "projections");
  check_like_x(centers, x, {views, 3}, "centers");
}

std::tuple<Tensor, Tensor, Tensor, Tensor> patch_ncc(const Tensor& x, const Tensor& normal, const Tensor& pixels,
                                                     const Tensor& view, const Tensor& sources, const Tensor& images,
                                                     const Tensor& ray_matrices, const Tensor& projections,
                                                     const Tensor& centers, int64_t patch, double variance_floor,
                                                     double min_std, bool keep) {
  const int64_t n = x.size(0);
  check_shape(x, {n, 3}, "x");
  check_like_x(normal, x, {n, 3}, "normal");
  check_like_x(pixels, x, {n, 2}, "pixels");
  check_indices(view, x, {n}, "view");
  TORCH_CHECK(sources.dim() == 2, "nsr::patch_ncc: expected sources [N, K], got ", sources.sizes());
  check_indices(sources, x, {n, sources.size(1)}, "sources");
  check_images(images, ray_matrices, projections, centers, x);
  TORCH_CHECK(patch >= 3 && patch <= kMaxPatch && patch % 2 == 1, "nsr::patch_ncc: expected patch odd, 3 to ", kMaxPatch,
              ", got ", patch);
  TORCH_CHECK(variance_floor > 0 && min_std >= 0, "nsr::patch_ncc: expected variance_floor > 0 and min_std >= 0, got ",
              variance_floor, " and ", min_std);

  const int64_t k = sources.size(1);
  const Tensor ncc = at::empty({n, k}, x.options()), valid = at::empty({n, k}, x.options().dtype(at::kBool));
  const Tensor jacobian_x = at::empty({keep ? n : 0, k, 3}, x.options());
  const Tensor jacobian_normal = at::empty(jacobian_x.sizes(), x.options());
  const Tensor x_ = x.contiguous(), normal_ = normal.contiguous(), pixels_ = pixels.contiguous();
  const Tensor view_ = view.contiguous(), sources_ = sources.contiguous(), images_ = images.contiguous();
  const Tensor rays_ = ray_matrices.contiguous(), projections_ = projections.contiguous();
  const Tensor centers_ = centers.contiguous();
  const PatchOptions options{int32_t(patch), variance_floor, min_std};
  AT_DISPATCH_FLOATING_TYPES(x.scalar_type(), "patch_ncc", [&] {
    const PatchImages<scalar_t> views{images_.const_data_ptr<scalar_t>(),      rays_.const_data_ptr<scalar_t>(),
                                      projections_.const_data_ptr<scalar_t>(), centers_.const_data_ptr<scalar_t>(),
                                      images.size(0),                          int32_t(images.size(1)),
                                      int32_t(images.size(2))};
    NSR_LAUNCH(x, patch_ncc, views, options, n, k, x_.const_data_ptr<scalar_t>(), normal_.const_data_ptr<scalar_t>(),
               pixels_.const_data_ptr<scalar_t>(), view_.const_data_ptr<int64_t>(), sources_.const_data_ptr<int64_t>(),
               ncc.mutable_data_ptr<scalar_t>(), valid.mutable_data_ptr<bool>(),
               keep ? jacobian_x.mutable_data_ptr<scalar_t>() : nullptr,
               keep ? jacobian_normal.mutable_data_ptr<scalar_t>() : nullptr);
  });
  return {ncc, valid, jacobian_x, jacobian_normal};
}

// x and normal take no part in the arithmetic: with them the graph knows that the result depends on both, and its
// derivative raises instead of being dropped.
std::tuple<Tensor, Tensor> patch_ncc_bwd(const Tensor& grad_ncc, const Tensor& x, const Tensor& normal,
                                         const Tensor& jacobian_x, const Tensor& jacobian_normal) {
  const Tensor weights = grad_ncc.unsqueeze(-1);
  return {jacobian_x.mul(weights).sum(1), jacobian_normal.mul(weights).sum(1)};
}

}  // namespace

NSR_REGISTER(m) {
  m.impl("patch_ncc", &patch_ncc);
  m.impl("patch_ncc_bwd", &patch_ncc_bwd);
}

}  // namespace nsr
