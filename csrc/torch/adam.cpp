// adam_touched_: checks and dispatch. Schema in library.cpp, documentation in nsr/ops/adam.py.
#include <ATen/Dispatch.h>

#include "device.h"
#include "optional_tensor.h"

namespace nsr {
namespace {

using at::Tensor;

void check_entry_tensor(const Tensor& tensor, const Tensor& value, const char* name) {
  TORCH_CHECK(tensor.sizes() == value.sizes() && tensor.scalar_type() == value.scalar_type() &&
                  tensor.device() == value.device() && tensor.is_contiguous(),
              "nsr::adam_touched_: expected ", name, " contiguous, with the shape ", value.sizes(), ", the dtype ",
              value.scalar_type(), " and the device ", value.device(), " of value; got ", tensor.sizes(), ", ",
              tensor.scalar_type(), ", ", tensor.device());
}

void check_number(const Tensor& number, const Tensor& value, at::ScalarType dtype, const char* name) {
  TORCH_CHECK(number.dim() == 0 && number.scalar_type() == dtype && number.device() == value.device(),
              "nsr::adam_touched_: expected ", name, " of no dimensions, ", dtype, ", on ", value.device(),
              " as value; got ", number.sizes(), ", ", number.scalar_type(), ", ", number.device());
}

void adam_touched_(const Tensor& value, const Tensor& grad, const Tensor& exp_avg, const Tensor& exp_avg_sq,
                   const Tensor& step, const Tensor& lr, double beta1, double beta2, double eps,
                   const OptionalTensor& skip) {
  check_entry_tensor(value, value, "value");
  check_entry_tensor(grad, value, "grad");
  check_entry_tensor(exp_avg, value, "exp_avg");
  check_entry_tensor(exp_avg_sq, value, "exp_avg_sq");
  check_number(step, value, at::kDouble, "step");
  check_number(lr, value, at::kDouble, "lr");
  if (skip) check_number(*skip, value, at::kFloat, "skip");
  const AdamStep how{step.const_data_ptr<double>(), lr.const_data_ptr<double>(), beta1, beta2, eps,
                     pointer_or_null<float>(skip)};
  AT_DISPATCH_FLOATING_TYPES(value.scalar_type(), "adam_touched_", [&] {
    NSR_LAUNCH(value, adam_touched, how, value.numel(), value.mutable_data_ptr<scalar_t>(), grad.const_data_ptr<scalar_t>(),
               exp_avg.mutable_data_ptr<scalar_t>(), exp_avg_sq.mutable_data_ptr<scalar_t>());
  });
}

}  // namespace

NSR_REGISTER(m) { m.impl("adam_touched_", &adam_touched_); }

}  // namespace nsr
