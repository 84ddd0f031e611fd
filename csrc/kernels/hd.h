// Host/device annotations: the only file that looks at the compiler.
#pragma once

#if defined(__CUDACC__)
#define NSR_HD __host__ __device__ __forceinline__
#elif defined(__GNUC__)
#define NSR_HD inline __attribute__((always_inline))
#else
#define NSR_HD inline
#endif

// Asks for the cache line at `address`, to be written soon.
#if defined(__GNUC__) && !defined(__CUDA_ARCH__)
#define NSR_PREFETCH(address) __builtin_prefetch(address, 1)
#else
#define NSR_PREFETCH(address) ((void)(address))
#endif
