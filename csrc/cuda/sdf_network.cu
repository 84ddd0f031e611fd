// The signed distance alone on the GPU: a thread per point.
#include "sdf_network_tile.cuh"

namespace nsr::cuda {
namespace {

template <BankKind kBank, typename T>
__global__ void sdf_network_kernel(SdfNetwork<T> network, int widest, int64_t n, const T* x, T* sdf) {
  for (int64_t first = int64_t(blockIdx.x) * blockDim.x; first < n; first += int64_t(gridDim.x) * blockDim.x) {
    const int64_t i = first + threadIdx.x, at = point_of(i, n);  // threads behind the end repeat the last point
    const T point[3] = {x[3 * at], x[3 * at + 1], x[3 * at + 2]};
    const T value = evaluate<kBank>(network, point, widest);
    if (i < n) sdf[i] = value;
  }
}

template <typename T>
auto kernel_of(const SdfNetwork<T>& network) {
  return with_bank_kind(network, [](auto kind) { return sdf_network_kernel<decltype(kind)::value, T>; });
}

template <typename T>
TilePlan plan(const SdfNetwork<T>& network, int64_t n) {
  return plan_tiles<T>(kernel_of(network), n, evaluation_rows(network));
}

}  // namespace

template <typename T>
int64_t sdf_network_scratch(const SdfNetwork<T>& network, int64_t n, const T*, T*) {
  return plan(network, n).scratch(0);
}

template <typename T>
void sdf_network(void* stream, const SdfNetwork<T>& network, int64_t n, const T* x, T* sdf, void*) {
  launch_tiles(stream, plan(network, n), kernel_of(network), network, widest(network), n, x, sdf);
}

#define NSR_INSTANTIATE(T)                                                                  \
  template int64_t sdf_network_scratch<T>(const SdfNetwork<T>&, int64_t, const T*, T*);     \
  template void sdf_network<T>(void*, const SdfNetwork<T>&, int64_t, const T*, T*, void*);
NSR_INSTANTIATE(float)
NSR_INSTANTIATE(double)
#undef NSR_INSTANTIATE

}  // namespace nsr::cuda
