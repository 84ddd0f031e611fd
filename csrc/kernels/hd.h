// Host/device annotations: the only file that looks at the compiler.
#pragma once

#if defined(__CUDACC__)
#define NSR_HD __host__ __device__ __forceinline__
#elif defined(__GNUC__)
#define NSR_HD inline __attribute__((always_inline))
#else
#define NSR_HD inline
#endif
