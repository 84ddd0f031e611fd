// Photometric consistency of a surface point: the zero-mean normalised cross-correlation (NCC) of the P x P pixels around
// it in a reference view with the places of the point's tangent plane that they show, looked up in a source view.
//
// With o_j = (a, b) the offset of a pixel from the patch's centre p, d_j = M (p + o_j, 1) its ray from the reference
// camera's centre c, and A = K R^T, c_s of the source (plane-induced warp: Hartley and Zisserman 2004, section 13.1):
//     t_j = n.(x - c) / n.d_j        X_j = c + t_j d_j        (u_j, v_j, 1) ~ A (X_j - c_s)
// Written from the point X_0 of the central ray, so that float32 does not lose the patch in the distance of the camera:
//     X_j = X_0 + t_j (a e_a + b e_b),   e_k = M_k - d_0 n.M_k / n.d_0   (both in the plane).
// The plane moves along the rays only, so one number per sample, s_j, carries both derivatives of its value G_j:
//     dX_j/dx = d_j n^T / n.d_j,   dX_j/dn = d_j (x - X_j)^T / n.d_j
//     s_j = grad G_j . d(u_j, v_j)/dX d_j / n.d_j,   dG_j/dx = s_j n,   dG_j/dn = s_j (x - X_j).
#pragma once

#include <cmath>
#include <cstdint>

#include "hd.h"

namespace nsr {

constexpr int kMaxPatch = 11;  // pixels on a side
constexpr double kMinPatchCosine = 0.01;  // between -n and the rays of a patch: a plane closer to edge-on is not compared

// V views of one size.
template <typename T>
struct PatchImages {
  const T* images;        // [V, H, W] grey values, NaN where there is nothing to compare
  const T* ray_matrices;  // [V, 3, 3] M = R K^-1
  const T* projections;   // [V, 3, 3] A = K R^T
  const T* centers;       // [V, 3]
  int64_t views;
  int32_t height, width;

  NSR_HD bool has(int64_t view) const { return view >= 0 && view < views; }
  NSR_HD const T* image(int64_t view) const { return images + view * height * width; }
};

struct PatchOptions {
  int32_t patch;          // P, odd
  double variance_floor;  // added to both variances
  double min_std;         // least standard deviation of the reference patch
};

template <typename T>
struct Vec3 {
  T x, y, z;

  NSR_HD Vec3 operator+(Vec3 o) const { return {x + o.x, y + o.y, z + o.z}; }
  NSR_HD Vec3 operator-(Vec3 o) const { return {x - o.x, y - o.y, z - o.z}; }
  NSR_HD Vec3 operator*(T s) const { return {x * s, y * s, z * s}; }
  NSR_HD T dot(Vec3 o) const { return x * o.x + y * o.y + z * o.z; }
};

template <typename T>
NSR_HD Vec3<T> load_vec3(const T* from, int stride = 1) {
  return {from[0], from[stride], from[2 * stride]};
}

template <typename T>
NSR_HD Vec3<T> multiply(const T* matrix, Vec3<T> v) {
  return {load_vec3(matrix).dot(v), load_vec3(matrix + 3).dot(v), load_vec3(matrix + 6).dot(v)};
}

// The tangent plane of a point as the rays of its reference view meet it.
template <typename T>
struct TangentPlane {
  Vec3<T> point, normal;
  Vec3<T> ray, ray_a, ray_b;     // d_j = ray + a ray_a + b ray_b
  T slope, slope_a, slope_b;     // n.d_j
  T height;                      // n.(x - c), negative when the camera is in front of the plane
  T edge_on;                     // n.d_j from which on the plane counts as edge-on or seen from behind
  Vec3<T> meets, along_a, along_b;  // X_0, e_a, e_b

