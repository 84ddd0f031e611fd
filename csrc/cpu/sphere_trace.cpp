// Sphere tracing on the CPU: the state machine of kernels/sphere_trace.h, rays in parallel.
#include "../kernels/launch.h"
#include "parallel.h"

namespace nsr::cpu {
namespace {

constexpr int64_t kGrain = 4096;  // rays per thread below which another thread does not pay

template <typename T>
void point_on_ray(const T* o, const T* d, T t, T* point) {
  for (int k = 0; k < 3; ++k) point[k] = o[k] + t * d[k];
}

}  // namespace

template <typename T>
void sphere_trace_start(int64_t rays, const T* origins, const T* directions, double radius, const bool* seek_minimum,
                        TraceState<T>* state, TraceFlags* flags) {
  parallel_for(0, rays, kGrain, [=](int64_t first, int64_t last) {
    for (int64_t r = first; r < last; ++r)
      start_ray(origins + 3 * r, directions + 3 * r, T(radius), seek_minimum && seek_minimum[r], state[r], flags[r]);
  });
}

template <typename T>
void sphere_trace_march(const TraceOptions& options, int64_t items, const int64_t* item, const T* values,
                        TraceState<T>* state, TraceFlags* flags, bool* alive) {
  parallel_for(0, items, kGrain, [=, &options](int64_t first, int64_t last) {
    for (int64_t i = first; i < last; ++i)
      if (item[i] % 2 == 0) advance_item(options, i, items, item, values, state, flags, alive);
  });
}

template <typename T>
void sphere_trace_points(int64_t items, const int64_t* item, const T* origins, const T* directions,
                         const TraceState<T>* state, T* points) {
  parallel_for(0, items, kGrain, [=](int64_t first, int64_t last) {
    for (int64_t i = first; i < last; ++i) {
      const int64_t r = item[i] / 2;
      point_on_ray(origins + 3 * r, directions + 3 * r, item[i] % 2 ? state[r].back_t : state[r].t, points + 3 * i);
    }
  });
}

template <typename T>
void sphere_trace_secant(int64_t items, const int64_t* row, const T* values, TraceBracket<T>* brackets, bool* alive) {
  parallel_for(0, items, kGrain, [=](int64_t first, int64_t last) {
    for (int64_t i = first; i < last; ++i) {
      if (values)
        alive[i] = advance_secant(brackets[row[i]], values[i]);
      else
        aim_secant(brackets[row[i]]);
    }
  });
}

template <typename T>
void sphere_trace_secant_points(int64_t items, const int64_t* row, const T* origins, const T* directions,
                                const TraceBracket<T>* brackets, T* points) {
  parallel_for(0, items, kGrain, [=](int64_t first, int64_t last) {
    for (int64_t i = first; i < last; ++i)
      point_on_ray(origins + 3 * row[i], directions + 3 * row[i], brackets[row[i]].t, points + 3 * i);
  });
}

template <typename T>
void sphere_trace_scan(int64_t rays, int64_t samples, const T* values, const T* orientation, int64_t* crossing,
                       int64_t* minimum) {
  parallel_for(0, rays, kGrain / 64, [=](int64_t first, int64_t last) {
    for (int64_t r = first; r < last; ++r)
      scan_samples(values + r * samples, samples, orientation[r], crossing[r], minimum[r]);
  });
}

#define NSR_INSTANTIATE(T)                                                                                           \
  template void sphere_trace_start<T>(int64_t, const T*, const T*, double, const bool*, TraceState<T>*, TraceFlags*); \
  template void sphere_trace_march<T>(const TraceOptions&, int64_t, const int64_t*, const T*, TraceState<T>*,        \
                                      TraceFlags*, bool*);                                                           \
  template void sphere_trace_points<T>(int64_t, const int64_t*, const T*, const T*, const TraceState<T>*, T*);       \
  template void sphere_trace_secant<T>(int64_t, const int64_t*, const T*, TraceBracket<T>*, bool*);                  \
  template void sphere_trace_secant_points<T>(int64_t, const int64_t*, const T*, const T*,                           \
                                              const TraceBracket<T>*, T*);                                           \
  template void sphere_trace_scan<T>(int64_t, int64_t, const T*, const T*, int64_t*, int64_t*);
NSR_INSTANTIATE(float)
NSR_INSTANTIATE(double)
#undef NSR_INSTANTIATE

}  // namespace nsr::cpu
