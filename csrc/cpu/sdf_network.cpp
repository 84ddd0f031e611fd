// The SDF of points on the CPU, without derivative: tiles in parallel. What a point gets depends neither on the other
// points nor on the number of threads.
#include "../kernels/launch.h"
#include "parallel.h"
#include "sdf_network_tile.h"

namespace nsr::cpu {
namespace {

constexpr int64_t kGrain = 512;  // points below which a second thread costs more than it brings

}  // namespace

template <typename T>
void sdf_network(const SdfNetwork<T>& network, int64_t n, const T* x, T* sdf) {
  const int64_t tiles = (n + kLanes - 1) / kLanes;
  parallel_for(0, tiles, kGrain / kLanes, [&](int64_t first, int64_t last) {
    SdfTile<T> tile(network);
    for (int64_t k = first; k < last; ++k) {
      const int64_t start = k * kLanes;
      const int count = int(n - start < kLanes ? n - start : kLanes);
      load_points(x + 3 * start, count, tile.points());
      const T* values = tile.evaluate();
      for (int i = 0; i < count; ++i) sdf[start + i] = values[i];
    }
  });
}

#define NSR_INSTANTIATE(T) template void sdf_network<T>(const SdfNetwork<T>&, int64_t, const T*, T*);
NSR_INSTANTIATE(float)
NSR_INSTANTIATE(double)
#undef NSR_INSTANTIATE

}  // namespace nsr::cpu
