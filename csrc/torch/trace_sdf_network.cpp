// trace_sdf_network: checks, allocation, dispatch. Schema in library.cpp, documentation in
// nsr/ops/trace_sdf_network.py.
#include <ATen/Dispatch.h>
#include <ATen/ops/empty.h>

#include <tuple>

#include "device.h"
#include "optional_tensor.h"
#include "sdf_network_arguments.h"

namespace nsr {
namespace {

std::tuple<Tensor, Tensor, Tensor> trace_sdf_network(
    const Tensor& origins, const Tensor& directions, const OptionalTensor& object_mask, const Tensor& table,
    IntArrayRef resolutions, IntArrayRef offsets, bool smoothstep, double extent, int64_t active_levels,
    const Tensor& parameters, IntArrayRef widths, int64_t activation, const OptionalTensor& bank, int64_t bank_width, bool bank_modulated,
    double bank_omega, double radius, int64_t max_iterations,
    int64_t line_search_steps, double threshold, double relaxation, double min_step, bool both_ends,
    int64_t sampler_steps, int64_t secant_steps, int64_t min_sdf_samples) {
  const char* op = "nsr::trace_sdf_network";
  check_points_and_table(origins, table, op);
  TORCH_CHECK(directions.sizes() == origins.sizes() && directions.scalar_type() == origins.scalar_type() &&
                  directions.device() == origins.device(),
              op, ": expected directions like origins, ", origins.sizes(), " ", origins.scalar_type(), "; got ",
              directions.sizes(), " ", directions.scalar_type());
  TORCH_CHECK(!object_mask || (object_mask->scalar_type() == at::kBool && object_mask->dim() == 1 &&
                               object_mask->size(0) == origins.size(0) && object_mask->device() == origins.device()),
              op, ": expected object_mask bool [", origins.size(0), "] on the device of the rays");
  TORCH_CHECK(sampler_steps != 1 && min_sdf_samples != 1, op, ": expected no samples or at least 2");
  const NetworkTensors network = check_network(table, resolutions, offsets, smoothstep, extent, active_levels, parameters,
                                               widths, activation, {bank, bank_width, bank_modulated, bank_omega}, op);
  const TracePlan plan{{int32_t(max_iterations), int32_t(line_search_steps), threshold, relaxation, min_step},
                       radius,
                       both_ends,
                       object_mask.has_value(),
                       int32_t(sampler_steps),
                       int32_t(secant_steps),
                       int32_t(min_sdf_samples)};
  const int64_t rays = origins.size(0);
  const Tensor from = origins.contiguous(), along = directions.contiguous();
  const Tensor mask = object_mask ? object_mask->contiguous() : Tensor();
  const Tensor distance = at::empty({rays}, origins.options());
  const Tensor hit = at::empty({rays}, origins.options().dtype(at::kBool));
  const Tensor evaluations = at::empty({rays}, origins.options().dtype(at::kInt));
  AT_DISPATCH_FLOATING_TYPES(origins.scalar_type(), "trace_sdf_network", [&] {
    NSR_LAUNCH_WITH_SCRATCH(origins, trace_sdf_network, network.describe<scalar_t>(), plan, rays, from.const_data_ptr<scalar_t>(),
                           along.const_data_ptr<scalar_t>(), mask.defined() ? mask.const_data_ptr<bool>() : nullptr,
                           distance.mutable_data_ptr<scalar_t>(), hit.mutable_data_ptr<bool>(),
                           evaluations.mutable_data_ptr<int32_t>());
  });
  return {distance, hit, evaluations};
}

}  // namespace

NSR_REGISTER(m) { m.impl("trace_sdf_network", &trace_sdf_network); }

}  // namespace nsr
