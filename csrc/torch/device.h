// Runs a kernel where its tensors live: NSR_LAUNCH(tensor, stem, arguments...) calls nsr::cpu::stem or nsr::cuda::stem.
#pragma once

#include <ATen/core/Tensor.h>
#include <torch/library.h>

#include "../kernels/launch.h"

#ifdef NSR_WITH_CUDA
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#define NSR_LAUNCH(on, stem, ...)                                                          \
  do {                                                                                     \
    if ((on).is_cuda()) {                                                                  \
      const c10::cuda::CUDAGuard guard((on).device());                                     \
      nsr::cuda::stem(c10::cuda::getCurrentCUDAStream().stream(), __VA_ARGS__);            \
    } else {                                                                               \
      nsr::cpu::stem(__VA_ARGS__);                                                         \
    }                                                                                      \
  } while (false)
#define NSR_REGISTER(m)                   \
  static void nsr_register(torch::Library&); \
  TORCH_LIBRARY_IMPL(nsr, CPU, cpu) { nsr_register(cpu); }   \
  TORCH_LIBRARY_IMPL(nsr, CUDA, cuda) { nsr_register(cuda); } \
  static void nsr_register(torch::Library& m)
#else
#define NSR_LAUNCH(on, stem, ...) nsr::cpu::stem(__VA_ARGS__)
#define NSR_REGISTER(m) TORCH_LIBRARY_IMPL(nsr, CPU, m)
#endif
