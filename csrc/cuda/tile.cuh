// Networks on the GPU: a block holds a tile of points, one per thread, and the numbers of a point lie in a column of
// shared memory that only its thread touches, but for the sums over points. Weights pass through shared memory in pieces
// that all threads of the block read together; sums over inputs stay in registers. This takes layers of any width.
//
// Every function here is called by all threads of a block.
#pragma once

#include <cuda_runtime.h>

#include <type_traits>

#include "../kernels/launch.h"
#include "launch.cuh"

namespace nsr::cuda {

constexpr int kPieceInputs = 32, kPieceOutputs = 16;  // of a weight, at a time in shared memory

// One row of a piece, padded: the threads that write it along either side then spread over the banks, and rows stay
// aligned to 16 bytes, so four floats are read with one instruction.
template <typename T>
constexpr int kPieceRow = kPieceOutputs + 16 / int(sizeof(T));
template <typename T>
constexpr int kPieceNumbers = kPieceInputs * kPieceRow<T>;

// The numbers of this thread's point, a row each.
template <typename T>
struct Column {
  T* at;
  __device__ __forceinline__ T& operator[](int row) const { return at[row * int(blockDim.x)]; }
};

template <typename T>
__device__ __forceinline__ void swap(Column<T>& a, Column<T>& b) {
  const Column<T> before = a;
  a = b;
  b = before;
}

template <typename T>
__device__ __forceinline__ T* shared_piece() {
  return reinterpret_cast<T*>(nsr_dynamic_shared);
}

// From row `first` of the tile on.
template <typename T>
__device__ __forceinline__ Column<T> shared_column(int first) {
  return {shared_piece<T>() + kPieceNumbers<T> + first * int(blockDim.x) + int(threadIdx.x)};
}

template <int kOutputs, bool kTransposed, typename T>
__device__ __forceinline__ void load_piece(const DenseLayer<T>& layer, int outputs, int inputs, int j0, int k0) {
  T* const piece = shared_piece<T>();
  for (int e = int(threadIdx.x); e < kPieceInputs * kOutputs; e += int(blockDim.x)) {
    const int j = kTransposed ? e % kOutputs : e / kPieceInputs, k = kTransposed ? e / kOutputs : e % kPieceInputs;
    const bool inside = j0 + j < outputs && k0 + k < inputs;
    const int64_t row = kTransposed ? k0 + k : j0 + j, column = kTransposed ? j0 + j : k0 + k;
    piece[k * kPieceRow<T> + j] = inside ? layer.weight[row * layer.inputs + column] : T(0);
  }
}

template <int kOutputs, bool kTransposed, typename T, typename Emit>
__device__ __forceinline__ void multiply_some(const DenseLayer<T>& layer, const T* bias, int outputs, int inputs, int j0,
                                              Column<T> in, const Emit& emit) {
  T sum[kOutputs];
#pragma unroll
  for (int j = 0; j < kOutputs; ++j) sum[j] = bias && j0 + j < outputs ? bias[j0 + j] : T(0);
  for (int k0 = 0; k0 < inputs; k0 += kPieceInputs) {
    __syncthreads();  // the piece before this one has been read
    load_piece<kOutputs, kTransposed>(layer, outputs, inputs, j0, k0);
    __syncthreads();
    const int count = inputs - k0 < kPieceInputs ? inputs - k0 : kPieceInputs;
    for (int k = 0; k < count; ++k) {
      const T value = in[k0 + k];
      const T* const weight = shared_piece<T>() + k * kPieceRow<T>;
#pragma unroll
      for (int j = 0; j < kOutputs; ++j) sum[j] += weight[j] * value;
    }
  }
#pragma unroll
  for (int j = 0; j < kOutputs; ++j)
    if (j0 + j < outputs) emit(j0 + j, sum[j]);
}

// emit(j, sum over k < inputs of W_jk in_k + bias_j) for j < outputs, in their order; kTransposed: W_kj instead, the layer
// backwards. emit must leave `in` as it is.
template <bool kTransposed, typename T, typename Emit>
__device__ __forceinline__ void multiply(const DenseLayer<T>& layer, const std::type_identity_t<T>* bias,
                                         int outputs, int inputs, Column<T> in, const Emit& emit) {
  constexpr int kFew = 4;
  for (int j0 = 0; j0 < outputs; j0 += kPieceOutputs) {
    if (outputs - j0 > kFew)
      multiply_some<kPieceOutputs, kTransposed>(layer, bias, outputs, inputs, j0, in, emit);
    else
      multiply_some<kFew, kTransposed>(layer, bias, outputs, inputs, j0, in, emit);
  }
}

// The sums over points of a block go to its own part of a scratch, which a kernel adds up over the blocks: no atomics, so
// the gradients of the layers are the same in every run.
constexpr int kOuterSide = 4;  // a thread has a square of this side of an outer product

// to[j * row + k] += sum over the block's points of left_j right_k.
template <typename T>
__device__ __forceinline__ void add_outer(int lefts, int rights, Column<T> left, Column<T> right, int row, T* to) {
  const int points = int(blockDim.x), lane = int(threadIdx.x);
  const T* const left_rows = left.at - lane;
  const T* const right_rows = right.at - lane;
  const int across = (rights + kOuterSide - 1) / kOuterSide, down = (lefts + kOuterSide - 1) / kOuterSide;
  __syncthreads();  // the columns are complete
  for (int square = lane; square < across * down; square += points) {
    const int j0 = square / across * kOuterSide, k0 = square % across * kOuterSide;
    T sum[kOuterSide][kOuterSide] = {};
    for (int s = 0; s < points; ++s) {
      const int p = (s + lane) & (points - 1);  // so that the threads of a warp read from different banks
      T l[kOuterSide], r[kOuterSide];
#pragma unroll
      for (int i = 0; i < kOuterSide; ++i) {
        l[i] = left_rows[(j0 + i < lefts ? j0 + i : j0) * points + p];
        r[i] = right_rows[(k0 + i < rights ? k0 + i : k0) * points + p];
      }
#pragma unroll
      for (int i = 0; i < kOuterSide; ++i)
#pragma unroll
        for (int k = 0; k < kOuterSide; ++k) sum[i][k] += l[i] * r[k];
    }
#pragma unroll
    for (int i = 0; i < kOuterSide; ++i)
#pragma unroll
      for (int k = 0; k < kOuterSide; ++k)
        if (j0 + i < lefts && k0 + k < rights) to[int64_t(j0 + i) * row + k0 + k] += sum[i][k];
  }
  __syncthreads();  // before the columns change
}

// to[j] += sum over the block's points of column_j.
template <typename T>
__device__ __forceinline__ void add_rows(int count, Column<T> column, T* to) {
  const int points = int(blockDim.x), lane = int(threadIdx.x);
  const T* const rows = column.at - lane;
  __syncthreads();
  for (int j = lane; j < count; j += points) {
    T sum = 0;
    for (int s = 0; s < points; ++s) sum += rows[j * points + ((s + lane) & (points - 1))];
    to[j] += sum;
  }
  __syncthreads();
}

template <typename T>
__global__ void sum_blocks_kernel(DenseLayers<T> layers, int64_t blocks, const T* parts, LayerGradients<T> to) {
  const int64_t parameters = layers.parameters(), i = thread_index();
  if (i >= parameters) return;
  T sum = 0;
  for (int64_t block = 0; block < blocks; ++block) sum += parts[block * parameters + i];
  int l = 0;
  while (i >= layers.weight_place(l + 1)) ++l;
  if (i < layers.bias_place(l))
    to.weight[l][i - layers.weight_place(l)] = sum;
  else
    to.bias[l][i - layers.bias_place(l)] = sum;
}

inline int larger(int a, int b) { return a > b ? a : b; }

template <typename T>
int widest_hidden(const DenseLayers<T>& layers) {
  int rows = 0;
  for (int l = 0; l < layers.hidden(); ++l) rows = larger(rows, layers.width(l));
  return rows;
}

// How a kernel on tiles is launched: blocks take tiles in turn until all are done.
struct TilePlan {
  unsigned threads = 0, blocks = 0;  // no threads: not even the smallest tile fits in shared memory
  size_t shared_bytes = 0;

