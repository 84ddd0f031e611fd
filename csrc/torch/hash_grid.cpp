// hash_grid and its derivatives: checks, allocation, dispatch. Schemas in library.cpp, documentation in
// nsr/ops/hash_grid.py.
#include <ATen/Dispatch.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>

#include <tuple>
#include <type_traits>

#include "device.h"
#include "hash_grid_arguments.h"
#include "optional_tensor.h"

namespace nsr {
namespace {

void check_like(const OptionalTensor& value, const Tensor& like, IntArrayRef shape, const char* name, const char* op) {
  if (!value) return;
  TORCH_CHECK(value->sizes() == shape, op, ": expected ", name, " of shape ", shape, ", got ", value->sizes());
  TORCH_CHECK(value->scalar_type() == like.scalar_type() && value->device() == like.device(), op, ": expected ", name,
              " in ", like.scalar_type(), " on ", like.device(), ", got ", value->scalar_type(), " on ",
              value->device());
}

// Calls fn(entries) with a pointer to what the table stores: numbers in T, or in half precision where T is float.
template <typename T, typename Fn>
void with_entries(const Tensor& table, const Fn& fn) {
  if constexpr (std::is_same_v<T, float>)
    if (table.scalar_type() == at::kHalf) return fn(reinterpret_cast<const Half*>(table.const_data_ptr<at::Half>()));
  fn(table.const_data_ptr<T>());
}

OptionalTensor contiguous(const OptionalTensor& tensor) {
  return tensor ? OptionalTensor(tensor->contiguous()) : std::nullopt;
}

Tensor encode(const HashGrid& grid, const Tensor& x, const Tensor& table, Tensor* jacobian) {
  const Tensor h = at::empty({x.size(0), grid.outputs()}, x.options());
  if (jacobian) *jacobian = at::empty({x.size(0), grid.outputs(), 3}, x.options());
  const Tensor points = x.contiguous(), entries = contiguous_table(table);
  AT_DISPATCH_FLOATING_TYPES(x.scalar_type(), "hash_grid", [&] {
    with_entries<scalar_t>(entries, [&](const auto* entry) {
      NSR_LAUNCH(x, hash_grid_encode, grid, x.size(0), points.const_data_ptr<scalar_t>(), entry,
                 h.mutable_data_ptr<scalar_t>(), jacobian ? jacobian->mutable_data_ptr<scalar_t>() : nullptr);
    });
  });
  return h;
}

Tensor contract(const HashGrid& grid, const Tensor& x, const Tensor& table, const OptionalTensor& grad_h,
                const OptionalTensor& grad_jacobian) {
  const Tensor grad_x = at::empty(x.sizes(), x.options());
  const Tensor points = x.contiguous(), entries = contiguous_table(table);
  const OptionalTensor a = contiguous(grad_h), b = contiguous(grad_jacobian);
  AT_DISPATCH_FLOATING_TYPES(x.scalar_type(), "hash_grid_contract", [&] {
    with_entries<scalar_t>(entries, [&](const auto* entry) {
      NSR_LAUNCH(x, hash_grid_contract, grid, x.size(0), points.const_data_ptr<scalar_t>(), entry,
                 pointer_or_null<scalar_t>(a), pointer_or_null<scalar_t>(b), grad_x.mutable_data_ptr<scalar_t>());
    });
  });
  return grad_x;
}

// In the dtype of the table; added up in that of x, which has the range that many small addends need.
Tensor scatter(const HashGrid& grid, const Tensor& x, const Tensor& table, const OptionalTensor& grad_h,
               const OptionalTensor& grad_jacobian) {
  const Tensor grad_table = at::empty(table.sizes(), x.options());
  const Tensor points = x.contiguous();
  const OptionalTensor a = contiguous(grad_h), b = contiguous(grad_jacobian);
  AT_DISPATCH_FLOATING_TYPES(x.scalar_type(), "hash_grid_scatter", [&] {
    NSR_LAUNCH_WITH_SCRATCH(x, hash_grid_scatter, grid, x.size(0), table.size(0), points.const_data_ptr<scalar_t>(),
               pointer_or_null<scalar_t>(a), pointer_or_null<scalar_t>(b), grad_table.mutable_data_ptr<scalar_t>());
  });
  return grad_table.to(table.scalar_type());
}

Tensor none(const Tensor& x) { return at::empty({0}, x.options()); }

Tensor hash_grid(const Tensor& x, const Tensor& table, IntArrayRef resolutions, IntArrayRef offsets, bool smoothstep,
                 double extent, int64_t active_levels) {
  check_points_and_table(x, table, "nsr::hash_grid", true);
  const HashGrid grid = make_grid(table, resolutions, offsets, smoothstep, extent, active_levels, "nsr::hash_grid");
  return encode(grid, x, table, nullptr);
}

std::tuple<Tensor, Tensor> hash_grid_jac(const Tensor& x, const Tensor& table, IntArrayRef resolutions,
                                         IntArrayRef offsets, bool smoothstep, double extent, int64_t active_levels) {
  check_points_and_table(x, table, "nsr::hash_grid_jac", true);
  const HashGrid grid = make_grid(table, resolutions, offsets, smoothstep, extent, active_levels, "nsr::hash_grid_jac");
  Tensor jacobian;
  const Tensor h = encode(grid, x, table, &jacobian);
  return {h, jacobian};
}

std::tuple<Tensor, Tensor> hash_grid_jac_bwd(const OptionalTensor& grad_h, const OptionalTensor& grad_jacobian,
                                             const Tensor& x, const Tensor& table, IntArrayRef resolutions,
                                             IntArrayRef offsets, bool smoothstep, double extent, int64_t active_levels,
                                             bool need_x, bool need_table) {
  const char* op = "nsr::hash_grid_jac_bwd";
  check_points_and_table(x, table, op, true);
  const HashGrid grid = make_grid(table, resolutions, offsets, smoothstep, extent, active_levels, op);
  check_like(grad_h, x, {x.size(0), grid.outputs()}, "grad_h", op);
  check_like(grad_jacobian, x, {x.size(0), grid.outputs(), 3}, "grad_jacobian", op);
  return {need_x ? contract(grid, x, table, grad_h, grad_jacobian) : none(x),
          need_table ? scatter(grid, x, table, grad_h, grad_jacobian) : none(x)};
}

std::tuple<Tensor, Tensor> hash_grid_bwd(const Tensor& grad_h, const Tensor& x, const Tensor& table,
                                         IntArrayRef resolutions, IntArrayRef offsets, bool smoothstep, double extent,
                                         int64_t active_levels, bool need_x, bool need_table) {
  return hash_grid_jac_bwd(grad_h, std::nullopt, x, table, resolutions, offsets, smoothstep, extent, active_levels,
                           need_x, need_table);
}

// The double backward differentiates  S = grad_grad_x . (J^T grad_h) + grad_grad_table . scatter(grad_h),
// which in the maps of kernels/hash_grid.h is, with B = grad_h (x) grad_grad_x,
//   dS/dgrad_h = J(table) grad_grad_x + h(grad_grad_table)
//   dS/dx      = contract(table; 0, B) + contract(grad_grad_table; grad_h, 0)
//   dS/dtable  = scatter(0, B).
std::tuple<Tensor, Tensor, Tensor> hash_grid_bwd_bwd(const OptionalTensor& grad_grad_x,
                                                     const OptionalTensor& grad_grad_table, const Tensor& grad_h,
                                                     const Tensor& x, const Tensor& table, IntArrayRef resolutions,
                                                     IntArrayRef offsets, bool smoothstep, double extent,
                                                     int64_t active_levels) {
  const char* op = "nsr::hash_grid_bwd_bwd";
  check_points_and_table(x, table, op, true);
  const HashGrid grid = make_grid(table, resolutions, offsets, smoothstep, extent, active_levels, op);
  check_like(grad_h, x, {x.size(0), grid.outputs()}, "grad_h", op);
  check_like(grad_grad_x, x, x.sizes(), "grad_grad_x", op);
  check_like(grad_grad_table, table, table.sizes(), "grad_grad_table", op);
  Tensor grad_grad_h = at::zeros(grad_h.sizes(), x.options());
  Tensor grad_x = at::zeros(x.sizes(), x.options());
  Tensor grad_table = grad_grad_x ? Tensor() : at::zeros(table.sizes(), table.options());
  if (grad_grad_x) {
    Tensor jacobian;
    encode(grid, x, table, &jacobian);
    grad_grad_h.add_(jacobian.mul(grad_grad_x->unsqueeze(1)).sum(-1));
    const Tensor b = grad_h.unsqueeze(-1).mul(grad_grad_x->unsqueeze(1));
    grad_x.add_(contract(grid, x, table, std::nullopt, b));
    grad_table = scatter(grid, x, table, std::nullopt, b);
  }
  if (grad_grad_table) {
    grad_grad_h.add_(encode(grid, x, *grad_grad_table, nullptr));
    grad_x.add_(contract(grid, x, *grad_grad_table, grad_h, std::nullopt));
  }
  return {grad_grad_h, grad_x, grad_table};
}

}  // namespace

NSR_REGISTER(m) {
  m.impl("hash_grid", &hash_grid);
  m.impl("hash_grid_bwd", &hash_grid_bwd);
  m.impl("hash_grid_bwd_bwd", &hash_grid_bwd_bwd);
  m.impl("hash_grid_jac", &hash_grid_jac);
  m.impl("hash_grid_jac_bwd", &hash_grid_jac_bwd);
}

}  // namespace nsr
