// The one thread pool of the process, without torch's headers; implemented in torch/parallel.cpp on at::parallel_for.
#pragma once

#include <cstdint>
#include <functional>

namespace nsr::cpu {

// Calls fn(first, last) on disjoint ranges that cover [begin, end): one per thread, but not more than ranges of `grain`
// items would be.
void parallel_for(int64_t begin, int64_t end, int64_t grain, const std::function<void(int64_t, int64_t)>& fn);

}  // namespace nsr::cpu
