// Sphere tracing on the GPU: the state machine of kernels/sphere_trace.h, a thread per ray or item.
#include "../kernels/launch.h"
#include "launch.cuh"

namespace nsr::cuda {
namespace {

template <typename T>
__device__ void point_on_ray(const T* o, const T* d, T t, T* point) {
  for (int k = 0; k < 3; ++k) point[k] = o[k] + t * d[k];
}

template <typename T>
__global__ void start_kernel(int64_t rays, const T* origins, const T* directions, T radius, const bool* seek_minimum,
                             TraceState<T>* state, TraceFlags* flags) {
  const int64_t r = thread_index();
  if (r >= rays) return;
  start_ray(origins + 3 * r, directions + 3 * r, radius, seek_minimum && seek_minimum[r], state[r], flags[r]);
}

template <typename T>
__global__ void march_kernel(TraceOptions options, int64_t items, const int64_t* item, const T* values,
                             TraceState<T>* state, TraceFlags* flags, bool* alive) {
  const int64_t i = thread_index();
  if (i >= items || item[i] % 2 != 0) return;
  advance_item(options, i, items, item, values, state, flags, alive);
}

template <typename T>
__global__ void points_kernel(int64_t items, const int64_t* item, const T* origins, const T* directions,
                              const TraceState<T>* state, T* points) {
  const int64_t i = thread_index();
  if (i >= items) return;
  const int64_t r = item[i] / 2;
  point_on_ray(origins + 3 * r, directions + 3 * r, item[i] % 2 ? state[r].back_t : state[r].t, points + 3 * i);
}

template <typename T>
__global__ void secant_kernel(int64_t items, const int64_t* row, const T* values, TraceBracket<T>* brackets,
                              bool* alive) {
  const int64_t i = thread_index();
  if (i >= items) return;
  if (values)
    alive[i] = advance_secant(brackets[row[i]], values[i]);
  else
    aim_secant(brackets[row[i]]);
}

template <typename T>
__global__ void secant_points_kernel(int64_t items, const int64_t* row, const T* origins, const T* directions,
                                     const TraceBracket<T>* brackets, T* points) {
  const int64_t i = thread_index();
  if (i >= items) return;
  point_on_ray(origins + 3 * row[i], directions + 3 * row[i], brackets[row[i]].t, points + 3 * i);
}

template <typename T>
__global__ void scan_kernel(int64_t rays, int64_t samples, const T* values, const T* orientation, int64_t* crossing,
                            int64_t* minimum) {
  const int64_t r = thread_index();
  if (r >= rays) return;
  scan_samples(values + r * samples, samples, orientation[r], crossing[r], minimum[r]);
}

}  // namespace

template <typename T>
void sphere_trace_start(void* stream, int64_t rays, const T* origins, const T* directions, double radius,
                        const bool* seek_minimum, TraceState<T>* state, TraceFlags* flags) {
  launch_items(stream, rays, start_kernel<T>, rays, origins, directions, T(radius), seek_minimum, state, flags);
}

template <typename T>
void sphere_trace_march(void* stream, const TraceOptions& options, int64_t items, const int64_t* item, const T* values,
                        TraceState<T>* state, TraceFlags* flags, bool* alive) {
  launch_items(stream, items, march_kernel<T>, options, items, item, values, state, flags, alive);
}

template <typename T>
void sphere_trace_points(void* stream, int64_t items, const int64_t* item, const T* origins, const T* directions,
                         const TraceState<T>* state, T* points) {
  launch_items(stream, items, points_kernel<T>, items, item, origins, directions, state, points);
}

template <typename T>
void sphere_trace_secant(void* stream, int64_t items, const int64_t* row, const T* values, TraceBracket<T>* brackets,
                         bool* alive) {
  launch_items(stream, items, secant_kernel<T>, items, row, values, brackets, alive);
}

template <typename T>
void sphere_trace_secant_points(void* stream, int64_t items, const int64_t* row, const T* origins, const T* directions,
                                const TraceBracket<T>* brackets, T* points) {
  launch_items(stream, items, secant_points_kernel<T>, items, row, origins, directions, brackets, points);
}

template <typename T>
void sphere_trace_scan(void* stream, int64_t rays, int64_t samples, const T* values, const T* orientation,
                       int64_t* crossing, int64_t* minimum) {
  launch_items(stream, rays, scan_kernel<T>, rays, samples, values, orientation, crossing, minimum);
}

#define NSR_INSTANTIATE(T)                                                                                            \
  template void sphere_trace_start<T>(void*, int64_t, const T*, const T*, double, const bool*, TraceState<T>*,        \
                                      TraceFlags*);                                                                   \
  template void sphere_trace_march<T>(void*, const TraceOptions&, int64_t, const int64_t*, const T*, TraceState<T>*,  \
                                      TraceFlags*, bool*);                                                            \
  template void sphere_trace_points<T>(void*, int64_t, const int64_t*, const T*, const T*, const TraceState<T>*, T*); \
  template void sphere_trace_secant<T>(void*, int64_t, const int64_t*, const T*, TraceBracket<T>*, bool*);            \
  template void sphere_trace_secant_points<T>(void*, int64_t, const int64_t*, const T*, const T*,                     \
                                              const TraceBracket<T>*, T*);                                            \
  template void sphere_trace_scan<T>(void*, int64_t, int64_t, const T*, const T*, int64_t*, int64_t*);
NSR_INSTANTIATE(float)
NSR_INSTANTIATE(double)
#undef NSR_INSTANTIATE

}  // namespace nsr::cuda
