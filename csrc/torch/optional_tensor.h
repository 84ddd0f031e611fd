// Tensors that an op may be given or not: inputs that are left out, cotangents that autograd does not have.
#pragma once

#include <ATen/core/Tensor.h>

#include <optional>

namespace nsr {

using OptionalTensor = std::optional<at::Tensor>;

// Null where absent.
template <typename T>
const T* pointer_or_null(const OptionalTensor& tensor) {
  return tensor ? tensor->const_data_ptr<T>() : nullptr;
}

}  // namespace nsr
