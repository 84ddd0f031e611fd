// Adam over touched entries on the GPU: a thread per entry; blocks without any gradient read nothing else.
#include "../kernels/launch.h"
#include "launch.cuh"

namespace nsr::cuda {
namespace {

template <typename T>
__global__ void adam_kernel(AdamStep step, int64_t n, T* value, const T* gradient, T* mean, T* square) {
  const int64_t i = thread_index();
  const bool touched = i < n && gradient[i] != T(0);
  if (!__syncthreads_or(touched) || is_skipped(step)) return;
  // Two powers in double precision, which many GPUs are slow at: once per block.
  auto* rates = reinterpret_cast<AdamRates<T>*>(nsr_dynamic_shared);
  if (threadIdx.x == 0) *rates = adam_rates<T>(step);
  __syncthreads();
  if (touched) adam_entry(*rates, gradient[i], value[i], mean[i], square[i]);
}

}  // namespace

template <typename T>
void adam_touched(void* stream, const AdamStep& step, int64_t n, T* value, const T* gradient, T* mean, T* square) {
  launch(stream, dim3(blocks_for(n)), kThreads, sizeof(AdamRates<T>), adam_kernel<T>, step, n, value, gradient, mean,
         square);
}

template void adam_touched<float>(void*, const AdamStep&, int64_t, float*, const float*, float*, float*);
template void adam_touched<double>(void*, const AdamStep&, int64_t, double*, const double*, double*, double*);

}  // namespace nsr::cuda
