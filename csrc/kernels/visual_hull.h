// Visual hull (Laurentini 1994): the points that no view sees beside its mask.
//
// A view sees a point that lies in front of it and whose nearest pixel p lies in its image. It misses the point when all
// object pixels are further from p than r = reach focal / depth + 1/2 pixels, between centres: a mask begins at the edge
// of its pixels and reaches a length `reach` (at the point's depth) beyond it.
//
// Pixels know their signed distance along the column: to the nearest object pixel, or as a negative number to the nearest
// background pixel; kFarRows where the column has none. A disc around p then meets the mask if and only if, for some k in
// [-r, r], the pixel k columns beside p has an object pixel within k^2 + rows^2 <= r^2. A rectangle is searched likewise.
#pragma once

#include <cmath>
#include <cstdint>

#include "hd.h"

namespace nsr {

constexpr int16_t kFarRows = 32767;  // images have fewer rows

// Steps to the next pixel of a column: `before` is the value of the last one, counting changes on that side only. In 16 bits,
// without a branch and with `object` as a byte, so that a walk down neighbouring columns vectorises.
NSR_HD int16_t step_in_column(uint8_t object, int16_t before) {
  const int16_t above = before < 0 ? int16_t(0) : before, below = before < 0 ? before : int16_t(0);
  const int16_t outside = int16_t((above < kFarRows ? above : kFarRows - 1) + 1);
  const int16_t inside = int16_t((below > -kFarRows ? below : 1 - kFarRows) - 1);
  return object ? inside : outside;
}

// What the first pixel of a column continues: nothing else was ever seen on that side.
NSR_HD int16_t before_column(bool object) { return object ? int16_t(-kFarRows) : kFarRows; }

// The nearer change of two values of one pixel, counted from either side; both have its sign.
NSR_HD int16_t nearer_change(int16_t a, int16_t b) {
  const int16_t least = a < b ? a : b, most = a < b ? b : a;
  return a < 0 ? most : least;
}

struct HullRules {
  double reach;        // scene length by which masks reach further
  int64_t min_views;   // that must see a point which stays
  int64_t max_misses;  // that may miss it
};

template <typename T>
struct HullView {
  const int16_t* columns;  // [height, width] signed distances along the columns
  const T* projection;     // [3, 4] K [R | t]
  T focal;
  int32_t height, width;
};

template <typename T>
struct HullViews {
  const int16_t* columns;  // [views, height, width]
  const T* projections;    // [views, 3, 4]
  const T* focals;         // [views]
  int64_t views;
  int32_t height, width;

