// Numbers of 16 bits (IEEE binary16) as tables may store them. Nothing is computed with them: they become floats when read.
#pragma once

#include <cmath>
#include <cstdint>

#include "hd.h"

namespace nsr {

struct Half {
  uint16_t bits;
};

NSR_HD float number(Half half) {
  const int exponent = half.bits >> 10 & 31, mantissa = half.bits & 1023;
  const float magnitude = exponent == 31  ? (mantissa ? float(NAN) : float(INFINITY))
                          : exponent == 0 ? std::ldexp(float(mantissa), -24)
                                          : std::ldexp(float(mantissa + 1024), exponent - 25);
  return half.bits >> 15 ? -magnitude : magnitude;
}
NSR_HD float number(float value) { return value; }
NSR_HD double number(double value) { return value; }

}  // namespace nsr
