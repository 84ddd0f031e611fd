// Adam over touched entries on the CPU: blocks without any gradient cost one read of the gradient.
//
// Touched blocks lie scattered over tables larger than the cache. So they are listed first, without a branch to
// mispredict, and updated with the loads of the blocks ahead under way: twice as fast as updating them when found.
#include <cstring>

#include "../kernels/launch.h"
#include "parallel.h"

namespace nsr::cpu {
namespace {

constexpr int kBlock = 8;            // entries that are skipped or updated together
constexpr int kListed = 512;         // blocks looked at before their touched ones are updated
constexpr int kAhead = 8;            // touched blocks whose loads are under way
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
void update(const AdamRates<T> rates, int count, T* __restrict value, const T* __restrict gradient, T* __restrict mean,
            T* __restrict square) {
#pragma omp simd
  for (int i = 0; i < count; ++i) adam_entry(rates, gradient[i], value[i], mean[i], square[i]);
}

// Updates the touched ones of `blocks` <= kListed blocks.
template <typename T>
void update_listed(const AdamRates<T>& rates, int blocks, T* value, const T* gradient, T* mean, T* square) {
  int touched[kListed + kAhead];
  int count = 0;
  for (int block = 0; block < blocks; ++block) {
    touched[count] = block * kBlock;
    count += any_nonzero(gradient + block * kBlock);
  }
  for (int k = count; k < count + kAhead; ++k) touched[k] = 0;
  for (int k = 0; k < count; ++k) {
    const int ahead = touched[k + kAhead], at = touched[k];
    NSR_PREFETCH(value + ahead);
    NSR_PREFETCH(mean + ahead);
    NSR_PREFETCH(square + ahead);
    update(rates, kBlock, value + at, gradient + at, mean + at, square + at);
  }
}

}  // namespace

template <typename T>
void adam_touched(const AdamStep& step, int64_t n, T* value, const T* gradient, T* mean, T* square) {
  if (is_skipped(step)) return;
  const AdamRates<T> rates = adam_rates<T>(step);
  parallel_for(0, n / kBlock, kGrain / kBlock, [=](int64_t first, int64_t last) {
    for (int64_t block = first; block < last; block += kListed) {
      const int64_t i = block * kBlock;
      const int blocks = int(last - block < kListed ? last - block : kListed);
      update_listed(rates, blocks, value + i, gradient + i, mean + i, square + i);
    }
  });
  const int64_t rest = n - n % kBlock;
  update(rates, int(n - rest), value + rest, gradient + rest, mean + rest, square + rest);
}

template void adam_touched<float>(const AdamStep&, int64_t, float*, const float*, float*, float*);
template void adam_touched<double>(const AdamStep&, int64_t, double*, const double*, double*, double*);

}  // namespace nsr::cpu