  NSR_HD bool visible() const { return height < T(0) && slope < edge_on; }  // false for NaN
};

template <typename T>
NSR_HD TangentPlane<T> plane_of_point(const T* x, const T* normal, const T* pixel, const T* ray_matrix,
                                      const T* center) {
  TangentPlane<T> p;
  p.point = load_vec3(x);
  p.normal = load_vec3(normal);
  p.ray_a = load_vec3(ray_matrix, 3);
  p.ray_b = load_vec3(ray_matrix + 1, 3);
  p.ray = p.ray_a * pixel[0] + p.ray_b * pixel[1] + load_vec3(ray_matrix + 2, 3);
  p.slope = p.normal.dot(p.ray);
  p.slope_a = p.normal.dot(p.ray_a);
  p.slope_b = p.normal.dot(p.ray_b);
  p.height = p.normal.dot(p.point - load_vec3(center));
  p.edge_on = -T(kMinPatchCosine) * std::sqrt(p.normal.dot(p.normal) * p.ray.dot(p.ray));
  p.meets = load_vec3(center) + p.ray * (p.height / p.slope);
  p.along_a = p.ray_a - p.ray * (p.slope_a / p.slope);
  p.along_b = p.ray_b - p.ray * (p.slope_b / p.slope);
  return p;
}

// The same plane in a source view, in homogeneous pixels.
template <typename T>
struct PlaneInSource {
  Vec3<T> pixel, pixel_a, pixel_b;  // of X_j: pixel + t_j (a pixel_a + b pixel_b)
  Vec3<T> ray, ray_a, ray_b;        // of a step along d_j: ray + a ray_a + b ray_b
  bool faces;                       // the source camera is in front of the plane
};

template <typename T>
NSR_HD PlaneInSource<T> plane_in_source(const TangentPlane<T>& plane, const T* projection, const T* center) {
  const Vec3<T> c = load_vec3(center);
  return {multiply(projection, plane.meets - c), multiply(projection, plane.along_a), multiply(projection, plane.along_b),
          multiply(projection, plane.ray),       multiply(projection, plane.ray_a),   multiply(projection, plane.ray_b),
          plane.normal.dot(c - plane.point) > T(0)};
}

// What a sample needs of its ray: shared by all sources.
template <typename T>
struct PatchRay {
  T inverse_slope;  // 1 / n.d_j
  T ta, tb;         // t_j a, t_j b
  bool meets;       // the plane, ahead and not edge-on
};

template <typename T>
NSR_HD PatchRay<T> ray_of_sample(const TangentPlane<T>& plane, T a, T b) {
  const T slope = plane.slope + a * plane.slope_a + b * plane.slope_b;
  const T inverse = T(1) / slope, t = plane.height * inverse;
  return {inverse, t * a, t * b, slope < plane.edge_on};
}

// Where a sample falls in the source view.
template <typename T>
struct PatchSample {
  T u, v;
  T du, dv;   // d(u, v)/dX d_j / n.d_j
  bool ahead;  // of the source camera
};

template <typename T>
NSR_HD PatchSample<T> sample_in_source(const PlaneInSource<T>& source, const PatchRay<T>& ray, T a, T b) {
  const Vec3<T> y = source.pixel + source.pixel_a * ray.ta + source.pixel_b * ray.tb;
  const Vec3<T> w = source.ray + source.ray_a * a + source.ray_b * b;
  const T inverse = T(1) / y.z, u = y.x * inverse, v = y.y * inverse;
  const T per_step = inverse * ray.inverse_slope;
  return {u, v, (w.x - u * w.z) * per_step, (w.y - v * w.z) * per_step, y.z > T(0)};
}

// Between the pixel centres of an image; false for NaN. Without a branch, as samples are checked in SIMD lanes.
template <typename T>
NSR_HD bool inside_image(T u, T v, int32_t width, int32_t height) {
  return (u >= T(0)) & (u <= T(width - 1)) & (v >= T(0)) & (v <= T(height - 1));
}

// The four pixels around a place, and its fractions between them; a place outside is moved to the border.
template <typename T>
struct PixelCell {
  int32_t first;  // of pixels first, first + 1, first + width, first + width + 1
  T fu, fv;
};

template <typename T>
NSR_HD PixelCell<T> locate_in_image(T u, T v, int32_t width, int32_t height) {
  u = u > T(0) ? u : T(0);  // NaN becomes 0
  v = v > T(0) ? v : T(0);
  u = u < T(width - 1) ? u : T(width - 1);
  v = v < T(height - 1) ? v : T(height - 1);
  int32_t column = int32_t(u), row = int32_t(v);
  column = column < width - 2 ? column : width - 2;
  row = row < height - 2 ? row : height - 2;
  return {row * width + column, u - T(column), v - T(row)};
}

template <typename T>
struct PixelValue {
  T value, du, dv;
};

template <typename T>
NSR_HD PixelValue<T> interpolate_pixels(T v00, T v10, T v01, T v11, T fu, T fv) {
  const T top = v10 - v00, bottom = v11 - v01;
  const T upper = v00 + fu * top, lower = v01 + fu * bottom;
  return {upper + fv * (lower - upper), top + fv * (bottom - top), lower - upper};
}

// NCC of two patches from their central moments (sums over the samples), and its slope in a source sample.
template <typename T>
struct Ncc {
  T value;
  T of_reference, of_source;  // d ncc / d G_j = of_reference (G_r,j - mean) + of_source (G_s,j - mean)
};

// The floor under the variances keeps a patch without texture finite, and every slope below 1 / sqrt(floor).
template <typename T>
NSR_HD Ncc<T> ncc_of_moments(T reference, T source, T mixed, int count, double variance_floor) {
  const T floor = T(count) * T(variance_floor);
  const T of_reference = T(1) / std::sqrt((reference + floor) * (source + floor));
  const T value = mixed * of_reference;
  return {value, of_reference, -value / (source + floor)};
}

// d ncc/dx and d ncc/dn, from sums over the samples of c_j s_j (1, t_j a, t_j b) with c_j = d ncc / d G_j.
template <typename T>
NSR_HD void ncc_gradient(const TangentPlane<T>& plane, T sum, T sum_ta, T sum_tb, T* grad_x, T* grad_normal) {
  const Vec3<T> gx = plane.normal * sum;
  const Vec3<T> gn = (plane.point - plane.meets) * sum - plane.along_a * sum_ta - plane.along_b * sum_tb;
  grad_x[0] = gx.x, grad_x[1] = gx.y, grad_x[2] = gx.z;
  grad_normal[0] = gn.x, grad_normal[1] = gn.y, grad_normal[2] = gn.z;
}

}  // namespace nsr
