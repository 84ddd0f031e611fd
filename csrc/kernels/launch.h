// What cpu/ and cuda/ export to torch/: plain pointers to contiguous arrays, T in {float, double}.
//
// nsr::cpu works on host pointers with parallel_for; nsr::cuda enqueues on `stream` (a cudaStream_t) and returns at
// once.
#pragma once

#include <cstdint>

#include "adam.h"
#include "color_network.h"
#include "half.h"
#include "hash_grid.h"
#include "patch_ncc.h"
#include "sdf_network.h"
#include "sphere_trace.h"
#include "trace_ray.h"
#include "visual_hull.h"

namespace nsr {

constexpr int kLanes = 16;  // points per tile of what a network's forward pass keeps, and on the CPU of its arithmetic

}  // namespace nsr

namespace nsr::cpu {

// h [n, levels * features] and, unless null, jacobian [n, levels * features, 3]. Entry: T, or Half where T is float.
template <typename T, typename Entry>
void hash_grid_encode(const HashGrid& grid, int64_t n, const T* x, const Entry* table, T* h, T* jacobian);

// grad_x [n, 3] = d/dx sum(grad_h h + grad_jacobian J); either cotangent may be null.
template <typename T, typename Entry>
void hash_grid_contract(const HashGrid& grid, int64_t n, const T* x, const Entry* table, const T* grad_h,
                        const T* grad_jacobian, T* grad_x);

// grad_table [entries, features] = d/dtable sum(grad_h h + grad_jacobian J), written whole (need not be zeroed before).
template <typename T>
void hash_grid_scatter(const HashGrid& grid, int64_t n, int64_t entries, const T* x, const T* grad_h,
                       const T* grad_jacobian, T* grad_table);

// One step on n entries.
template <typename T>
void adam_touched(const AdamStep& step, int64_t n, T* value, const T* gradient, T* mean, T* square);

// The wavefront tracer: see kernels/sphere_trace.h for the rows of `state`, `flags` and `brackets`, and for `item`.
// seek_minimum may be null (false for all rays).
template <typename T>
void sphere_trace_start(int64_t rays, const T* origins, const T* directions, double radius, const bool* seek_minimum,
                        TraceState<T>* state, TraceFlags* flags);

// Takes values [items]; writes which items go on.
template <typename T>
void sphere_trace_march(const TraceOptions& options, int64_t items, const int64_t* item, const T* values,
                        TraceState<T>* state, TraceFlags* flags, bool* alive);

// points [items, 3] where the items ask for a value.
template <typename T>
void sphere_trace_points(int64_t items, const int64_t* item, const T* origins, const T* directions,
                         const TraceState<T>* state, T* points);

// Takes values [items] of the brackets `row`, and writes which go on; values null: aims only.
template <typename T>
void sphere_trace_secant(int64_t items, const int64_t* row, const T* values, TraceBracket<T>* brackets, bool* alive);

template <typename T>
void sphere_trace_secant_points(int64_t items, const int64_t* row, const T* origins, const T* directions,
                                const TraceBracket<T>* brackets, T* points);

// values [rays, samples] -> crossing [rays], minimum [rays]: see scan_samples.
template <typename T>
void sphere_trace_scan(int64_t rays, int64_t samples, const T* values, const T* orientation, int64_t* crossing,
                       int64_t* minimum);

// ncc, valid [n, sources] and, unless null, the derivatives of ncc: jacobian_x, jacobian_normal [n, sources, 3].
// x, normal [n, 3]; pixels [n, 2]; view [n]; source [n, sources]: a view out of range makes its pairs invalid.
template <typename T>
void patch_ncc(const PatchImages<T>& images, const PatchOptions& options, int64_t n, int64_t sources, const T* x,
               const T* normal, const T* pixels, const int64_t* view, const int64_t* source, T* ncc, bool* valid,
               T* jacobian_x, T* jacobian_normal);

// masks -> columns [views, height, width]: see kernels/visual_hull.h.
void visual_hull_columns(int64_t views, int32_t height, int32_t width, const bool* masks, int16_t* columns);

// occupied [resolution, resolution, resolution], axis [resolution] ascending.
template <typename T>
void visual_hull(const HullViews<T>& views, const HullRules& rules, int64_t resolution, const T* axis, bool* occupied);

// sdf [n].
template <typename T>
void sdf_network(const SdfNetwork<T>& network, int64_t n, const T* x, T* sdf);

// sdf [n], feature [n, outputs - 1], gradient [n, 3] = d sdf / d x. kept [tiles of kLanes points, network.kept(),
// kLanes] is for the backward pass; null: not wanted.
template <typename T>
void sdf_and_normal(const SdfNetwork<T>& network, int64_t n, const T* x, T* sdf, T* feature, T* gradient, T* kept);

// `entries` of the table.
template <typename T>
void sdf_and_normal_bwd(const SdfNetwork<T>& network, int64_t n, int64_t entries, const T* x, const T* kept,
                        const SdfCotangents<T>& cotangents, const SdfGradients<T>& gradients);

// One program of kernels/trace_ray.h per ray. mask may be null. distance, hit, evaluations: [rays].
template <typename T>
void trace_sdf_network(const SdfNetwork<T>& network, const TracePlan& plan, int64_t rays, const T* origins,
                       const T* directions, const bool* mask, T* distance, bool* hit, int32_t* evaluations);

// rgb [n, 3]. kept as for sdf_and_normal.
template <typename T>
void color_network(const ColorNetwork<T>& network, int64_t n, const ColorInputs<T>& inputs, T* rgb, T* kept);

// `entries` of the table; points as the forward pass had them.
template <typename T>
void color_network_bwd(const ColorNetwork<T>& network, int64_t n, int64_t entries, const T* points, const T* kept,
                       const T* grad_rgb, const ColorGradients<T>& gradients);

}  // namespace nsr::cpu

