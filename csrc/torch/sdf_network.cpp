// sdf_network, sdf_and_normal and its derivative: checks, allocation, dispatch. Schemas in library.cpp, documentation
// in nsr/ops/sdf_network.py.
#include <ATen/Dispatch.h>
#include <ATen/ops/empty.h>

#include <tuple>

#include "device.h"
#include "sdf_network_arguments.h"

namespace nsr {
namespace {

Tensor sdf_network(const Tensor& x, const Tensor& table, IntArrayRef resolutions, IntArrayRef offsets, bool smoothstep,
                   double extent, int64_t active_levels, const Tensor& parameters, IntArrayRef widths,
                   int64_t activation, const OptionalTensor& bank, int64_t bank_width, bool bank_modulated, double bank_omega) {
  const char* op = "nsr::sdf_network";
  check_points_and_table(x, table, op);
  const NetworkTensors network = check_network(table, resolutions, offsets, smoothstep, extent, active_levels, parameters,
                                               widths, activation, {bank, bank_width, bank_modulated, bank_omega}, op);
  const Tensor sdf = at::empty({x.size(0)}, x.options()), points = x.contiguous();
  AT_DISPATCH_FLOATING_TYPES(x.scalar_type(), "sdf_network", [&] {
    NSR_LAUNCH_WITH_SCRATCH(x, sdf_network, network.describe<scalar_t>(), x.size(0), points.const_data_ptr<scalar_t>(),
                     sdf.mutable_data_ptr<scalar_t>());
  });
  return sdf;
}

int64_t tiles_of(const Tensor& x) { return (x.size(0) + kLanes - 1) / kLanes; }

std::tuple<Tensor, Tensor, Tensor, Tensor> sdf_and_normal(const Tensor& x, const Tensor& table, IntArrayRef resolutions,
                                                          IntArrayRef offsets, bool smoothstep, double extent,
                                                          int64_t active_levels, const Tensor& parameters,
                                                          IntArrayRef widths, int64_t activation,
                                                          const OptionalTensor& bank, int64_t bank_width, bool bank_modulated,
                                                          double bank_omega, bool keep) {
  const char* op = "nsr::sdf_and_normal";
  check_points_and_table(x, table, op);
  const NetworkTensors network = check_network(table, resolutions, offsets, smoothstep, extent, active_levels, parameters,
                                               widths, activation, {bank, bank_width, bank_modulated, bank_omega}, op);
  const int64_t n = x.size(0);
  const Tensor sdf = at::empty({n}, x.options()), gradient = at::empty({n, 3}, x.options()), points = x.contiguous();
  const Tensor feature = at::empty({n, network.features()}, x.options());
  Tensor kept;
  AT_DISPATCH_FLOATING_TYPES(x.scalar_type(), "sdf_and_normal", [&] {
    const SdfNetwork<scalar_t> description = network.describe<scalar_t>();
    kept = at::empty({keep ? tiles_of(x) : 0, description.kept(), kLanes}, x.options());
    NSR_LAUNCH_WITH_SCRATCH(x, sdf_and_normal, description, n, points.const_data_ptr<scalar_t>(), sdf.mutable_data_ptr<scalar_t>(),
                        feature.mutable_data_ptr<scalar_t>(), gradient.mutable_data_ptr<scalar_t>(),
                        keep ? kept.mutable_data_ptr<scalar_t>() : nullptr);
  });
  return {sdf, feature, gradient, kept};
}

OptionalTensor check_cotangent(const OptionalTensor& grad, const Tensor& x, IntArrayRef shape, const char* name) {
  if (!grad) return std::nullopt;
  TORCH_CHECK(grad->sizes() == shape && grad->scalar_type() == x.scalar_type() && grad->device() == x.device(),
              "nsr::sdf_and_normal_bwd: expected ", name, " of shape ", shape, " with the dtype and device of x, got ",
              grad->sizes(), ", ", grad->scalar_type(), ", ", grad->device());
  return grad->contiguous();
}

std::tuple<Tensor, Tensor, Tensor, Tensor> sdf_and_normal_bwd(
    const OptionalTensor& grad_sdf, const OptionalTensor& grad_feature, const OptionalTensor& grad_gradient,
    const Tensor& kept, const Tensor& x, const Tensor& table, IntArrayRef resolutions, IntArrayRef offsets,
    bool smoothstep, double extent, int64_t active_levels, const Tensor& parameters, IntArrayRef widths,
    int64_t activation, const OptionalTensor& bank, int64_t bank_width, bool bank_modulated, double bank_omega, bool need_x, bool need_table,
    bool need_parameters, bool need_bank) {
  const char* op = "nsr::sdf_and_normal_bwd";
  check_points_and_table(x, table, op);
  const NetworkTensors network = check_network(table, resolutions, offsets, smoothstep, extent, active_levels, parameters,
                                               widths, activation, {bank, bank_width, bank_modulated, bank_omega}, op);
  const int64_t n = x.size(0);
  const OptionalTensor of_sdf = check_cotangent(grad_sdf, x, {n}, "grad_sdf");
  const OptionalTensor of_feature = check_cotangent(grad_feature, x, {n, network.features()}, "grad_feature");
  const OptionalTensor of_gradient = check_cotangent(grad_gradient, x, {n, 3}, "grad_gradient");
  const Tensor points = x.contiguous();
  const Tensor grad_x = empty_if(x, need_x), grad_table = empty_if(table, need_table);
  const Tensor grad_parameters = empty_if(parameters, need_parameters);
  const Tensor grad_bank = empty_if(bank ? *bank : parameters, need_bank && bank);
  AT_DISPATCH_FLOATING_TYPES(x.scalar_type(), "sdf_and_normal_bwd", [&] {
    const SdfNetwork<scalar_t> description = network.describe<scalar_t>();
    TORCH_CHECK(kept.sizes() == IntArrayRef({tiles_of(x), description.kept(), kLanes}) &&
                    kept.scalar_type() == x.scalar_type() && kept.is_contiguous(),
                op, ": expected kept as sdf_and_normal(..., keep=True) returns it for these points, [", tiles_of(x),
                ", ", description.kept(), ", ", int64_t(kLanes), "]; got ", kept.sizes());
    SdfGradients<scalar_t> gradients{};
    gradients.x = pointer_if<scalar_t>(grad_x, need_x);
    gradients.table = pointer_if<scalar_t>(grad_table, need_table);
    if (need_parameters) gradients.layers = network.layers.gradients_in<scalar_t>(grad_parameters);
    gradients.bank = pointer_if<scalar_t>(grad_bank, need_bank && bank);
    const SdfCotangents<scalar_t> cotangents{pointer_or_null<scalar_t>(of_sdf), pointer_or_null<scalar_t>(of_feature),
                                             pointer_or_null<scalar_t>(of_gradient)};
    NSR_LAUNCH_WITH_SCRATCH(x, sdf_and_normal_bwd, description, n, table.size(0), points.const_data_ptr<scalar_t>(),
                            kept.const_data_ptr<scalar_t>(), cotangents, gradients);
  });
  return {grad_x, grad_table, grad_parameters, grad_bank};
}

}  // namespace

NSR_REGISTER(m) {
  m.impl("sdf_network", &sdf_network);
  m.impl("sdf_and_normal", &sdf_and_normal);
  m.impl("sdf_and_normal_bwd", &sdf_and_normal_bwd);
}

}  // namespace nsr
