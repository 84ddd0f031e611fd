// The library's CPU kernels, served by the CUDA kernels on the emulator: loaded before the library with global symbols,
// these definitions take the place of its own (tests/support/emulated_cuda.py).
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <vector>

#include "../../csrc/kernels/launch.h"

namespace nsr::cpu {

int64_t calls = 0;

#define NSR_FORWARD(stem, ...) \
  ++calls;                     \
  cuda::stem(nullptr, __VA_ARGS__)

// Scratch with a canary behind it, fresh for every call.
template <typename Run>
void with_scratch(int64_t bytes, const Run& run) {
  if (bytes < 0) std::abort();
  constexpr int64_t kBehind = 256;
  std::vector<double> scratch(size_t(bytes + kBehind) / sizeof(double) + 1, std::nan(""));
  unsigned char* const end = reinterpret_cast<unsigned char*>(scratch.data()) + bytes;
  std::memset(end, 0xa5, kBehind);
  run(bytes ? scratch.data() : nullptr);  // as torch has it
  for (int64_t k = 0; k < kBehind; ++k)
    if (end[k] != 0xa5) {
      std::fprintf(stderr, "CUDA emulation: something was written behind the scratch\n");
      std::abort();
    }
}

#define NSR_FORWARD_WITH_SCRATCH(stem, ...) \
  ++calls;                                  \
  with_scratch(cuda::stem##_scratch(__VA_ARGS__), [&](void* scratch) { cuda::stem(nullptr, __VA_ARGS__, scratch); })

template <typename T, typename Entry>
void hash_grid_encode(const HashGrid& grid, int64_t n, const T* x, const Entry* table, T* h, T* jacobian) {
  NSR_FORWARD(hash_grid_encode, grid, n, x, table, h, jacobian);
}

template <typename T, typename Entry>
void hash_grid_contract(const HashGrid& grid, int64_t n, const T* x, const Entry* table, const T* grad_h,
                        const T* grad_jacobian, T* grad_x) {
  NSR_FORWARD(hash_grid_contract, grid, n, x, table, grad_h, grad_jacobian, grad_x);
}

template <typename T>
void hash_grid_scatter(const HashGrid& grid, int64_t n, int64_t entries, const T* x, const T* grad_h,
                       const T* grad_jacobian, T* grad_table) {
  NSR_FORWARD_WITH_SCRATCH(hash_grid_scatter, grid, n, entries, x, grad_h, grad_jacobian, grad_table);
}

template <typename T>
void adam_touched(const AdamStep& step, int64_t n, T* value, const T* gradient, T* mean, T* square) {
  NSR_FORWARD(adam_touched, step, n, value, gradient, mean, square);
}

template <typename T>
void sphere_trace_start(int64_t rays, const T* origins, const T* directions, double radius, const bool* seek_minimum,
                        TraceState<T>* state, TraceFlags* flags) {
  NSR_FORWARD(sphere_trace_start, rays, origins, directions, radius, seek_minimum, state, flags);
}

template <typename T>
void sphere_trace_march(const TraceOptions& options, int64_t items, const int64_t* item, const T* values,
                        TraceState<T>* state, TraceFlags* flags, bool* alive) {
  NSR_FORWARD(sphere_trace_march, options, items, item, values, state, flags, alive);
}

template <typename T>
void sphere_trace_points(int64_t items, const int64_t* item, const T* origins, const T* directions,
                         const TraceState<T>* state, T* points) {
  NSR_FORWARD(sphere_trace_points, items, item, origins, directions, state, points);
}

template <typename T>
void sphere_trace_secant(int64_t items, const int64_t* row, const T* values, TraceBracket<T>* brackets, bool* alive) {
  NSR_FORWARD(sphere_trace_secant, items, row, values, brackets, alive);
}

template <typename T>
void sphere_trace_secant_points(int64_t items, const int64_t* row, const T* origins, const T* directions,
                                const TraceBracket<T>* brackets, T* points) {
  NSR_FORWARD(sphere_trace_secant_points, items, row, origins, directions, brackets, points);
}

template <typename T>
void sphere_trace_scan(int64_t rays, int64_t samples, const T* values, const T* orientation, int64_t* crossing,
                       int64_t* minimum) {
  NSR_FORWARD(sphere_trace_scan, rays, samples, values, orientation, crossing, minimum);
}

template <typename T>
void patch_ncc(const PatchImages<T>& images, const PatchOptions& options, int64_t n, int64_t sources, const T* x,
               const T* normal, const T* pixels, const int64_t* view, const int64_t* source, T* ncc, bool* valid,
               T* jacobian_x, T* jacobian_normal) {
  NSR_FORWARD(patch_ncc, images, options, n, sources, x, normal, pixels, view, source, ncc, valid, jacobian_x,
              jacobian_normal);
}

void visual_hull_columns(int64_t views, int32_t height, int32_t width, const bool* masks, int16_t* columns) {
  NSR_FORWARD(visual_hull_columns, views, height, width, masks, columns);
}

template <typename T>
void visual_hull(const HullViews<T>& views, const HullRules& rules, int64_t resolution, const T* axis, bool* occupied) {
  NSR_FORWARD(visual_hull, views, rules, resolution, axis, occupied);
}

template <typename T>
void sdf_network(const SdfNetwork<T>& network, int64_t n, const T* x, T* sdf) {
  NSR_FORWARD_WITH_SCRATCH(sdf_network, network, n, x, sdf);
}

template <typename T>
void sdf_and_normal(const SdfNetwork<T>& network, int64_t n, const T* x, T* sdf, T* feature, T* gradient, T* kept) {
  NSR_FORWARD_WITH_SCRATCH(sdf_and_normal, network, n, x, sdf, feature, gradient, kept);
}

template <typename T>
void sdf_and_normal_bwd(const SdfNetwork<T>& network, int64_t n, int64_t entries, const T* x, const T* kept,
                        const SdfCotangents<T>& cotangents, const SdfGradients<T>& gradients) {
  NSR_FORWARD_WITH_SCRATCH(sdf_and_normal_bwd, network, n, entries, x, kept, cotangents, gradients);
}

template <typename T>
void trace_sdf_network(const SdfNetwork<T>& network, const TracePlan& plan, int64_t rays, const T* origins,
                       const T* directions, const bool* mask, T* distance, bool* hit, int32_t* evaluations) {
  NSR_FORWARD_WITH_SCRATCH(trace_sdf_network, network, plan, rays, origins, directions, mask, distance, hit, evaluations);
}

template <typename T>
void color_network(const ColorNetwork<T>& network, int64_t n, const ColorInputs<T>& inputs, T* rgb, T* kept) {
  NSR_FORWARD_WITH_SCRATCH(color_network, network, n, inputs, rgb, kept);
}

template <typename T>
void color_network_bwd(const ColorNetwork<T>& network, int64_t n, int64_t entries, const T* points, const T* kept,
                       const T* grad_rgb, const ColorGradients<T>& gradients) {
  NSR_FORWARD_WITH_SCRATCH(color_network_bwd, network, n, entries, points, kept, grad_rgb, gradients);
}

#define NSR_INSTANTIATE_READING(T, Entry)                                                                  \
  template void hash_grid_encode<T, Entry>(const HashGrid&, int64_t, const T*, const Entry*, T*, T*);      \
  template void hash_grid_contract<T, Entry>(const HashGrid&, int64_t, const T*, const Entry*, const T*,  \
                                             const T*, T*);
NSR_INSTANTIATE_READING(float, Half)
#define NSR_INSTANTIATE(T)                                                                                             \
  NSR_INSTANTIATE_READING(T, T)                                                                                        \
  template void hash_grid_scatter<T>(const HashGrid&, int64_t, int64_t, const T*, const T*, const T*, T*);             \
  template void adam_touched<T>(const AdamStep&, int64_t, T*, const T*, T*, T*);                                       \
  template void sphere_trace_start<T>(int64_t, const T*, const T*, double, const bool*, TraceState<T>*, TraceFlags*);  \
  template void sphere_trace_march<T>(const TraceOptions&, int64_t, const int64_t*, const T*, TraceState<T>*,          \
                                      TraceFlags*, bool*);                                                             \
  template void sphere_trace_points<T>(int64_t, const int64_t*, const T*, const T*, const TraceState<T>*, T*);         \
  template void sphere_trace_secant<T>(int64_t, const int64_t*, const T*, TraceBracket<T>*, bool*);                    \
  template void sphere_trace_secant_points<T>(int64_t, const int64_t*, const T*, const T*, const TraceBracket<T>*,     \
                                              T*);                                                                     \
  template void sphere_trace_scan<T>(int64_t, int64_t, const T*, const T*, int64_t*, int64_t*);                        \
  template void patch_ncc<T>(const PatchImages<T>&, const PatchOptions&, int64_t, int64_t, const T*, const T*,         \
                             const T*, const int64_t*, const int64_t*, T*, bool*, T*, T*);                             \
  template void visual_hull<T>(const HullViews<T>&, const HullRules&, int64_t, const T*, bool*);                        \
  template void sdf_network<T>(const SdfNetwork<T>&, int64_t, const T*, T*);                                           \
  template void sdf_and_normal<T>(const SdfNetwork<T>&, int64_t, const T*, T*, T*, T*, T*);                            \
  template void sdf_and_normal_bwd<T>(const SdfNetwork<T>&, int64_t, int64_t, const T*, const T*,                      \
                                      const SdfCotangents<T>&, const SdfGradients<T>&);                                \
  template void trace_sdf_network<T>(const SdfNetwork<T>&, const TracePlan&, int64_t, const T*, const T*, const bool*, \
                                     T*, bool*, int32_t*);                                                             \
  template void color_network<T>(const ColorNetwork<T>&, int64_t, const ColorInputs<T>&, T*, T*);                      \
  template void color_network_bwd<T>(const ColorNetwork<T>&, int64_t, int64_t, const T*, const T*, const T*,           \
                                     const ColorGradients<T>&);
NSR_INSTANTIATE(float)
NSR_INSTANTIATE(double)

}  // namespace nsr::cpu

extern "C" int64_t nsr_emulated_calls() { return nsr::cpu::calls; }