  NSR_HD HullView<T> operator[](int64_t view) const {
    return {columns + view * height * width, projections + 12 * view, focals[view], height, width};
  }
};

template <typename T>
NSR_HD T hull_row(const T* row, T x, T y, T z) {
  return row[0] * x + row[1] * y + row[2] * z + row[3];
}

// Whether an object pixel lies within `radius` of the pixel (column, row), which is background.
template <typename T>
NSR_HD bool disc_meets_mask(const HullView<T>& view, int32_t column, int32_t row, T radius) {
  const int16_t* rows = view.columns + int64_t(row) * view.width;
  const T squared = radius * radius;
  const int32_t furthest = radius < T(view.width) ? int32_t(radius) : view.width;
  const int32_t first = column > furthest ? column - furthest : 0;
  const int32_t last = column + furthest < view.width ? column + furthest : view.width - 1;
  for (int32_t c = first; c <= last; ++c) {
    const T away = T(c - column), along = T(rows[c] > 0 ? rows[c] : 0);
    if (rows[c] < kFarRows && away * away + along * along <= squared) return true;
  }
  return false;
}

// What a view says of a point: kUnseen, kKept or kMissed; of a block the same where it holds for all its points.
enum class HullVerdict : int32_t { kUnseen, kKept, kMissed, kOpen };

template <typename T>
NSR_HD HullVerdict judge_point(const HullView<T>& view, T reach, T x, T y, T z) {
  const T depth = hull_row(view.projection + 8, x, y, z);
  if (!(depth > T(0))) return HullVerdict::kUnseen;
  const T u = hull_row(view.projection, x, y, z) / depth + T(0.5);
  const T v = hull_row(view.projection + 4, x, y, z) / depth + T(0.5);
  if (!(u >= T(0) && u < T(view.width) && v >= T(0) && v < T(view.height))) return HullVerdict::kUnseen;
  const int32_t column = int32_t(u), row = int32_t(v);
  const int16_t rows = view.columns[int64_t(row) * view.width + column];
  if (rows < 0) return HullVerdict::kKept;
  const T radius = reach * view.focal / depth + T(0.5);
  return disc_meets_mask(view, column, row, radius) ? HullVerdict::kKept : HullVerdict::kMissed;
}

// The points with centre c +- half, coordinate by coordinate.
template <typename T>
struct HullBlock {
  T c[3], half[3];
};

struct PixelRange {
  int32_t first, last;
};

constexpr int32_t kFarPixel = 1 << 20;  // beyond any image

template <typename T>
NSR_HD int32_t to_pixel(T q) {
  return q > T(-kFarPixel) ? (q < T(kFarPixel) ? int32_t(q) : kFarPixel) : -kFarPixel;
}

// Where the points of a block fall along one image axis, with a pixel to spare for rounding: with q = a.x / d.x and
// x = c + e, q(x) - q(c) = (a - q(c) d).e / d.x.
template <typename T>
NSR_HD PixelRange range_of_block(const HullBlock<T>& block, const T* a, const T* d, T depth, T least_depth) {
  const T q = hull_row(a, block.c[0], block.c[1], block.c[2]) / depth;
  T moved = T(0);
  for (int k = 0; k < 3; ++k) moved += std::fabs(a[k] - q * d[k]) * block.half[k];
  return {to_pixel(std::floor(q - moved / least_depth)) - 1, to_pixel(std::ceil(q + moved / least_depth)) + 1};
}

// Whether a rectangle holds object and background pixels. Its columns, and the middle one of its rows, are in the image.
struct RectangleContents {
  bool object, background;
};

NSR_HD RectangleContents look_into(const int16_t* columns, int32_t width, PixelRange u, PixelRange v) {
  const int32_t middle = v.first + (v.last - v.first) / 2, rows = v.last - middle;  // >= middle - v.first
  const int16_t* values = columns + int64_t(middle) * width;
  int16_t least = kFarRows, most = -kFarRows;
  for (int32_t c = u.first; c <= u.last; ++c) {
    least = values[c] < least ? values[c] : least;
    most = values[c] > most ? values[c] : most;
  }
  return {least <= rows, most >= -rows};
}

// Sound, not complete: kOpen says nothing.
template <typename T>
NSR_HD HullVerdict judge_block(const HullView<T>& view, T reach, const HullBlock<T>& block) {
  const T *pu = view.projection, *pv = pu + 4, *d = pu + 8;
  const T depth = hull_row(d, block.c[0], block.c[1], block.c[2]);
  T deep = T(0);
  for (int k = 0; k < 3; ++k) deep += std::fabs(d[k]) * block.half[k];
  deep *= T(1.001);
  if (depth + deep < T(0)) return HullVerdict::kUnseen;
  const T least_depth = depth - deep;
  if (!(least_depth > T(0.001) * depth)) return HullVerdict::kOpen;

  const PixelRange u = range_of_block(block, pu, d, depth, least_depth);
  const PixelRange v = range_of_block(block, pv, d, depth, least_depth);
  if (u.last < 0 || u.first >= view.width || v.last < 0 || v.first >= view.height) return HullVerdict::kUnseen;
  if (u.first < 0 || u.last >= view.width || v.first < 0 || v.last >= view.height) return HullVerdict::kOpen;
  if (!look_into(view.columns, view.width, u, v).background) return HullVerdict::kKept;

  const T radius = reach * view.focal / least_depth + T(2);
  if (!(radius < T(kFarPixel))) return HullVerdict::kOpen;
  const int32_t more = int32_t(radius);
  const PixelRange wide{u.first > more ? u.first - more : 0,
                        u.last + more < view.width ? u.last + more : view.width - 1};
  const PixelRange high{v.first - more, v.last + more};  // with the middle of v
  return look_into(view.columns, view.width, wide, high).object ? HullVerdict::kOpen : HullVerdict::kMissed;
}

}  // namespace nsr
