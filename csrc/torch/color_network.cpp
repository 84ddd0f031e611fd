// color_network and its derivative: checks, allocation, dispatch. Schemas in library.cpp, documentation in
// nsr/ops/color_network.py.
#include <ATen/Dispatch.h>
#include <ATen/ops/empty.h>

#include <array>
#include <tuple>

#include "../kernels/color_network.h"
#include "dense_layers_arguments.h"
#include "device.h"
#include "hash_grid_arguments.h"

namespace nsr {
namespace {

// Contiguous tensors of the op's inputs and parameters, alive for as long as the pointers of the descriptions are used.
struct ColorTensors {
  Tensor points, features, table;
  OptionalTensor normals, view_dirs;
  HashGrid grid;
  int64_t view_degree;
  LayerTensors layers;

  int64_t count() const { return points.size(0); }
  int64_t tiles() const { return (count() + kLanes - 1) / kLanes; }

  template <typename T>
  ColorInputs<T> describe_inputs() const {
    return {points.const_data_ptr<T>(), pointer_or_null<T>(normals), pointer_or_null<T>(view_dirs),
            features.const_data_ptr<T>()};
  }

  template <typename T>
  ColorNetwork<T> describe() const {
    return {layers.describe<T>(layers.inputs), grid,         table.const_data_ptr<T>(), int32_t(view_degree),
            normals.has_value(),               int32_t(features.size(1))};
  }
};

Tensor check_input(const Tensor& input, const Tensor& points, int64_t columns, const char* name, const char* op) {
  TORCH_CHECK(input.dim() == 2 && input.size(0) == points.size(0) && (columns < 0 || input.size(1) == columns) &&
                  input.scalar_type() == points.scalar_type() && input.device() == points.device(),
              op, ": expected ", name, " [", points.size(0), ", ", columns < 0 ? "F" : std::to_string(columns),
              "] with the dtype and device of the points, ", points.scalar_type(), " on ", points.device(), "; got ",
              input.sizes(), ", ", input.scalar_type(), " on ", input.device());
  return input.contiguous();
}

ColorTensors check_arguments(const Tensor& points, const OptionalTensor& normals, const OptionalTensor& view_dirs,
                             const Tensor& features, const Tensor& table, IntArrayRef resolutions, IntArrayRef offsets,
                             bool smoothstep, double extent, int64_t active_levels, const Tensor& parameters,
                             IntArrayRef widths, int64_t view_degree, const char* op) {
  check_points_and_table(points, table, op);
  TORCH_CHECK(view_degree >= 0 && view_degree <= kMaxHarmonicsDegree && (view_degree > 0) == view_dirs.has_value(), op,
              ": expected view_degree 1 to ", kMaxHarmonicsDegree, " with view_dirs, or 0 without, got ", view_degree);
  TORCH_CHECK(!widths.empty() && widths.back() == kColors, op, ": expected ", kColors,
              " outputs of the last layer, got widths ", widths);
  const Tensor columns = check_input(features, points, -1, "features", op);
  const auto optional = [&](const OptionalTensor& input, const char* name) -> OptionalTensor {
    if (!input) return std::nullopt;
    return check_input(*input, points, 3, name, op);
  };
  const HashGrid grid = make_grid(table, resolutions, offsets, smoothstep, extent, active_levels, op);
  const int64_t inputs = 3 + grid.outputs() + harmonics_count(int(view_degree)) + (normals ? 3 : 0) + features.size(1);
  return {points.contiguous(),
          columns,
          contiguous_table(table),
          optional(normals, "normals"),
          optional(view_dirs, "view_dirs"),
          grid,
          view_degree,
          check_layers(parameters, widths, inputs, table, "table", op)};
}

std::tuple<Tensor, Tensor> color_network(const Tensor& points, const OptionalTensor& normals,
                                         const OptionalTensor& view_dirs, const Tensor& features, const Tensor& table,
                                         IntArrayRef resolutions, IntArrayRef offsets, bool smoothstep, double extent,
                                         int64_t active_levels, const Tensor& parameters, IntArrayRef widths,
                                         int64_t view_degree, bool keep) {
  const ColorTensors tensors =
      check_arguments(points, normals, view_dirs, features, table, resolutions, offsets, smoothstep, extent,
                      active_levels, parameters, widths, view_degree, "nsr::color_network");
  const Tensor rgb = at::empty({tensors.count(), kColors}, points.options());
  Tensor kept;
  AT_DISPATCH_FLOATING_TYPES(points.scalar_type(), "color_network", [&] {
    const ColorNetwork<scalar_t> network = tensors.describe<scalar_t>();
    kept = at::empty({keep ? tensors.tiles() : 0, network.kept(), kLanes}, points.options());
    NSR_LAUNCH_WITH_SCRATCH(points, color_network, network, tensors.count(), tensors.describe_inputs<scalar_t>(), rgb.mutable_data_ptr<scalar_t>(),
                       keep ? kept.mutable_data_ptr<scalar_t>() : nullptr);
  });
  return {rgb, kept};
}

// needs: which gradients, of points, normals, view_dirs, features, table, parameters.
std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> color_network_bwd(
    const Tensor& grad_rgb, const Tensor& kept, const Tensor& points, const OptionalTensor& normals,
    const OptionalTensor& view_dirs, const Tensor& features, const Tensor& table, IntArrayRef resolutions,
    IntArrayRef offsets, bool smoothstep, double extent, int64_t active_levels, const Tensor& parameters,
    IntArrayRef widths, int64_t view_degree, std::array<bool, 6> needs) {
  const char* op = "nsr::color_network_bwd";
  const ColorTensors tensors = check_arguments(points, normals, view_dirs, features, table, resolutions, offsets,
                                               smoothstep, extent, active_levels, parameters, widths, view_degree, op);
  TORCH_CHECK((normals || !needs[1]) && (view_dirs || !needs[2]), op, ": a gradient of an input that is absent");
  const Tensor of_rgb = check_input(grad_rgb, points, kColors, "grad_rgb", op);
  const Tensor grad_points = empty_if(points, needs[0]), grad_normals = empty_if(points, needs[1]);
  const Tensor grad_view_dirs = empty_if(points, needs[2]), grad_features = empty_if(features, needs[3]);
  const Tensor grad_table = empty_if(table, needs[4]), grad_parameters = empty_if(parameters, needs[5]);
  AT_DISPATCH_FLOATING_TYPES(points.scalar_type(), "color_network_bwd", [&] {
    const ColorNetwork<scalar_t> network = tensors.describe<scalar_t>();
    TORCH_CHECK(kept.sizes() == IntArrayRef({tensors.tiles(), network.kept(), kLanes}) &&
                    kept.scalar_type() == points.scalar_type() && kept.is_contiguous(),
                op, ": expected kept as color_network(..., keep=True) returns it for these points, [", tensors.tiles(),
                ", ", network.kept(), ", ", int64_t(kLanes), "]; got ", kept.sizes());
    ColorGradients<scalar_t> gradients{};
    gradients.points = pointer_if<scalar_t>(grad_points, needs[0]);
    gradients.normals = pointer_if<scalar_t>(grad_normals, needs[1]);
    gradients.view_dirs = pointer_if<scalar_t>(grad_view_dirs, needs[2]);
    gradients.features = pointer_if<scalar_t>(grad_features, needs[3]);
    gradients.table = pointer_if<scalar_t>(grad_table, needs[4]);
    if (needs[5]) gradients.layers = tensors.layers.gradients_in<scalar_t>(grad_parameters);
    NSR_LAUNCH_WITH_SCRATCH(points, color_network_bwd, network, tensors.count(), table.size(0), tensors.points.const_data_ptr<scalar_t>(),
                           kept.const_data_ptr<scalar_t>(), of_rgb.const_data_ptr<scalar_t>(), gradients);
  });
  return {grad_points, grad_normals, grad_view_dirs, grad_features, grad_table, grad_parameters};
}

}  // namespace

NSR_REGISTER(m) {
  m.impl("color_network", &color_network);
  m.impl("color_network_bwd", &color_network_bwd);
}

}  // namespace nsr
