// Sphere tracing as a state machine per ray: it asks for the SDF at one point (two when it marches from both ends),
// takes the value, and either asks again or ends. Nothing here knows who evaluates the SDF, so the wavefront ops of
// nsr.ops and a kernel with the network inside share it.
//
// Sources: Hart 1996 (sphere tracing); Keinert et al. 2014 (over-relaxation); Yariv et al. 2020, supplementary
// "ray-surface intersection" (both ends, line search, sampler, secant). All values are oriented: g = f if the ray
// starts outside the object, -f if it starts inside, so that a hit is always the first change of g from + to -.
#pragma once

#include <cmath>
#include <cstdint>

#include "hd.h"

namespace nsr {

struct TraceOptions {
  int32_t max_iterations;     // accepted steps per end
  int32_t line_search_steps;  // halvings of a step that overshot
  double threshold;           // |g| accepted as the surface; 0: only a sign change counts
  double relaxation;          // steps are this many times g
  double min_step;            // and at least this long
};

enum RayStatus : int32_t {
  kMarching = 0,
  kConverged = 1,   // |g| <= threshold at hi_t
  kBracketed = 2,   // g > 0 at from_t, g <= 0 at hi_t
  kMissed = 3,      // left the interval, or met NaN
  kUnfinished = 4,  // out of iterations; g > 0 at from_t, and the surface, if any, lies in [from_t, far]
  kPassed = 5,      // hit at hi_t; went on to look for the smallest SDF behind
  kOutside = 6,     // misses the bounding sphere
};

// One row of the state tensor. Distances are along the ray.
template <typename T>
struct TraceState {
  T near, exit;        // where the ray enters (0: starts within) and leaves the bounding sphere
  T t;                 // where the front asks for a value
  T from_t, from_g;    // last accepted sample of the front (behind a hit, from_g is the last SDF)
  T far;               // the surface lies before this: exit, or the last sample from the back
  T back_t;            // where the back asks for a value
  T back_from_t;       // last accepted sample of the back
  T best_t, best_f;    // smallest SDF met
  T hi_t, hi_g;        // the hit, or the end of its bracket
};

// One row of the flags tensor.
struct TraceFlags {
  int32_t status;
  int32_t orientation;  // 1 starts outside the object, -1 inside; 0 before the first value
  int32_t iterations, backtracks;
  int32_t seek_minimum;  // on a hit, go on to the smallest SDF behind it
  int32_t back_iterations, back_backtracks;
};

constexpr int kTraceStateColumns = 12;
constexpr int kTraceFlagColumns = 7;
static_assert(sizeof(TraceState<float>) == kTraceStateColumns * sizeof(float), "a row is a TraceState");
static_assert(sizeof(TraceFlags) == kTraceFlagColumns * sizeof(int32_t), "a row is a TraceFlags");

// Head on, the spheres of two samples just touch: rounding must not make that a gap.
constexpr double kTouching = 1.0001;

template <typename T>
NSR_HD T larger(T a, T b) {
  return a > b ? a : b;
}

// State of a ray before its first value. One that misses the sphere keeps its closest approach to the centre as best_t.
template <typename T>
NSR_HD void start_ray(const T o[3], const T d[3], T radius, bool seek_minimum, TraceState<T>& ray, TraceFlags& flags) {
  const T closest = -(o[0] * d[0] + o[1] * d[1] + o[2] * d[2]);
  const T px = o[0] + closest * d[0], py = o[1] + closest * d[1], pz = o[2] + closest * d[2];
  const T squared_half_chord = radius * radius - (px * px + py * py + pz * pz);
  const T half_chord = std::sqrt(larger(squared_half_chord, T(0)));
  ray = {};
  ray.near = larger(closest - half_chord, T(0));
  ray.exit = closest + half_chord;
  const bool meets = squared_half_chord >= T(0) && ray.exit > T(0);  // false for NaN
  ray.t = ray.from_t = ray.near;
  ray.far = ray.back_t = ray.back_from_t = ray.exit;
  ray.best_t = meets ? ray.near : (closest > T(0) ? closest : T(0));
  ray.best_f = T(INFINITY);
  flags = {};
  flags.status = meets ? kMarching : kOutside;
  flags.seek_minimum = seek_minimum;
}

template <typename T>
NSR_HD void note_value(TraceState<T>& ray, T t, T f) {
  if (f < ray.best_f) {
    ray.best_f = f;
    ray.best_t = t;
  }
}

// The next step of a ray behind its hit: on while the SDF falls, at most to the exit. Returns whether to go on.
template <typename T>
NSR_HD bool seek_minimum(const TraceOptions& options, TraceState<T>& ray, TraceFlags& flags, T f, bool falling) {
  ray.from_g = f;
  const T step = larger(larger(std::fabs(f), T(options.min_step)), T(1e-3));
  ray.t += step;
  return falling && flags.iterations++ < options.max_iterations && ray.t <= ray.exit;
}

// The surface lies at hi_t, or between from_t and it. Returns whether the ray goes on.
template <typename T>
NSR_HD bool end_at_hit(const TraceOptions& options, RayStatus status, TraceState<T>& ray, TraceFlags& flags, T f, T g) {
  ray.hi_t = ray.t;
  ray.hi_g = g;
  flags.status = flags.seek_minimum ? kPassed : status;
  return flags.seek_minimum && seek_minimum(options, ray, flags, f, true);
}

// Takes f = SDF(o + ray.t d) of the front. Returns whether to go on, at the new ray.t.
template <typename T>
NSR_HD bool advance_front(const TraceOptions& options, TraceState<T>& ray, TraceFlags& flags, T f) {
  if (flags.status == kPassed) {
    const bool falling = f < ray.from_g;  // false for NaN
    note_value(ray, ray.t, f);
    return seek_minimum(options, ray, flags, f, falling);
  }
  if (!(f == f)) {
    flags.status = kMissed;
    return false;
  }
  note_value(ray, ray.t, f);
  const bool first = flags.orientation == 0;
  if (first) flags.orientation = f < T(0) ? -1 : 1;
  const T g = f * T(flags.orientation);
  const T threshold = T(options.threshold), min_step = T(options.min_step);

  // Keinert et al. 2014: undo an over-relaxed step if the spheres of its two ends leave a gap, here of more than
  // min_step. The paper then marches the rest of the ray plainly; going on over-relaxed costs fewer evaluations with
  // that tolerance. A short step is longer than asked for by the rounding of t: undone, it would be the same again, for
  // ever.
  if (!first) {
    const T step = ray.t - ray.from_t, safe_step = larger(ray.from_g, min_step), safe_t = ray.from_t + safe_step;
    const bool too_long = step > T(kTouching) * safe_step && safe_t < ray.t;
    if (too_long && (std::fabs(g) + ray.from_g) * T(kTouching) + min_step < step) {
      ray.t = safe_t;
      return true;
    }
  }
  if (std::fabs(g) <= threshold) return end_at_hit(options, kConverged, ray, flags, f, g);
  if (g <= T(0)) {
    if (flags.backtracks++ >= options.line_search_steps) return end_at_hit(options, kBracketed, ray, flags, f, g);
    ray.t = ray.from_t + T(0.5) * (ray.t - ray.from_t);
    return true;
  }
  ray.from_t = ray.t;
  ray.from_g = g;
  flags.backtracks = 0;
  if (flags.iterations++ >= options.max_iterations) {
    flags.status = kUnfinished;
    return false;
  }
  ray.t = ray.from_t + larger(T(options.relaxation) * g, min_step);
  if (ray.t > ray.far) ray.t = ray.from_t + larger(g, min_step);  // only a safe step may leave the interval
  if (ray.t <= ray.far) return true;
  flags.status = kMissed;
  return false;
}

// Takes f = SDF(o + ray.back_t d) of the back, which marches against the ray. Returns whether to go on, at ray.back_t.
// A ray that starts inside looks for where it leaves, and that is where its back would end: it has none.
template <typename T>
NSR_HD bool advance_back(const TraceOptions& options, TraceState<T>& ray, TraceFlags& flags, T f) {
  if (!(f == f)) return false;
  note_value(ray, ray.back_t, f);
  if (flags.orientation < 0) return false;
  ray.far = ray.back_t;
  if (std::fabs(f) <= T(options.threshold)) return false;
  if (f <= T(0)) {
    if (flags.back_iterations == 0 || flags.back_backtracks++ >= options.line_search_steps) return false;
    ray.back_t = ray.back_from_t + T(0.5) * (ray.back_t - ray.back_from_t);
    return true;
  }
  ray.back_from_t = ray.back_t;
  flags.back_backtracks = 0;
  if (flags.back_iterations++ >= options.max_iterations) return false;
  ray.back_t -= f;
  return true;
}

// What a wavefront evaluates: item 2 r asks for the front of ray r, item 2 r + 1 for its back, in ascending order. A
// ray ends with its front, so the item after a front is its own back or belongs to another ray. Handles the front `i`
// and its back.
template <typename T>
NSR_HD void advance_item(const TraceOptions& options, int64_t i, int64_t items, const int64_t* item, const T* values,
                         TraceState<T>* state, TraceFlags* flags, bool* alive) {
  const int64_t r = item[i] / 2;
  const bool has_back = i + 1 < items && item[i + 1] == item[i] + 1;
  const bool back_goes_on = has_back && advance_back(options, state[r], flags[r], values[i + 1]);
  alive[i] = advance_front(options, state[r], flags[r], values[i]);
  if (has_back) alive[i + 1] = back_goes_on && alive[i] && flags[r].status == kMarching;
}

// One row of the bracket tensor: g > 0 at lo_t, g <= 0 at hi_t, and where the next value is wanted.
template <typename T>
struct TraceBracket {
  T lo_t, lo_g, hi_t, hi_g, t;
  T side;         // which end the last value replaced: -1 lo, 1 hi, 0 none yet
  T orientation;  // g = orientation * f
};

constexpr int kTraceBracketColumns = 7;
static_assert(sizeof(TraceBracket<float>) == kTraceBracketColumns * sizeof(float), "a row is a TraceBracket");

// Values of at most this count as zero: the noise of an SDF of size 1 in float32 is a few times smaller.
constexpr double kSecantTolerance = 1e-6;

// Zero of the chord, or the middle where the values are no help (infinite, or both zero).
template <typename T>
NSR_HD void aim_secant(TraceBracket<T>& bracket) {
  const T t = bracket.lo_t + (bracket.hi_t - bracket.lo_t) * (bracket.lo_g / (bracket.lo_g - bracket.hi_g));
  const bool inside = t >= bracket.lo_t && t <= bracket.hi_t;  // false for NaN
  bracket.t = inside ? t : T(0.5) * (bracket.lo_t + bracket.hi_t);
}

// Takes f = SDF(o + bracket.t d): regula falsi, with the Illinois rule (Dowell and Jarratt 1971) that halves the value
// of an end which stays for a second time. Returns whether another value may improve bracket.t.
template <typename T>
NSR_HD bool advance_secant(TraceBracket<T>& bracket, T f) {
  const T g = f * bracket.orientation;
  if (!(std::fabs(g) > T(kSecantTolerance))) return false;  // also NaN
  if (g > T(0)) {
    bracket.lo_t = bracket.t;
    bracket.lo_g = g;
    if (bracket.side < T(0)) bracket.hi_g *= T(0.5);
    bracket.side = T(-1);
  } else {
    bracket.hi_t = bracket.t;
    bracket.hi_g = g;
    if (bracket.side > T(0)) bracket.lo_g *= T(0.5);
    bracket.side = T(1);
  }
  aim_secant(bracket);
  return true;
}

// First k >= 1 where oriented samples change from + to - (`samples` if none), and where the SDF is smallest (NaN
// ignored).
template <typename T>
NSR_HD void scan_samples(const T* f, int64_t samples, T orientation, int64_t& crossing, int64_t& minimum) {
  crossing = samples;
  minimum = 0;
  T smallest = T(INFINITY);
  for (int64_t k = 0; k < samples; ++k) {
    if (k > 0 && crossing == samples && f[k - 1] * orientation > T(0) && f[k] * orientation <= T(0)) crossing = k;
    if (f[k] < smallest) {
      smallest = f[k];
      minimum = k;
    }
  }
}

}  // namespace nsr
