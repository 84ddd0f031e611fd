// Sphere tracing of a network on the GPU: each thread runs the program of one ray (kernels/trace_ray.h), the block
// evaluates the network for all of them together, and a thread whose ray has ended takes the next one from a queue. As
// many blocks as the device holds run until the queue is empty; the host waits for nothing.
#include "sdf_network_tile.cuh"

namespace nsr::cuda {
namespace {

using RayCount = unsigned long long;

// The next ray of the queue that has something to ask; rays that have not are finished on the way. -1: none is left.
template <typename T>
__device__ int64_t next_ray(const TracePlan& plan, const TracedRays<T>& traced, RayCount* taken, RayProgram<T>& ray) {
  for (;;) {
    const int64_t r = int64_t(atomicAdd(taken, RayCount(1)));
    if (r >= traced.rays) return -1;
    traced.start(plan, r, ray);
    if (ray.phase != kFinished) return r;
    traced.finish(r, ray);
  }
}

template <BankKind kBank, typename T>
__global__ void trace_kernel(SdfNetwork<T> network, int widest, TracePlan plan, TracedRays<T> traced, RayCount* taken) {
  RayProgram<T> ray;
  int64_t r = next_ray(plan, traced, taken, ray);
  while (__syncthreads_or(r >= 0)) {
    T point[3] = {};
    if (r >= 0)
      for (int d = 0; d < 3; ++d) point[d] = traced.coordinate(r, ray, d);
    const T value = evaluate<kBank>(network, point, widest);
    if (r < 0) continue;
    advance_program(plan, value, ray);
    if (ray.phase != kFinished) continue;
    traced.finish(r, ray);
    r = next_ray(plan, traced, taken, ray);
  }
}

template <typename T>
auto kernel_of(const SdfNetwork<T>& network) {
  return with_bank_kind(network, [](auto kind) { return trace_kernel<decltype(kind)::value, T>; });
}

template <typename T>
TilePlan plan_trace(const SdfNetwork<T>& network, int64_t rays) {
  return plan_tiles<T>(kernel_of(network), rays, evaluation_rows(network));
}

}  // namespace

template <typename T>
int64_t trace_sdf_network_scratch(const SdfNetwork<T>& network, const TracePlan&, int64_t rays, const T*, const T*,
                                  const bool*, T*, bool*, int32_t*) {
  return plan_trace(network, rays).scratch(sizeof(RayCount));
}

template <typename T>
void trace_sdf_network(void* stream, const SdfNetwork<T>& network, const TracePlan& plan, int64_t rays, const T* origins,
                       const T* directions, const bool* mask, T* distance, bool* hit, int32_t* evaluations,
                       void* scratch) {
  RayCount* const taken = static_cast<RayCount*>(scratch);
  cudaMemsetAsync(taken, 0, sizeof(RayCount), static_cast<cudaStream_t>(stream));
  const TracedRays<T> traced{rays, origins, directions, mask, distance, hit, evaluations};
  launch_tiles(stream, plan_trace(network, rays), kernel_of(network), network, widest(network), plan, traced,
               taken);
}

#define NSR_INSTANTIATE(T)                                                                                          \
  template int64_t trace_sdf_network_scratch<T>(const SdfNetwork<T>&, const TracePlan&, int64_t, const T*, const T*, \
                                                const bool*, T*, bool*, int32_t*);                                  \
  template void trace_sdf_network<T>(void*, const SdfNetwork<T>&, const TracePlan&, int64_t, const T*, const T*,    \
                                     const bool*, T*, bool*, int32_t*, void*);
NSR_INSTANTIATE(float)
NSR_INSTANTIATE(double)
#undef NSR_INSTANTIATE

}  // namespace nsr::cuda
