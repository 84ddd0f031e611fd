// sin and cos of one number at once, in plain arithmetic that compilers spread over SIMD lanes.
//
// z = k pi/2 + r with |r| <= pi/4, and Taylor's series of both at r. pi/2 is subtracted in three parts, the first two short
// enough for their multiples by k to be exact: in float, results are right to 2e-7 for |z| < 1e4, and beyond that where
// products and sums are rounded once (fused).
#pragma once

#include <cmath>

#include "hd.h"

namespace nsr {

template <typename T>
struct SineCosine {
  T sine, cosine;
};

// 1 - x/(a (a + 1)) (1 - x/((a + 2)(a + 3)) (...)), kTerms of them. Recursive: a loop would keep compilers from SIMD lanes.
template <int kTerms, int a, typename T>
NSR_HD T alternating_series(T x) {
  if constexpr (kTerms == 0)
    return T(1);
  else
    return T(1) - x * T(1.0 / (a * (a + 1))) * alternating_series<kTerms - 1, a + 2>(x);
}

template <typename T>
NSR_HD SineCosine<T> sine_cosine(T z) {
  constexpr bool kFloat = sizeof(T) == 4;
  constexpr T kHigh = kFloat ? T(1.5703125) : T(1.570796325802803);
  constexpr T kMiddle = kFloat ? T(0.0004837512969970703) : T(9.92093579597203e-10);
  constexpr T kLow = kFloat ? T(7.549789954891882e-8) : T(8.333742918520879e-20);
  constexpr int kTerms = kFloat ? 5 : 9;
  const T k = std::floor(z * T(0.63661977236758134308) + T(0.5));
  const T r = ((z - k * kHigh) - k * kMiddle) - k * kLow;
  const T square = r * r;
  const T sine = r * alternating_series<kTerms, 2>(square), cosine = alternating_series<kTerms, 1>(square);
  const T quadrant = k - T(4) * std::floor(k * T(0.25));
  const bool odd = quadrant == T(1) || quadrant == T(3);
  const T first = odd ? cosine : sine, second = odd ? sine : cosine;
  return {quadrant >= T(2) ? -first : first, quadrant == T(1) || quadrant == T(2) ? -second : second};
}

}  // namespace nsr
