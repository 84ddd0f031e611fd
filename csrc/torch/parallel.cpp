// parallel_for on torch's own pool: a second OpenMP runtime beside it would spin against it.
#include "../cpu/parallel.h"

#include <ATen/Parallel.h>

namespace nsr::cpu {

void parallel_for(int64_t begin, int64_t end, int64_t grain, const std::function<void(int64_t, int64_t)>& fn) {
  at::parallel_for(begin, end, grain, fn);
}

}  // namespace nsr::cpu
