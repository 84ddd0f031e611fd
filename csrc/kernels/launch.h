// What cpu/ and cuda/ export to torch/: plain pointers to contiguous arrays, T in {float, double}.
//
// nsr::cpu works on host pointers with parallel_for; nsr::cuda enqueues on `stream` (a cudaStream_t) and returns at once.
#pragma once

#include <cstdint>

#include "adam.h"
#include "hash_grid.h"

namespace nsr::cpu {

// h [n, levels * features] and, unless null, jacobian [n, levels * features, 3].
template <typename T>
void hash_grid_encode(const HashGrid& grid, int64_t n, const T* x, const T* table, T* h, T* jacobian);

// grad_x [n, 3] = d/dx sum(grad_h h + grad_jacobian J); either cotangent may be null.
template <typename T>
void hash_grid_contract(const HashGrid& grid, int64_t n, const T* x, const T* table, const T* grad_h,
                        const T* grad_jacobian, T* grad_x);

// grad_table [entries, features] = d/dtable sum(grad_h h + grad_jacobian J), written whole (need not be zeroed before).
template <typename T>
void hash_grid_scatter(const HashGrid& grid, int64_t n, int64_t entries, const T* x, const T* grad_h,
                       const T* grad_jacobian, T* grad_table);

// One step on n entries; with zero_gradient, gradient is zeroed in the same pass.
template <typename T>
void adam_touched(const AdamRates<T>& rates, int64_t n, T* value, T* gradient, T* mean, T* square, bool zero_gradient);

}  // namespace nsr::cpu

namespace nsr::cuda {

template <typename T>
void hash_grid_encode(void* stream, const HashGrid& grid, int64_t n, const T* x, const T* table, T* h, T* jacobian);

template <typename T>
void hash_grid_contract(void* stream, const HashGrid& grid, int64_t n, const T* x, const T* table, const T* grad_h,
                        const T* grad_jacobian, T* grad_x);

template <typename T>
void hash_grid_scatter(void* stream, const HashGrid& grid, int64_t n, int64_t entries, const T* x, const T* grad_h,
                       const T* grad_jacobian, T* grad_table);

template <typename T>
void adam_touched(void* stream, const AdamRates<T>& rates, int64_t n, T* value, T* gradient, T* mean, T* square,
                  bool zero_gradient);

}  // namespace nsr::cuda