namespace nsr::cuda {

template <typename T, typename Entry>
void hash_grid_encode(void* stream, const HashGrid& grid, int64_t n, const T* x, const Entry* table, T* h, T* jacobian);

template <typename T, typename Entry>
void hash_grid_contract(void* stream, const HashGrid& grid, int64_t n, const T* x, const Entry* table, const T* grad_h,
                        const T* grad_jacobian, T* grad_x);

template <typename T>
void adam_touched(void* stream, const AdamStep& step, int64_t n, T* value, const T* gradient, T* mean, T* square);

template <typename T>
void sphere_trace_start(void* stream, int64_t rays, const T* origins, const T* directions, double radius,
                        const bool* seek_minimum, TraceState<T>* state, TraceFlags* flags);

template <typename T>
void sphere_trace_march(void* stream, const TraceOptions& options, int64_t items, const int64_t* item, const T* values,
                        TraceState<T>* state, TraceFlags* flags, bool* alive);

template <typename T>
void sphere_trace_points(void* stream, int64_t items, const int64_t* item, const T* origins, const T* directions,
                         const TraceState<T>* state, T* points);

template <typename T>
void sphere_trace_secant(void* stream, int64_t items, const int64_t* row, const T* values, TraceBracket<T>* brackets,
                         bool* alive);

template <typename T>
void sphere_trace_secant_points(void* stream, int64_t items, const int64_t* row, const T* origins, const T* directions,
                                const TraceBracket<T>* brackets, T* points);

template <typename T>
void sphere_trace_scan(void* stream, int64_t rays, int64_t samples, const T* values, const T* orientation,
                       int64_t* crossing, int64_t* minimum);

template <typename T>
void patch_ncc(void* stream, const PatchImages<T>& images, const PatchOptions& options, int64_t n, int64_t sources,
               const T* x, const T* normal, const T* pixels, const int64_t* view, const int64_t* source, T* ncc,
               bool* valid, T* jacobian_x, T* jacobian_normal);

void visual_hull_columns(void* stream, int64_t views, int32_t height, int32_t width, const bool* masks,
                         int16_t* columns);

template <typename T>
void visual_hull(void* stream, const HullViews<T>& views, const HullRules& rules, int64_t resolution, const T* axis,
                 bool* occupied);

// These take `scratch` of so many bytes as their _scratch says for the same arguments; -1: the network is too wide for the
// shared memory of the device.
#define NSR_WITH_SCRATCH(op, ...)          \
  template <typename T>                    \
  int64_t op##_scratch(__VA_ARGS__);       \
  template <typename T>                    \
  void op(void* stream, __VA_ARGS__, void* scratch);

NSR_WITH_SCRATCH(hash_grid_scatter, const HashGrid& grid, int64_t n, int64_t entries, const T* x, const T* grad_h,
                 const T* grad_jacobian, T* grad_table)
NSR_WITH_SCRATCH(sdf_network, const SdfNetwork<T>& network, int64_t n, const T* x, T* sdf)
NSR_WITH_SCRATCH(sdf_and_normal, const SdfNetwork<T>& network, int64_t n, const T* x, T* sdf, T* feature, T* gradient,
                 T* kept)
NSR_WITH_SCRATCH(sdf_and_normal_bwd, const SdfNetwork<T>& network, int64_t n, int64_t entries, const T* x,
                 const T* kept, const SdfCotangents<T>& cotangents, const SdfGradients<T>& gradients)
NSR_WITH_SCRATCH(trace_sdf_network, const SdfNetwork<T>& network, const TracePlan& plan, int64_t rays,
                 const T* origins, const T* directions, const bool* mask, T* distance, bool* hit, int32_t* evaluations)
NSR_WITH_SCRATCH(color_network, const ColorNetwork<T>& network, int64_t n, const ColorInputs<T>& inputs, T* rgb,
                 T* kept)
NSR_WITH_SCRATCH(color_network_bwd, const ColorNetwork<T>& network, int64_t n, int64_t entries, const T* points,
                 const T* kept, const T* grad_rgb, const ColorGradients<T>& gradients)
#undef NSR_WITH_SCRATCH

}  // namespace nsr::cuda
