// Adam over touched entries on the CPU: blocks without any gradient cost one read of the gradient.
#include <cstring>

#include "../kernels/launch.h"
#include "parallel.h"

namespace nsr::cpu {
namespace {

constexpr int kBlock = 8;            // entries that are skipped or updated together
constexpr int64_t kGrain = 1 << 14;  // entries per thread below which another thread does not pay

// On the bits, sign bits masked out, because that vectorises.
template <typename T>
bool any_nonzero(const T* gradient) {
  constexpr uint64_t kMagnitude = sizeof(T) == 4 ? 0x7fffffff7fffffffu : 0x7fffffffffffffffu;
  uint64_t words[kBlock * sizeof(T) / 8], bits = 0;
  std::memcpy(words, gradient, sizeof(words));
  for (uint64_t word : words) bits |= word;
  return (bits & kMagnitude) != 0;
}

template <typename T>
void update(const AdamRates<T> rates, int count, T* __restrict value, T* __restrict gradient, T* __restrict mean,
            T* __restrict square, bool zero_gradient) {
#pragma omp simd
  for (int i = 0; i < count; ++i) adam_entry(rates, gradient[i], value[i], mean[i], square[i]);
  if (zero_gradient) std::memset(gradient, 0, size_t(count) * sizeof(T));
}

}  // namespace

template <typename T>
void adam_touched(const AdamRates<T>& rates, int64_t n, T* value, T* gradient, T* mean, T* square, bool zero_gradient) {
  parallel_for(0, n / kBlock, kGrain / kBlock, [=](int64_t first, int64_t last) {
    for (int64_t i = first * kBlock; i < last * kBlock; i += kBlock)
      if (any_nonzero(gradient + i))
        update(rates, kBlock, value + i, gradient + i, mean + i, square + i, zero_gradient);
  });
  const int64_t rest = n - n % kBlock;
  update(rates, int(n - rest), value + rest, gradient + rest, mean + rest, square + rest, zero_gradient);
}

template void adam_touched<float>(const AdamRates<float>&, int64_t, float*, float*, float*, float*, bool);
template void adam_touched<double>(const AdamRates<double>&, int64_t, double*, double*, double*, double*, bool);

}  // namespace nsr::cpu
