// Adam over touched entries on the CPU: blocks without any gradient cost one read of the gradient.
#include <cstring>

#include "../kernels/launch.h"
#include "parallel.h"

namespace nsr::cpu {
namespace {

constexpr int kBlock = 16;           // entries that are skipped or updated together: one cache line of floats
constexpr int64_t kGrain = 1 << 14;  // entries per thread below which another thread does not pay

template <typename T>
bool any_nonzero(const T* gradient, int count) {
  bool any = false;
  for (int i = 0; i < count; ++i) any |= gradient[i] != T(0);
  return any;
}

}  // namespace

template <typename T>
void adam_touched(const AdamRates<T>& rates, int64_t n, T* value, T* gradient, T* mean, T* square, bool zero_gradient) {
  const int64_t blocks = (n + kBlock - 1) / kBlock;
  parallel_for(0, blocks, kGrain / kBlock, [&](int64_t first, int64_t last) {
    for (int64_t block = first; block < last; ++block) {
      const int64_t start = block * kBlock;
      const int count = int(n - start < kBlock ? n - start : kBlock);
      if (count == kBlock ? !any_nonzero(gradient + start, kBlock) : !any_nonzero(gradient + start, count)) continue;
#pragma omp simd
      for (int i = 0; i < count; ++i)
        adam_entry(rates, gradient[start + i], value[start + i], mean[start + i], square[start + i]);
      if (zero_gradient) std::memset(gradient + start, 0, size_t(count) * sizeof(T));
    }
  });
}

template void adam_touched<float>(const AdamRates<float>&, int64_t, float*, float*, float*, float*, bool);
template void adam_touched<double>(const AdamRates<double>&, int64_t, double*, double*, double*, double*, bool);

}  // namespace nsr::cpu
