// A stand-in for NVIDIA's cuda_runtime.h that runs the kernels of csrc/cuda/ on the CPU: what the tests compile them with
// where there is no GPU. It has what those files use, and nothing else.
//
// One block runs at a time; its threads are fibers that give way at barriers and warp operations only, in an order that
// differs from one barrier to the next (a missing barrier shows). Shared memory begins as NaNs and ends at a canary. A
// barrier or a warp operation that some threads do not reach ends the process with a message.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <functional>
#include <tuple>

#define __global__
#define __device__
#define __host__
#define __shared__
#define __forceinline__ inline __attribute__((always_inline))
#define __noinline__

struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned x_ = 1, unsigned y_ = 1, unsigned z_ = 1) : x(x_), y(y_), z(z_) {}
};
struct uint3 {
  unsigned x, y, z;
};

extern uint3 threadIdx, blockIdx;
extern dim3 blockDim, gridDim;
constexpr int warpSize = 32;

namespace nsr_emulation {

constexpr size_t kSharedBytes = 227 * 1024;  // what a block of sm_90 can have

// kernel: which; more than 48 KiB of shared memory have to be allowed to it first.
void run(const void* kernel, dim3 blocks, dim3 threads, size_t shared_bytes, const std::function<void()>& thread);
void allow_shared(const void* kernel, size_t bytes);

void block_barrier();
// Waits for the block, and returns how many threads said yes.
int count_block(bool yes);
// Waits for the warp, and returns the value of another lane.
uint64_t exchange(uint64_t value, int lane);
// Waits for the warp, and returns a bit per lane that said yes.
unsigned ballot(bool yes);
int lane();
void check_mask(unsigned mask);

template <typename T>
T read_lane(T value, int from) {
  uint64_t bits = 0;
  static_assert(sizeof(T) <= sizeof(bits));
  std::memcpy(&bits, &value, sizeof(T));
  bits = exchange(bits, from);
  std::memcpy(&value, &bits, sizeof(T));
  return value;
}

}  // namespace nsr_emulation

inline void __syncthreads() { nsr_emulation::block_barrier(); }
inline int __syncthreads_or(int yes) { return nsr_emulation::count_block(yes) > 0; }
inline void __syncwarp(unsigned mask = 0xffffffffu) {
  nsr_emulation::check_mask(mask);
  nsr_emulation::ballot(false);
}
inline unsigned __ballot_sync(unsigned mask, int yes) {
  nsr_emulation::check_mask(mask);
  return nsr_emulation::ballot(yes);
}
inline int __all_sync(unsigned mask, int yes) { return __ballot_sync(mask, !yes) == 0; }
template <typename T>
T __shfl_xor_sync(unsigned mask, T value, int bits) {
  nsr_emulation::check_mask(mask);
  return nsr_emulation::read_lane(value, nsr_emulation::lane() ^ bits);
}

template <typename T>
T atomicAdd(T* at, T value) {
  const T before = *at;
  *at = before + value;
  return before;
}
struct alignas(8) float2 {
  float x, y;
};
struct alignas(16) float4 {
  float x, y, z, w;
};
inline float2 make_float2(float x, float y) { return {x, y}; }
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }
inline float2 atomicAdd(float2* at, float2 value) { return {atomicAdd(&at->x, value.x), atomicAdd(&at->y, value.y)}; }
inline float4 atomicAdd(float4* at, float4 value) {
  return {atomicAdd(&at->x, value.x), atomicAdd(&at->y, value.y), atomicAdd(&at->z, value.z), atomicAdd(&at->w, value.w)};
}
template <typename T>
T atomicMax(T* at, T value) {
  const T before = *at;
  *at = before < value ? value : before;
  return before;
}
inline double __longlong_as_double(long long bits) {
  double value;
  std::memcpy(&value, &bits, sizeof(value));
  return value;
}
inline long long __double_as_longlong(double value) {
  long long bits;
  std::memcpy(&bits, &value, sizeof(bits));
  return bits;
}

// ---- the runtime's functions ----

enum cudaError_t { cudaSuccess = 0, cudaErrorInvalidValue = 1 };
struct CUstream_st;
using cudaStream_t = CUstream_st*;
enum cudaFuncAttribute { cudaFuncAttributeMaxDynamicSharedMemorySize = 8 };
enum cudaDeviceAttr { cudaDevAttrMultiProcessorCount = 16, cudaDevAttrMaxSharedMemoryPerBlockOptin = 97 };

struct cudaLaunchConfig_t {
  dim3 gridDim, blockDim;
  size_t dynamicSmemBytes = 0;
  cudaStream_t stream = nullptr;
};

template <typename... Parameters, typename... Arguments>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(Parameters...), Arguments&&... arguments) {
  const std::tuple<Parameters...> values(static_cast<Parameters>(arguments)...);
  nsr_emulation::run(reinterpret_cast<const void*>(kernel), config->gridDim, config->blockDim, config->dynamicSmemBytes, [&] { std::apply(kernel, values); });
  return cudaSuccess;
}

inline cudaError_t cudaMemsetAsync(void* at, int value, size_t bytes, cudaStream_t = nullptr) {
  std::memset(at, value, bytes);
  return cudaSuccess;
}
inline cudaError_t cudaGetDevice(int* device) {
  *device = 0;
  return cudaSuccess;
}
inline cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int) {
  *value = attribute == cudaDevAttrMultiProcessorCount ? 3 : int(nsr_emulation::kSharedBytes);
  return cudaSuccess;
}
template <typename Kernel>
cudaError_t cudaFuncSetAttribute(Kernel* kernel, cudaFuncAttribute, int bytes) {
  if (bytes > int(nsr_emulation::kSharedBytes)) return cudaErrorInvalidValue;
  nsr_emulation::allow_shared(reinterpret_cast<const void*>(kernel), size_t(bytes));
  return cudaSuccess;
}
template <typename Kernel>
cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessor(int* blocks, Kernel*, int, size_t) {
  *blocks = 2;
  return cudaSuccess;
}
