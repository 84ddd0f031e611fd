// Real spherical harmonics of a unit direction (x, y, z), bands 2 and 3, as nsr/encoders/spherical_harmonics.py orders
// and normalises them (Ramamoorthi & Hanrahan 2001, eq. 3), and the gradient of a weighted sum of each band.
#pragma once

#include "hd.h"

namespace nsr {

constexpr int kMaxHarmonicsDegree = 3;

// Without the constant; the direction itself stands for band 1.
NSR_HD int harmonics_count(int degree) { return (degree + 1) * (degree + 1) - 1; }

template <typename T>
struct HarmonicsGradient {
  T x, y, z;
};

template <typename T>
struct HarmonicsBand2 {
  T h0, h1, h2, h3, h4;
};

template <typename T>
struct HarmonicsBand3 {
  T h0, h1, h2, h3, h4, h5, h6;
};

template <typename T>
NSR_HD HarmonicsBand2<T> harmonics_band_2(T x, T y, T z) {
  const T a = T(1.0925484305920792), b = T(0.31539156525252005), c = T(0.5462742152960396);
  return {a * x * y, a * y * z, b * (T(2) * z * z - x * x - y * y), a * x * z, c * (x * x - y * y)};
}

// d/d(x, y, z) of sum_k g_k h_k.
template <typename T>
NSR_HD HarmonicsGradient<T> harmonics_band_2_vjp(T x, T y, T z, HarmonicsBand2<T> g) {
  const T a = T(1.0925484305920792), b = T(2 * 0.31539156525252005), c = T(2 * 0.5462742152960396);
  return {a * (g.h0 * y + g.h3 * z) + (c * g.h4 - b * g.h2) * x, a * (g.h0 * x + g.h1 * z) - (c * g.h4 + b * g.h2) * y,
          a * (g.h1 * y + g.h3 * x) + T(2) * b * g.h2 * z};
}

template <typename T>
NSR_HD HarmonicsBand3<T> harmonics_band_3(T x, T y, T z) {
  const T a = T(0.5900435899266435), b = T(2.890611442640554), c = T(0.4570457994644658);
  const T e = T(0.3731763325901154), f = T(1.445305721320277);
  const T xx = x * x, yy = y * y, zz = z * z;
  return {a * y * (T(3) * xx - yy),
          b * x * y * z,
          c * y * (T(4) * zz - xx - yy),
          e * z * (T(2) * zz - T(3) * xx - T(3) * yy),
          c * x * (T(4) * zz - xx - yy),
          f * z * (xx - yy),
          a * x * (xx - T(3) * yy)};
}

template <typename T>
NSR_HD HarmonicsGradient<T> harmonics_band_3_vjp(T x, T y, T z, HarmonicsBand3<T> g) {
  const T a = T(3 * 0.5900435899266435), b = T(2.890611442640554), c = T(0.4570457994644658);
  const T e = T(3 * 0.3731763325901154), f = T(1.445305721320277);
  const T xx = x * x, yy = y * y, zz = z * z, xy = x * y, xz = x * z, yz = y * z;
  return {a * (T(2) * g.h0 * xy + g.h6 * (xx - yy)) + b * g.h1 * yz +
              c * (g.h4 * (T(4) * zz - T(3) * xx - yy) - T(2) * g.h2 * xy) + T(2) * xz * (f * g.h5 - e * g.h3),
          a * (g.h0 * (xx - yy) - T(2) * g.h6 * xy) + b * g.h1 * xz +
              c * (g.h2 * (T(4) * zz - xx - T(3) * yy) - T(2) * g.h4 * xy) - T(2) * yz * (f * g.h5 + e * g.h3),
          b * g.h1 * xy + T(8) * c * (g.h2 * yz + g.h4 * xz) + e * g.h3 * (T(2) * zz - xx - yy) +
              f * g.h5 * (xx - yy)};
}

// set(k, Y_k) for the bands from 2 up to the degree; the direction's own numbers are k = 0, 1, 2.
template <typename T, typename Set>
NSR_HD void harmonics_beyond_direction(int degree, T x, T y, T z, const Set& set) {
  if (degree >= 2) {
    const HarmonicsBand2<T> band = harmonics_band_2(x, y, z);
    set(3, band.h0);
    set(4, band.h1);
    set(5, band.h2);
    set(6, band.h3);
    set(7, band.h4);
  }
  if (degree >= 3) {
    const HarmonicsBand3<T> band = harmonics_band_3(x, y, z);
    set(8, band.h0);
    set(9, band.h1);
    set(10, band.h2);
    set(11, band.h3);
    set(12, band.h4);
    set(13, band.h5);
    set(14, band.h6);
  }
}

// d/d(x, y, z) of sum_k get(k) Y_k over all bands up to the degree, from 1 on.
template <typename T, typename Get>
NSR_HD HarmonicsGradient<T> harmonics_vjp(int degree, T x, T y, T z, const Get& get) {
  HarmonicsGradient<T> sum{get(0), get(1), get(2)};
  if (degree >= 2) {
    const HarmonicsGradient<T> g =
        harmonics_band_2_vjp(x, y, z, HarmonicsBand2<T>{get(3), get(4), get(5), get(6), get(7)});
    sum = {sum.x + g.x, sum.y + g.y, sum.z + g.z};
  }
  if (degree >= 3) {
    const HarmonicsGradient<T> g = harmonics_band_3_vjp(
        x, y, z, HarmonicsBand3<T>{get(8), get(9), get(10), get(11), get(12), get(13), get(14)});
    sum = {sum.x + g.x, sum.y + g.y, sum.z + g.z};
  }
  return sum;
}

}  // namespace nsr
