// Host/device annotations: the only file that looks at the compiler.
#pragma once

#if defined(__CUDACC__)
#define NSR_HD __host__ __device__ __forceinline__
#elif defined(__GNUC__)
#define NSR_HD inline __attribute__((always_inline))
#else
#define NSR_HD inline
#endif

// Which GPU a function is being compiled for, as 900 for sm_90; 0 for the CPU.
#if defined(__CUDA_ARCH__)
#define NSR_SM __CUDA_ARCH__
#else
#define NSR_SM 0
#endif

// Asks for the cache line at `address`, to be written soon.
#if defined(__GNUC__) && !NSR_SM
#define NSR_PREFETCH(address) __builtin_prefetch(address, 1)
#else
#define NSR_PREFETCH(address) ((void)(address))
#endif
