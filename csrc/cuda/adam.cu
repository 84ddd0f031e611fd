// Adam over touched entries on the GPU: a thread per entry; warps without any gradient read nothing else.
#include "../kernels/launch.h"
#include "launch.cuh"

namespace nsr::cuda {
namespace {

template <typename T>
__global__ void adam_kernel(AdamRates<T> rates, int64_t n, T* value, T* gradient, T* mean, T* square,
                            bool zero_gradient) {
  const int64_t i = thread_index();
  if (i >= n || gradient[i] == T(0)) return;
  adam_entry(rates, gradient[i], value[i], mean[i], square[i]);
  if (zero_gradient) gradient[i] = T(0);
}

}  // namespace

template <typename T>
void adam_touched(void* stream, const AdamRates<T>& rates, int64_t n, T* value, T* gradient, T* mean, T* square,
                  bool zero_gradient) {
  NSR_CUDA_LAUNCH(stream, n, adam_kernel<T>, rates, n, value, gradient, mean, square, zero_gradient);
}

template void adam_touched<float>(void*, const AdamRates<float>&, int64_t, float*, float*, float*, float*, bool);
template void adam_touched<double>(void*, const AdamRates<double>&, int64_t, double*, double*, double*, double*, bool);

}  // namespace nsr::cuda
