// Multi-resolution hash grid (Mueller et al. 2022): geometry of a level, interpolation in a cell, and its derivatives.
//
// A level is a vertex grid of `resolution` cells per axis over the cube [-extent, extent]^3. Inside a cell it is
// trilinear in s = (s_x, s_y, s_z), where s_d(x_d) is the fraction of the cell (linear) or 3t^2 - 2t^3 of it
// (smoothstep), so with the corner values v_c, c = b_x + 2 b_y + 4 b_z,
//     h = sum_c v_c prod_d (b_d ? s_d : 1 - s_d)
//     dh/dx_d = s_d' h_{s_d},   d2h/dx_d^2 = s_d'' h_{s_d},   d2h/dx_d dx_e = s_d' s_e' h_{s_d s_e}.
// Everything nsr does with a grid is one of three maps, all linear in the table:
//     encode    table -> h, J = dh/dx
//     contract  table, (a, B) -> d/dx sum(a h + B J)
//     scatter   (a, B) -> d/dtable sum(a h + B J)
#pragma once

#include <cstdint>

#include "hd.h"

namespace nsr {

constexpr int kMaxGridLevels = 32;

struct GridLevel {
  int64_t offset;        // first entry of the level in the table
  int32_t resolution;    // cells per axis
  uint32_t factor_y;     // hashed: prime; dense: vertices per row
  uint32_t factor_z;     // hashed: prime; dense: vertices per slice
  uint32_t mask;         // hashed: entries - 1; dense: all ones
  bool hashed;
};

struct HashGrid {
  int32_t levels;
  int32_t active_levels;  // levels beyond encode to zero and receive no gradient
  int32_t features;       // per level
  bool smoothstep;
  bool deterministic;     // sums over points are the same to the last bit in every run; on the CPU they always are
  double inverse_extent;  // of the cube: 2 / its side
  GridLevel level[kMaxGridLevels];

