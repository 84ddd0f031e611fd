// NSR_SHUFFLE: whether the compiler has __builtin_shufflevector, which becomes instructions that move numbers between
// the lanes of registers. Without it, plain loops do the same.
#pragma once

#if defined(__has_builtin)
#if __has_builtin(__builtin_shufflevector)
#define NSR_SHUFFLE 1
#endif
#endif

#ifdef NSR_SHUFFLE
namespace nsr::cpu {

typedef float EightFloats __attribute__((vector_size(32)));

}  // namespace nsr::cpu
#endif