  // Points in flight, in whole tiles of what a network keeps.
  int64_t slots() const { return (int64_t(blocks) * threads + kLanes - 1) / kLanes * kLanes; }
  // What an op answers when asked how many bytes of scratch it needs: -1 where it cannot run at all.
  int64_t scratch(size_t bytes) const { return threads ? int64_t(bytes) : -1; }
};

inline int device_attribute(cudaDeviceAttr attribute) {
  int device = 0, value = 0;
  cudaGetDevice(&device);
  cudaDeviceGetAttribute(&value, attribute, device);
  return value;
}

// rows: of the columns. Large tiles load weights less often; small ones fill the device where points are few.
template <typename T, typename... Parameters>
TilePlan plan_tiles(void (*kernel)(Parameters...), int64_t n, int rows) {
  constexpr unsigned kMostThreads = 128, kLeastThreads = 32;
  const int processors = device_attribute(cudaDevAttrMultiProcessorCount);
  const size_t limit = size_t(device_attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin));
  TilePlan plan;
  const auto tiles = [&] { return (n + plan.threads - 1) / plan.threads; };
  for (plan.threads = kMostThreads; plan.threads >= kLeastThreads; plan.threads /= 2) {
    plan.shared_bytes = sizeof(T) * (kPieceNumbers<T> + size_t(rows) * plan.threads);
    if (plan.shared_bytes <= limit && (tiles() >= 2 * processors || plan.threads == kLeastThreads)) break;
  }
  if (plan.threads < kLeastThreads) return {};
  // Always the most: another host thread may be about to launch the same kernel for a wider network.
  cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, int(limit));
  int resident = 1;
  cudaOccupancyMaxActiveBlocksPerMultiprocessor(&resident, kernel, int(plan.threads), plan.shared_bytes);
  const int64_t most = int64_t(processors) * (resident > 0 ? resident : 1);
  plan.blocks = unsigned(tiles() < most ? tiles() : most);
  return plan;
}

