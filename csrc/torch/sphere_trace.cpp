// The wavefront tracer: checks, allocation, dispatch, compaction. Schemas in library.cpp, use in
// nsr/ops/sphere_trace.py.
#include <ATen/Dispatch.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/masked_select.h>

#include <tuple>

#include "device.h"
#include "optional_tensor.h"

namespace nsr {
namespace {

using at::IntArrayRef;
using at::Tensor;

void check(const Tensor& tensor, at::ScalarType dtype, IntArrayRef shape, const Tensor& like, const char* name,
           const char* op) {
  TORCH_CHECK(tensor.scalar_type() == dtype && tensor.sizes() == shape && tensor.device() == like.device() &&
                  tensor.is_contiguous(),
              "nsr::", op, ": expected ", name, " contiguous, ", shape, ", ", dtype, ", on ", like.device(), "; got ",
              tensor.sizes(), ", ", tensor.scalar_type(), ", on ", tensor.device());
}

int64_t check_rays(const Tensor& origins, const Tensor& directions, const char* op) {
  TORCH_CHECK(origins.dim() == 2 && origins.size(1) == 3, "nsr::", op, ": expected origins [N, 3], got ",
              origins.sizes());
  check(origins, origins.scalar_type(), origins.sizes(), origins, "origins", op);
  check(directions, origins.scalar_type(), origins.sizes(), origins, "directions", op);
  return origins.size(0);
}

template <typename T>
TraceState<T>* states(const Tensor& state) {
  return reinterpret_cast<TraceState<T>*>(state.mutable_data_ptr<T>());
}

template <typename T>
TraceBracket<T>* bracket_rows(const Tensor& brackets) {
  return reinterpret_cast<TraceBracket<T>*>(brackets.mutable_data_ptr<T>());
}

TraceFlags* flag_rows(const Tensor& flags) { return reinterpret_cast<TraceFlags*>(flags.mutable_data_ptr<int32_t>()); }

std::tuple<Tensor, Tensor> sphere_trace_start(const Tensor& origins, const Tensor& directions, double radius,
                                              const OptionalTensor& seek_minimum) {
  const int64_t rays = check_rays(origins, directions, "sphere_trace_start");
  if (seek_minimum) check(*seek_minimum, at::kBool, {rays}, origins, "seek_minimum", "sphere_trace_start");
  const Tensor state = at::empty({rays, kTraceStateColumns}, origins.options());
  const Tensor flags = at::empty({rays, kTraceFlagColumns}, origins.options().dtype(at::kInt));
  AT_DISPATCH_FLOATING_TYPES(origins.scalar_type(), "sphere_trace_start", [&] {
    NSR_LAUNCH(origins, sphere_trace_start, rays, origins.const_data_ptr<scalar_t>(),
               directions.const_data_ptr<scalar_t>(), radius,
               seek_minimum ? seek_minimum->const_data_ptr<bool>() : nullptr, states<scalar_t>(state),
               flag_rows(flags));
  });
  return {state, flags};
}

// Without values, asks for the points of `items`; with them, advances the rays first and drops the items that are done.
std::tuple<Tensor, Tensor> sphere_trace_march_(const Tensor& state, const Tensor& flags, const Tensor& items,
                                               const OptionalTensor& values, const Tensor& origins,
                                               const Tensor& directions, int64_t max_iterations,
                                               int64_t line_search_steps, double threshold, double relaxation,
                                               double min_step) {
  const char* op = "sphere_trace_march_";
  const int64_t rays = check_rays(origins, directions, op);
  check(state, origins.scalar_type(), {rays, kTraceStateColumns}, origins, "state", op);
  check(flags, at::kInt, {rays, kTraceFlagColumns}, origins, "flags", op);
  check(items, at::kLong, {items.numel()}, origins, "items", op);
  if (values) check(*values, origins.scalar_type(), items.sizes(), origins, "values", op);
  const TraceOptions options{int32_t(max_iterations), int32_t(line_search_steps), threshold, relaxation, min_step};

  const Tensor alive = at::empty(items.sizes(), items.options().dtype(at::kBool));
  Tensor next = items.clone(), points;
  AT_DISPATCH_FLOATING_TYPES(origins.scalar_type(), "sphere_trace_march_", [&] {
    if (values) {
      NSR_LAUNCH(origins, sphere_trace_march, options, items.numel(), items.const_data_ptr<int64_t>(),
                 values->const_data_ptr<scalar_t>(), states<scalar_t>(state), flag_rows(flags),
                 alive.mutable_data_ptr<bool>());
      next = at::masked_select(items, alive);
    }
    points = at::empty({next.numel(), 3}, origins.options());
    NSR_LAUNCH(origins, sphere_trace_points, next.numel(), next.const_data_ptr<int64_t>(),
               origins.const_data_ptr<scalar_t>(), directions.const_data_ptr<scalar_t>(), states<scalar_t>(state),
               points.mutable_data_ptr<scalar_t>());
  });
  return {next, points};
}

// The same for brackets of a sign change.
std::tuple<Tensor, Tensor> sphere_trace_secant_(const Tensor& brackets, const Tensor& rows,
                                                const OptionalTensor& values, const Tensor& origins,
                                                const Tensor& directions) {
  const char* op = "sphere_trace_secant_";
  const int64_t rays = check_rays(origins, directions, op);
  check(brackets, origins.scalar_type(), {rays, kTraceBracketColumns}, origins, "brackets", op);
  check(rows, at::kLong, {rows.numel()}, origins, "rows", op);
  if (values) check(*values, origins.scalar_type(), rows.sizes(), origins, "values", op);

  const Tensor alive = at::empty(rows.sizes(), rows.options().dtype(at::kBool));
  Tensor next = rows.clone(), points;
  AT_DISPATCH_FLOATING_TYPES(origins.scalar_type(), "sphere_trace_secant_", [&] {
    const scalar_t* const no_values = nullptr;
    NSR_LAUNCH(origins, sphere_trace_secant, rows.numel(), rows.const_data_ptr<int64_t>(),
               values ? values->const_data_ptr<scalar_t>() : no_values, bracket_rows<scalar_t>(brackets),
               alive.mutable_data_ptr<bool>());
    if (values) next = at::masked_select(rows, alive);
    points = at::empty({next.numel(), 3}, origins.options());
    NSR_LAUNCH(origins, sphere_trace_secant_points, next.numel(), next.const_data_ptr<int64_t>(),
               origins.const_data_ptr<scalar_t>(), directions.const_data_ptr<scalar_t>(),
               bracket_rows<scalar_t>(brackets), points.mutable_data_ptr<scalar_t>());
  });
  return {next, points};
}

std::tuple<Tensor, Tensor> sphere_trace_scan(const Tensor& values, const Tensor& orientation) {
  const char* op = "sphere_trace_scan";
  TORCH_CHECK(values.dim() == 2 && values.size(1) >= 1, "nsr::", op, ": expected values [R, S >= 1], got ",
              values.sizes());
  check(values, values.scalar_type(), values.sizes(), values, "values", op);
  check(orientation, values.scalar_type(), {values.size(0)}, values, "orientation", op);
  const Tensor crossing = at::empty({values.size(0)}, values.options().dtype(at::kLong));
  const Tensor minimum = at::empty({values.size(0)}, values.options().dtype(at::kLong));
  AT_DISPATCH_FLOATING_TYPES(values.scalar_type(), "sphere_trace_scan", [&] {
    NSR_LAUNCH(values, sphere_trace_scan, values.size(0), values.size(1), values.const_data_ptr<scalar_t>(),
               orientation.const_data_ptr<scalar_t>(), crossing.mutable_data_ptr<int64_t>(),
               minimum.mutable_data_ptr<int64_t>());
  });
  return {crossing, minimum};
}

}  // namespace

NSR_REGISTER(m) {
  m.impl("sphere_trace_start", &sphere_trace_start);
  m.impl("sphere_trace_march_", &sphere_trace_march_);
  m.impl("sphere_trace_secant_", &sphere_trace_secant_);
  m.impl("sphere_trace_scan", &sphere_trace_scan);
}

}  // namespace nsr
