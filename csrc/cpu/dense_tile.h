// Dense layers on a tile of kLanes points (kernels/launch.h): row r of a matrix holds number r of every point, so the
// inner products run over SIMD lanes and no lane sees another. Products are blocked so that the sums of a block stay in
// registers.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "../kernels/launch.h"
#include "shuffle.h"

namespace nsr::cpu {

template <typename T>
using Row = T[kLanes];

template <typename T>
struct VectorOf {
  typedef T type __attribute__((vector_size(32)));
};
template <typename T>
using Vector = typename VectorOf<T>::type;  // one AVX register; two of NEON

template <typename T>
constexpr int kVectorLanes = 32 / int(sizeof(T));

template <typename T>
NSR_HD Vector<T> load(const T* from) {
  Vector<T> v;
  std::memcpy(&v, from, sizeof(v));
  return v;
}

template <typename T>
NSR_HD void store(T* to, Vector<T> v) {
  std::memcpy(to, &v, sizeof(v));
}

// Calls fn(lane) for the first lane of each vector of a row.
template <typename T, typename Fn>
NSR_HD void for_each_vector(const Fn& fn) {
#pragma GCC unroll 4
  for (int lane = 0; lane < kLanes; lane += kVectorLanes<T>) fn(lane);
}

// Times two vectors: twelve sums, two operands and a coefficient fill the sixteen registers.
constexpr int kBlockRows = 6;

// The matrix of a product: coefficient (r, c) is at[r * row_step + c * column_step].
template <typename T>
struct Matrix {
  const T* at;
  ptrdiff_t row_step, column_step;

  NSR_HD Matrix from_row(int r) const { return {at + r * row_step, row_step, column_step}; }
};

template <typename T>
Matrix<T> row_major(const T* weight, int columns) {
  return {weight, columns, 1};
}

template <typename T>
Matrix<T> transposed(const T* weight, int columns) {
  return {weight, 1, columns};
}

// out[r] = bias[r] + sum_c matrix(r, c) in[c] for kRows rows; bias may be null.
template <int kRows, typename T>
void multiply_block(const Matrix<T>& matrix, const T* bias, int columns, const Row<T>* in, Row<T>* out) {
  constexpr int kHalf = kVectorLanes<T>;
  for (int lane = 0; lane < kLanes; lane += 2 * kHalf) {
    Vector<T> sum[kRows][2];
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) sum[r][0] = sum[r][1] = Vector<T>{} + (bias ? bias[r] : T(0));
    for (int c = 0; c < columns; ++c) {
      const Vector<T> x0 = load(in[c] + lane), x1 = load(in[c] + lane + kHalf);
      const T* coefficient = matrix.at + c * matrix.column_step;
#pragma GCC unroll 8
      for (int r = 0; r < kRows; ++r) {
        const T w = coefficient[r * matrix.row_step];
        sum[r][0] += w * x0;
        sum[r][1] += w * x1;
      }
    }
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) {
      store(out[r] + lane, sum[r][0]);
      store(out[r] + lane + kHalf, sum[r][1]);
    }
  }
}

// out [rows] = bias + matrix [rows, columns] in [columns]; bias may be null.
template <typename T>
void multiply(const Matrix<T>& matrix, const T* bias, int rows, int columns, const Row<T>* in, Row<T>* out) {
  int r = 0;
  const auto block = [&](auto rows_of_block) {
    constexpr int kRows = decltype(rows_of_block)::value;
    for (; r + kRows <= rows; r += kRows)
      multiply_block<kRows>(matrix.from_row(r), bias ? bias + r : nullptr, columns, in, out + r);
  };
  block(std::integral_constant<int, kBlockRows>());
  block(std::integral_constant<int, 4>());
  block(std::integral_constant<int, 2>());
  block(std::integral_constant<int, 1>());
}

// The number of columns that a tile of gradients has in memory: whole blocks, so that no product has a remainder.
template <typename T>
int padded_columns(int columns) {
  constexpr int kBlock = 2 * kVectorLanes<T>;
  return (columns + kBlock - 1) / kBlock * kBlock;
}