template <typename... Parameters, typename... Arguments>
void launch_tiles(void* stream, const TilePlan& plan, void (*kernel)(Parameters...), const Arguments&... arguments) {
  launch(stream, dim3(plan.blocks), plan.threads, plan.shared_bytes, kernel, arguments...);
}

// The numbers of one point in what a forward pass keeps, [tiles of kLanes points, rows, kLanes].
template <typename T>
struct KeptColumn {
  T* at;
  __device__ __forceinline__ T& operator[](int row) const { return at[row * kLanes]; }
};

template <typename T>
__device__ __forceinline__ KeptColumn<T> kept_column(T* kept, int rows, int64_t point) {
  return {kept + point / kLanes * rows * kLanes + point % kLanes};
}

// Of `points`, the one that thread i repeats where it is behind the end: the last. And the slot that it keeps numbers in:
// its own up to the end of the last tile, so that all of what is kept is written; further threads share the last slot, and
// write the same numbers.
__device__ __forceinline__ int64_t point_of(int64_t i, int64_t points) { return i < points ? i : points - 1; }
__device__ __forceinline__ int64_t slot_of(int64_t i, int64_t points) {
  const int64_t slots = (points + kLanes - 1) / kLanes * kLanes;
  return i < slots ? i : slots - 1;
}

inline int64_t kept_numbers(int rows, int64_t points) { return (points + kLanes - 1) / kLanes * rows * kLanes; }

// Numbers of the sums over points that the blocks of a launch have, and their sums over the blocks.
template <typename T>
int64_t parts_numbers(const DenseLayers<T>& layers, const TilePlan& plan) {
  return int64_t(plan.blocks) * layers.parameters();
}

template <typename T>
void sum_blocks(void* stream, const DenseLayers<T>& layers, const TilePlan& plan, const T* parts,
                const LayerGradients<T>& to) {
  launch_items(stream, layers.parameters(), sum_blocks_kernel<T>, layers, int64_t(plan.blocks), parts, to);
}

}  // namespace nsr::cuda
