// A stand-in for NVIDIA's cuda_fp16.h: what csrc/cuda/ uses of it (see cuda_runtime.h).
#pragma once

#include <bit>

using __half = _Float16;

inline __half __ushort_as_half(unsigned short bits) { return std::bit_cast<__half>(bits); }
inline float __half2float(__half half) { return float(half); }