  NSR_HD int64_t outputs() const { return int64_t(levels) * features; }
};

inline GridLevel make_grid_level(int64_t offset, int64_t entries, int32_t resolution) {
  const uint64_t vertices = uint64_t(resolution) + 1;
  GridLevel level;
  level.offset = offset;
  level.resolution = resolution;
  level.hashed = vertices * vertices * vertices > uint64_t(entries);
  level.factor_y = level.hashed ? 2654435761u : uint32_t(vertices);
  level.factor_z = level.hashed ? 805459861u : uint32_t(vertices * vertices);
  level.mask = level.hashed ? uint32_t(entries - 1) : ~0u;
  return level;
}

// Where one coordinate falls in a level: the cell, the weight s of its upper vertex, and ds/dx, d2s/dx2.
template <typename T>
struct AxisPoint {
  int32_t cell;
  T s, ds, dds;
};

// With x / extent: coordinates outside [-1, 1] take the value of the nearest face and have derivative zero; NaN stays NaN.
template <typename T>
NSR_HD AxisPoint<T> locate_on_axis(T x, T inverse_extent, int32_t resolution, bool smoothstep) {
  x *= inverse_extent;
  T u = (x + T(1)) * T(0.5);
  u = u < T(0) ? T(0) : u;
  u = u > T(1) ? T(1) : u;
  const T p = u * T(resolution);
  const int32_t floor_p = int32_t(p >= T(0) ? p : T(0));  // the test turns NaN into 0 before the conversion
  const int32_t cell = floor_p < resolution ? floor_p : resolution - 1;
  const T t = p - T(cell);
  const T outside = T(x < T(-1)) + T(x > T(1));
  const T dt = (T(1) - outside) * T(0.5) * T(resolution) * inverse_extent;
  AxisPoint<T> axis;
  axis.cell = cell;
  axis.s = smoothstep ? t * t * (T(3) - T(2) * t) : t;
  axis.ds = smoothstep ? T(6) * t * (T(1) - t) * dt : dt;
  axis.dds = smoothstep ? (T(6) - T(12) * t) * dt * dt : T(0);
  return axis;
}

// Entry, within its level, of the vertex with the products (x, y * factor_y, z * factor_z).
NSR_HD uint32_t grid_entry(uint32_t x, uint32_t y, uint32_t z, bool hashed, uint32_t mask) {
  return (hashed ? x ^ y ^ z : x + y + z) & mask;
}

// h and its first derivatives with respect to s.
template <typename T>
struct CellValue {
  T h, hx, hy, hz;
};

template <typename T>
NSR_HD CellValue<T> interpolate_cell(T v0, T v1, T v2, T v3, T v4, T v5, T v6, T v7, T sx, T sy, T sz) {
  const T dx0 = v1 - v0, dx1 = v3 - v2, dx2 = v5 - v4, dx3 = v7 - v6;          // along x, on the four x edges
  const T e0 = v0 + sx * dx0, e1 = v2 + sx * dx1, e2 = v4 + sx * dx2, e3 = v6 + sx * dx3;
  const T dy0 = e1 - e0, dy1 = e3 - e2;
  const T f0 = e0 + sy * dy0, f1 = e2 + sy * dy1;
  const T g0 = dx0 + sy * (dx1 - dx0), g1 = dx2 + sy * (dx3 - dx2);
  CellValue<T> out;
  out.hz = f1 - f0;
  out.h = f0 + sz * out.hz;
  out.hy = dy0 + sz * (dy1 - dy0);
  out.hx = g0 + sz * (g1 - g0);
  return out;
}

// Mixed second derivatives with respect to s.
template <typename T>
struct CellTwist {
  T hxy, hxz, hyz;
};

template <typename T>
NSR_HD CellTwist<T> twist_of_cell(T v0, T v1, T v2, T v3, T v4, T v5, T v6, T v7, T sx, T sy, T sz) {
  const T dx0 = v1 - v0, dx1 = v3 - v2, dx2 = v5 - v4, dx3 = v7 - v6;
  const T dxy0 = dx1 - dx0, dxy1 = dx3 - dx2;
  const T dxz0 = dx2 - dx0, dxz1 = dx3 - dx1;
  const T dyz0 = (v6 - v4) - (v2 - v0), dyz1 = (v7 - v5) - (v3 - v1);
  return {dxy0 + sz * (dxy1 - dxy0), dxz0 + sy * (dxz1 - dxz0), dyz0 + sx * (dyz1 - dyz0)};
}

// Where a point lies in its cell, axis by axis: s, ds/dx, d2s/dx2.
template <typename T>
struct CellPoint {
  T sx, sy, sz, dx, dy, dz, ddx, ddy, ddz;
};

// The cotangents of one feature: a of h, and B = (bx, by, bz) of J.
template <typename T>
struct CellCotangent {
  T a, bx, by, bz;
};

template <typename T>
struct CellGradient {
  T x, y, z;
};

// d/dx of a h + B . J for one feature of one cell.
template <typename T>
NSR_HD CellGradient<T> contract_cell(CellValue<T> h, CellTwist<T> t, CellCotangent<T> g, CellPoint<T> p) {
  const T bx = g.bx * p.dx, by = g.by * p.dy, bz = g.bz * p.dz;
  return {h.hx * (g.a * p.dx + g.bx * p.ddx) + p.dx * (by * t.hxy + bz * t.hxz),
          h.hy * (g.a * p.dy + g.by * p.ddy) + p.dy * (bx * t.hxy + bz * t.hyz),
          h.hz * (g.a * p.dz + g.bz * p.ddz) + p.dz * (bx * t.hxz + by * t.hyz)};
}

// The weight of corner c = cx + 2 cy + 4 cz in h.
template <typename T>
NSR_HD T corner_weight(int c, CellPoint<T> p) {
  return (c & 1 ? p.sx : T(1) - p.sx) * (c & 2 ? p.sy : T(1) - p.sy) * (c & 4 ? p.sz : T(1) - p.sz);
}

// d/dv_c of a h + B . J for one feature and corner c = cx + 2 cy + 4 cz.
template <typename T>
NSR_HD T corner_gradient(int c, CellCotangent<T> g, CellPoint<T> p) {
  const T wx = c & 1 ? p.sx : T(1) - p.sx, gx = c & 1 ? p.dx : -p.dx;  // weight of the vertex, and its derivative
  const T wy = c & 2 ? p.sy : T(1) - p.sy, gy = c & 2 ? p.dy : -p.dy;
  const T wz = c & 4 ? p.sz : T(1) - p.sz, gz = c & 4 ? p.dz : -p.dz;
  return wz * (wy * (g.a * wx + g.bx * gx) + g.by * gy * wx) + g.bz * gz * (wx * wy);
}

}  // namespace nsr
