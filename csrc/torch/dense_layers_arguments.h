// The dense layers of a network, as every op on one takes them: checks, and the description that kernels/ works with.
// They come in one tensor, weight [outputs, inputs] and bias [outputs] of each in turn: an op on lists of tensors costs
// more to dispatch than a small network costs to evaluate.
#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>

#include "../kernels/dense_layers.h"
#include "optional_tensor.h"

namespace nsr {

using at::IntArrayRef;
using at::Tensor;

// The contiguous parameters of the layers, alive for as long as the pointers of describe() are used.
struct LayerTensors {
  Tensor parameters;
  IntArrayRef widths;  // outputs of each layer
  int64_t inputs;      // of the first

  // fn(layer, inputs, outputs, place of its weight in the parameters, place of its bias).
  template <typename Fn>
  void for_each_layer(const Fn& fn) const {
    int64_t before = inputs, place = 0;
    for (size_t l = 0; l < widths.size(); ++l) {
      const int64_t weight = place, bias = weight + widths[l] * before;
      fn(l, before, widths[l], weight, bias);
      place = bias + widths[l];
      before = widths[l];
    }
  }

  int64_t parameter_count() const {
    int64_t count = 0;
    for_each_layer([&](size_t, int64_t, int64_t outputs, int64_t, int64_t bias) { count = bias + outputs; });
    return count;
  }

  // used: inputs of the first layer that are used.
  template <typename T>
  DenseLayers<T> describe(int64_t used) const {
    DenseLayers<T> layers;
    layers.layers = int32_t(widths.size());
    layers.first_inputs = int32_t(used);
    const T* const all = parameters.const_data_ptr<T>();
    for_each_layer([&](size_t l, int64_t before, int64_t outputs, int64_t weight, int64_t bias) {
      layers.layer[l] = {all + weight, all + bias, int32_t(before), int32_t(outputs)};
    });
    return layers;
  }

  // Where the gradients go in a tensor like the parameters.
  template <typename T>
  LayerGradients<T> gradients_in(const Tensor& grad_parameters) const {
    LayerGradients<T> gradients{};
    T* const all = grad_parameters.mutable_data_ptr<T>();
    for_each_layer([&](size_t l, int64_t, int64_t, int64_t weight, int64_t bias) {
      gradients.weight[l] = all + weight;
      gradients.bias[l] = all + bias;
    });
    return gradients;
  }
};

// like: a tensor whose dtype and device the parameters must have, called `name`.
inline LayerTensors check_layers(const Tensor& parameters, IntArrayRef widths, int64_t inputs, const Tensor& like,
                                 const char* name, const char* op) {
  TORCH_CHECK(widths.size() >= 2 && widths.size() <= size_t(kMaxDenseLayers), op, ": expected the widths of 2 to ",
              kMaxDenseLayers, " layers, got ", widths);
  for (size_t l = 0; l < widths.size(); ++l)
    TORCH_CHECK(widths[l] >= 1 && (l + 1 == widths.size() ? widths[l] <= (1 << 20) : widths[l] <= kMaxNetworkWidth), op,
                ": expected hidden layers of 1 to ", kMaxNetworkWidth, " neurons and at least 1 output, got widths ",
                widths);
  const LayerTensors layers{parameters.contiguous(), widths, inputs};
  TORCH_CHECK(parameters.dim() == 1 && parameters.size(0) == layers.parameter_count(), op, ": expected parameters [",
              layers.parameter_count(), "] for ", inputs, " inputs and widths ", widths, ", got ", parameters.sizes());
  TORCH_CHECK(parameters.scalar_type() == like.scalar_type() && parameters.device() == like.device(), op,
              ": expected parameters with the dtype and device of the ", name, ", ", like.scalar_type(), " on ",
              like.device(), "; got ", parameters.scalar_type(), " on ", parameters.device());
  return layers;
}

// What a derivative writes: null where it is not wanted.
template <typename T>
T* pointer_if(const Tensor& tensor, bool wanted) {
  return wanted ? tensor.mutable_data_ptr<T>() : nullptr;
}

inline Tensor empty_if(const Tensor& like, bool wanted) {
  return at::empty(wanted ? like.sizes() : IntArrayRef({0}), like.options());
}

}  // namespace nsr
