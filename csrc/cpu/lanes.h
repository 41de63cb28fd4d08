// The float64 lanes of one instruction level as the linear-regression study (regression/) uses
// them. Without fused multiply-adds, a lane's numbers are made of correctly rounded operations in
// one order: they have the same bits for every level and every neighbour in the vector.
#pragma once

#include "cpu/vector_math.h"
#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace innerloop {
namespace INNERLOOP_LEVEL {

/// The policy `L` of regression/variables.h: kLanes trials side by side.
struct Lanes : VectorMath<double> {
  typedef uint64_t U __attribute__((vector_size(INNERLOOP_VECTOR_BYTES)));
  using Mask = I;
  using Array = V*;
  using Numbers = double*;
  static constexpr int64_t kLanes = S::kLanes;
  static constexpr int64_t kGap = 0;

  static INNERLOOP_INLINE U words(uint64_t x) { return x - U{}; }
  static INNERLOOP_INLINE U counting(uint64_t first) {
    U word;
    for (int i = 0; i < kLanes; ++i) word[i] = first + static_cast<uint64_t>(i);
    return word;
  }
  static INNERLOOP_INLINE U multiply(U a, uint32_t b) {
#if defined(__AVX512F__)
    return (U)_mm512_maskz_mul_epu32(0xFF, (__m512i)a, _mm512_set1_epi64(b));
#elif defined(__AVX2__)
    return (U)_mm256_mul_epu32((__m256i)a, _mm256_set1_epi64x(b));
#elif defined(__SSE2__)
    return (U)_mm_mul_epu32((__m128i)a, _mm_set1_epi64x(b));
#else
    return (a & 0xFFFFFFFFu) * uint64_t{b};
#endif
  }
  static INNERLOOP_INLINE V number_of(U bits) { return (V)bits; }
  /// VectorMath's own fuses multiply-adds where the level can.
  static INNERLOOP_INLINE V log(V x) { return log_positive<VectorMath<double>>(x); }
  static INNERLOOP_INLINE Mask everywhere() { return ~Mask{}; }
  static INNERLOOP_INLINE Mask without(Mask a, Mask b) { return a & ~b; }
  static INNERLOOP_INLINE bool any(Mask mask) {
#if defined(__AVX512F__)
    return _mm512_movepi64_mask((__m512i)mask) != 0;
#elif defined(__AVX2__)
    return _mm256_movemask_pd((__m256d)mask) != 0;
#elif defined(__SSE2__)
    return _mm_movemask_pd((__m128d)mask) != 0;
#else
    int64_t some = 0;
    for (int i = 0; i < kLanes; ++i) some |= mask[i];
    return some != 0;
#endif
  }

  static INNERLOOP_INLINE double get(V v, int64_t lane) { return v[lane]; }
  static INNERLOOP_INLINE void put(V& v, int64_t lane, double x) { v[lane] = x; }
  static INNERLOOP_INLINE bool holds(Mask mask, int64_t lane) { return mask[lane] != 0; }

  static INNERLOOP_INLINE Array take(Array* memory, int64_t count) {
    const Array taken = *memory;
    *memory += count;
    return taken;
  }
  static INNERLOOP_INLINE Numbers numbers(Array memory) {
    return reinterpret_cast<double*>(memory);
  }
};

}  // namespace INNERLOOP_LEVEL
}  // namespace innerloop
