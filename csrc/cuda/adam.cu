// Adam over touched entries on the GPU: a thread per entry; warps without any gradient read nothing else.
#include "../kernels/launch.h"
#include "launch.cuh"

namespace nsr::cuda {
namespace {

template <typename T>
__global__ void adam_kernel(AdamRates<T> rates, int64_t n, T* value, const T* gradient, T* mean, T* square) {
  const int64_t i = thread_index();
  if (i >= n || gradient[i] == T(0)) return;
  adam_entry(rates, gradient[i], value[i], mean[i], square[i]);
}

}  // namespace

template <typename T>
void adam_touched(void* stream, const AdamRates<T>& rates, int64_t n, T* value, const T* gradient, T* mean, T* square) {
  launch_items(stream, n, adam_kernel<T>, rates, n, value, gradient, mean, square);
}

template void adam_touched<float>(void*, const AdamRates<float>&, int64_t, float*, const float*, float*, float*);
template void adam_touched<double>(void*, const AdamRates<double>&, int64_t, double*, const double*, double*, double*);

}  // namespace nsr::cuda
