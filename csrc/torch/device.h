// Runs a kernel where its tensors live: NSR_LAUNCH(tensor, stem, arguments...) calls nsr::cpu::stem or nsr::cuda::stem,
// the latter on torch's current stream and with a check for launch errors. NSR_LAUNCH_WITH_SCRATCH is for the kernels that
// need memory besides on the GPU, which is torch's.
#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include "../kernels/launch.h"

#ifdef NSR_WITH_CUDA
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#define NSR_LAUNCH(on, stem, ...)                                               \
  do {                                                                          \
    if ((on).is_cuda()) {                                                       \
      const c10::cuda::CUDAGuard guard((on).device());                          \
      nsr::cuda::stem(c10::cuda::getCurrentCUDAStream().stream(), __VA_ARGS__); \
      C10_CUDA_KERNEL_LAUNCH_CHECK();                                           \
    } else {                                                                    \
      nsr::cpu::stem(__VA_ARGS__);                                              \
    }                                                                           \
  } while (false)
#define NSR_LAUNCH_WITH_SCRATCH(on, stem, ...)                                                            \
  do {                                                                                                    \
    if ((on).is_cuda()) {                                                                                 \
      const c10::cuda::CUDAGuard guard((on).device());                                                    \
      const int64_t bytes = nsr::cuda::stem##_scratch(__VA_ARGS__);                                       \
      TORCH_CHECK(bytes >= 0, "nsr::" #stem ": the network is too wide for the shared memory of ",        \
                  (on).device(), "; expected fewer inputs or outputs, or NSR_BACKEND=reference");         \
      const at::Tensor scratch = at::empty({bytes}, (on).options().dtype(at::kByte));                     \
      nsr::cuda::stem(c10::cuda::getCurrentCUDAStream().stream(), __VA_ARGS__, scratch.mutable_data_ptr()); \
      C10_CUDA_KERNEL_LAUNCH_CHECK();                                                                     \
    } else {                                                                                              \
      nsr::cpu::stem(__VA_ARGS__);                                                                        \
    }                                                                                                     \
  } while (false)
// NSR_REGISTER(m) { m.impl(...); } registers one function per op for each device that was built.
#define NSR_REGISTER(m)                                         \
  static void register_kernels(torch::Library& m);              \
  TORCH_LIBRARY_IMPL(nsr, CPU, cpu) { register_kernels(cpu); }  \
  TORCH_LIBRARY_IMPL(nsr, CUDA, gpu) { register_kernels(gpu); } \
  static void register_kernels(torch::Library& m)
#else
#define NSR_LAUNCH(on, stem, ...) nsr::cpu::stem(__VA_ARGS__)
#define NSR_LAUNCH_WITH_SCRATCH(on, stem, ...) nsr::cpu::stem(__VA_ARGS__)
#define NSR_REGISTER(m) TORCH_LIBRARY_IMPL(nsr, CPU, m)
#endif