#ifdef NSR_SHUFFLE
// out[i * width + c] = in[c][i] for eight rows c and eight lanes i, in registers.
inline void transpose_eight(const Row<float>* in, int lane, int width, float* out) {
  EightFloats a[8], b[8];
#pragma GCC unroll 8
  for (int c = 0; c < 8; ++c) a[c] = load(in[c] + lane);
#pragma GCC unroll 4
  for (int c = 0; c < 8; c += 2) {  // pairs of rows: in each half, lanes 0 and 1, then 2 and 3
    b[c] = __builtin_shufflevector(a[c], a[c + 1], 0, 8, 1, 9, 4, 12, 5, 13);
    b[c + 1] = __builtin_shufflevector(a[c], a[c + 1], 2, 10, 3, 11, 6, 14, 7, 15);
  }
#pragma GCC unroll 2
  for (int c = 0; c < 8; c += 4) {  // fours of rows: in each half, one lane
#pragma GCC unroll 2
    for (int k = 0; k < 2; ++k) {
      a[c + 2 * k] = __builtin_shufflevector(b[c + k], b[c + 2 + k], 0, 1, 8, 9, 4, 5, 12, 13);
      a[c + 2 * k + 1] = __builtin_shufflevector(b[c + k], b[c + 2 + k], 2, 3, 10, 11, 6, 7, 14, 15);
    }
  }
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    store(out + i * width, __builtin_shufflevector(a[i], a[i + 4], 0, 1, 2, 3, 8, 9, 10, 11));
    store(out + (i + 4) * width, __builtin_shufflevector(a[i], a[i + 4], 4, 5, 6, 7, 12, 13, 14, 15));
  }
}
#endif

// out[i * padded_columns + c] = in[c][i], and zero in the padding.
template <typename T>
void transpose(int columns, const Row<T>* in, T* out) {
  const int width = padded_columns<T>(columns);
  int done = 0;
#ifdef NSR_SHUFFLE
  if constexpr (std::is_same_v<T, float>)
    for (; done + 8 <= columns; done += 8)
      for (int lane = 0; lane < kLanes; lane += 8)
        transpose_eight(in + done, lane, width, out + lane * width + done);
#endif
  for (int i = 0; i < kLanes; ++i) {
    for (int c = done; c < columns; ++c) out[i * width + c] = in[c][i];
    for (int c = columns; c < width; ++c) out[i * width + c] = T(0);
  }
}

// gradient(r, c) += sum_i left[r][i] right[i][c] for kRows rows; right and gradient have `width` columns in memory.
template <int kRows, typename T>
void accumulate_block(const Row<T>* left, int width, const T* right, T* gradient) {
  constexpr int kHalf = kVectorLanes<T>;
  for (int c = 0; c < width; c += 2 * kHalf) {
    Vector<T> sum[kRows][2];
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) {
      sum[r][0] = load(gradient + r * width + c);
      sum[r][1] = load(gradient + r * width + c + kHalf);
    }
    for (int i = 0; i < kLanes; ++i) {
      const Vector<T> x0 = load(right + i * width + c), x1 = load(right + i * width + c + kHalf);
#pragma GCC unroll 8
      for (int r = 0; r < kRows; ++r) {
        sum[r][0] += left[r][i] * x0;
        sum[r][1] += left[r][i] * x1;
      }
    }
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) {
      store(gradient + r * width + c, sum[r][0]);
      store(gradient + r * width + c + kHalf, sum[r][1]);
    }
  }
}

// gradient [rows, padded columns] += left [rows] right^T, with right transposed by `transpose`: a sum over the points.
template <typename T>
void accumulate_outer(int rows, int columns, const Row<T>* left, const T* right, T* gradient) {
  const int width = padded_columns<T>(columns);
  int r = 0;
  const auto block = [&](auto rows_of_block) {
    constexpr int kRows = decltype(rows_of_block)::value;
    for (; r + kRows <= rows; r += kRows) accumulate_block<kRows>(left + r, width, right, gradient + r * width);
  };
  block(std::integral_constant<int, kBlockRows>());
  block(std::integral_constant<int, 4>());
  block(std::integral_constant<int, 2>());
  block(std::integral_constant<int, 1>());
}

// gradient [rows] += the sum over the points of each row.
template <typename T>
void accumulate_sum(int rows, const Row<T>* in, T* gradient) {
  constexpr int kHalf = kVectorLanes<T>;
  for (int r = 0; r < rows; ++r) {
    Vector<T> sum = load(in[r]);
    for (int lane = kHalf; lane < kLanes; lane += kHalf) sum += load(in[r] + lane);
    T total = T(0);
    for (int k = 0; k < kHalf; ++k) total += sum[k];
    gradient[r] += total;
  }
}

}  // namespace nsr::cpu
