// One ray from its start to its result, as a program that asks for one SDF value at a time: the phases of
// nsr.ops.sphere_trace.trace (march from one or both ends, sampler, secant search, smallest SDF) around the state
// machine of sphere_trace.h, in the same order, so both find the same but for rounding; that tracer is its
// specification. A kernel that has the network at hand runs many such programs in its lanes or threads; none depends on
// another.
#pragma once

#include <cmath>
#include <cstdint>

#include "hd.h"
#include "sphere_trace.h"

namespace nsr {

// nsr.ops.sphere_trace.TraceOptions, where each is documented. with_mask: whether rays come with an object mask.
struct TracePlan {
  TraceOptions march;
  double radius;
  bool both_ends, with_mask;
  int32_t sampler_steps, secant_steps, min_sdf_samples;
};

enum TracePhase : int32_t { kAtBack, kAtFront, kSampling, kSecant, kSearching, kFinished };

template <typename T>
struct RayProgram {
  TraceState<T> state;
  TraceFlags flags;
  TraceBracket<T> bracket;
  TracePhase phase;
  T t;                   // where the SDF is wanted next, until kFinished
  bool in_mask;          // true where there is no mask
  bool back_marches;     // the back has a value to ask for
  bool sampled;          // the sampler has looked for the smallest SDF already
  int32_t count;         // samples or secant steps taken in this phase
  int32_t evaluations;
  T begin, end;          // of the samples
  T previous_t, previous_g;  // the sample before this one
  bool crossed;          // a change of sign was met
  T hit_distance;
};

template <typename T>
NSR_HD bool ray_hits(const RayProgram<T>& ray) {
  return ray.flags.status == kConverged || ray.flags.status == kBracketed || ray.flags.status == kPassed;
}

// SurfaceHits.distance.
template <typename T>
NSR_HD T ray_distance(const RayProgram<T>& ray) {
  return ray_hits(ray) && ray.in_mask ? ray.hit_distance : ray.state.best_t;
}

template <typename T>
NSR_HD T sample_distance(const RayProgram<T>& ray, int32_t samples) {
  return ray.begin + (ray.end - ray.begin) * (T(ray.count) / T(samples - 1));
}

template <typename T>
NSR_HD void start_samples(TracePhase phase, T begin, T end, int32_t samples, RayProgram<T>& ray) {
  ray.phase = phase;
  ray.count = 0;
  ray.begin = begin;
  ray.end = end;
  ray.crossed = false;
  ray.t = sample_distance(ray, samples);
}

template <typename T>
NSR_HD void enter_search(const TracePlan& plan, RayProgram<T>& ray) {
  const bool hit = ray_hits(ray);
  ray.phase = kFinished;
  if (!plan.with_mask || plan.min_sdf_samples == 0 || (hit && ray.in_mask) || ray.sampled) return;
  start_samples(kSearching, hit ? ray.state.hi_t : ray.state.near, ray.state.exit, plan.min_sdf_samples, ray);
}

template <typename T>
NSR_HD void enter_secant(const TracePlan& plan, RayProgram<T>& ray) {
  if (ray.flags.status != kBracketed || !ray.in_mask) return enter_search(plan, ray);
  const TraceState<T>& s = ray.state;
  ray.bracket = {s.from_t, s.from_g, s.hi_t, s.hi_g, s.from_t, T(0), T(ray.flags.orientation)};
  aim_secant(ray.bracket);
  ray.hit_distance = ray.t = ray.bracket.t;
  ray.count = 0;
  ray.phase = kSecant;
  if (plan.secant_steps == 0) enter_search(plan, ray);
}

template <typename T>
NSR_HD void leave_march(const TracePlan& plan, RayProgram<T>& ray) {
  ray.hit_distance = ray.state.hi_t;
  if (ray.flags.status != kUnfinished || plan.sampler_steps == 0) return enter_secant(plan, ray);
  start_samples(kSampling, ray.state.from_t, ray.state.far, plan.sampler_steps, ray);
}

// The end that speaks next: the back first, as in advance_item.
template <typename T>
NSR_HD void ask_for_march(RayProgram<T>& ray) {
  ray.phase = ray.back_marches ? kAtBack : kAtFront;
  ray.t = ray.back_marches ? ray.state.back_t : ray.state.t;
}

template <typename T>
NSR_HD void start_program(const TracePlan& plan, const T o[3], const T d[3], bool in_mask, RayProgram<T>& ray) {
  ray.in_mask = in_mask;
  ray.sampled = false;
  ray.evaluations = 0;
  const bool seek_minimum = plan.with_mask && !in_mask && plan.min_sdf_samples == 0;
  start_ray(o, d, T(plan.radius), seek_minimum, ray.state, ray.flags);
  ray.hit_distance = ray.state.hi_t;
  ray.back_marches = plan.both_ends;
  if (ray.flags.status == kMarching)
    ask_for_march(ray);
  else
    ray.phase = kFinished;
}

template <typename T>
NSR_HD void advance_march(const TracePlan& plan, T f, RayProgram<T>& ray) {
  if (ray.phase == kAtBack) {
    ray.back_marches = advance_back(plan.march, ray.state, ray.flags, f);
    ray.phase = kAtFront;
    ray.t = ray.state.t;
    return;
  }
  if (!advance_front(plan.march, ray.state, ray.flags, f)) return leave_march(plan, ray);
  ray.back_marches = ray.back_marches && ray.flags.status == kMarching;
  ask_for_march(ray);
}

// All samples are looked at, also those behind the first change of sign: the smallest of them may be wanted.
template <typename T>
NSR_HD void advance_sampler(const TracePlan& plan, T f, RayProgram<T>& ray) {
  const T g = f * T(ray.flags.orientation);
  if (ray.count > 0 && !ray.crossed && ray.previous_g > T(0) && g <= T(0)) {
    ray.crossed = true;
    ray.state.from_t = ray.previous_t;
    ray.state.from_g = ray.previous_g;
    ray.state.hi_t = ray.t;
    ray.state.hi_g = g;
  }
  note_value(ray.state, ray.t, f);
  ray.previous_t = ray.t;
  ray.previous_g = g;
  ++ray.count;
  ray.t = sample_distance(ray, plan.sampler_steps);
  if (ray.count < plan.sampler_steps) return;
  ray.flags.status = ray.crossed ? kBracketed : kMissed;
  ray.sampled = true;
  enter_secant(plan, ray);
}

template <typename T>
NSR_HD void advance_refinement(const TracePlan& plan, T f, RayProgram<T>& ray) {
  const bool more = advance_secant(ray.bracket, f);
  ray.hit_distance = ray.t = ray.bracket.t;
  if (!more || ++ray.count >= plan.secant_steps) enter_search(plan, ray);
}

template <typename T>
NSR_HD void advance_search(const TracePlan& plan, T f, RayProgram<T>& ray) {
  note_value(ray.state, ray.t, f);
  ++ray.count;
  ray.t = sample_distance(ray, plan.min_sdf_samples);
  if (ray.count >= plan.min_sdf_samples) ray.phase = kFinished;
}

// Takes f = SDF(o + ray.t d). Then ray.t is where the next value is wanted, unless ray.phase is kFinished.
template <typename T>
NSR_HD void advance_program(const TracePlan& plan, T f, RayProgram<T>& ray) {
  ++ray.evaluations;
  if (ray.phase <= kAtFront)
    advance_march(plan, f, ray);
  else if (ray.phase == kSampling)
    advance_sampler(plan, f, ray);
  else if (ray.phase == kSecant)
    advance_refinement(plan, f, ray);
  else
    advance_search(plan, f, ray);
}

// The rays [rays, 3] of one call with their masks (null: all inside), and where their results [rays] go.
template <typename T>
struct TracedRays {
  int64_t rays;
  const T* origins;
  const T* directions;
  const bool* mask;
  T* distance;
  bool* hit;
  int32_t* evaluations;

  NSR_HD void start(const TracePlan& plan, int64_t r, RayProgram<T>& ray) const {
    start_program(plan, origins + 3 * r, directions + 3 * r, !mask || mask[r], ray);
  }
  // Coordinate d of where the ray wants its next value.
  NSR_HD T coordinate(int64_t r, const RayProgram<T>& ray, int d) const {
    return origins[3 * r + d] + ray.t * directions[3 * r + d];
  }
  NSR_HD void finish(int64_t r, const RayProgram<T>& ray) const {
    distance[r] = ray_distance(ray);
    hit[r] = ray_hits(ray);
    evaluations[r] = ray.evaluations;
  }
};

}  // namespace nsr
