// Vectors of one register's width over GCC/Clang vector extensions: one source for every level.
#pragma once

#include <cstdint>
#include <cstring>

#include "cpu/level.h"
#if defined(__AVX512F__)
#include <immintrin.h>
#endif

namespace innerloop {
namespace INNERLOOP_LEVEL {

template <class Real>
struct IntegerOf;
template <>
struct IntegerOf<float> {
  using type = int32_t;
};
template <>
struct IntegerOf<double> {
  using type = int64_t;
};

template <class Real>
struct Simd {
  using Int = typename IntegerOf<Real>::type;
  typedef Real V __attribute__((vector_size(INNERLOOP_VECTOR_BYTES)));
  typedef Int I __attribute__((vector_size(INNERLOOP_VECTOR_BYTES)));
  typedef Real Unaligned
      __attribute__((vector_size(INNERLOOP_VECTOR_BYTES), aligned(alignof(Real)), may_alias));
  static constexpr int kLanes = INNERLOOP_VECTOR_BYTES / sizeof(Real);
  static constexpr int kRegisters = INNERLOOP_VECTOR_REGISTERS;

  static INNERLOOP_INLINE V load(const Real* p) { return *reinterpret_cast<const Unaligned*>(p); }
  static INNERLOOP_INLINE void store(Real* p, V v) { *reinterpret_cast<Unaligned*>(p) = v; }
  static INNERLOOP_INLINE V set(Real x) { return x - V{}; }

  /// The first n lanes; the others are 0 and their memory is not touched. 0 <= n <= kLanes.
  static INNERLOOP_INLINE V load_part(const Real* p, int64_t n) {
#if defined(__AVX512F__)
    if constexpr (sizeof(Real) == 4) {
      return reinterpret_cast<V>(_mm512_maskz_loadu_ps(static_cast<__mmask16>((1u << n) - 1), p));
    } else {
      return reinterpret_cast<V>(_mm512_maskz_loadu_pd(static_cast<__mmask8>((1u << n) - 1), p));
    }
#else
    V v{};
    for (int i = 0; i < n; ++i) v[i] = p[i];
    return v;
#endif
  }
  static INNERLOOP_INLINE void store_part(Real* p, V v, int64_t n) {
#if defined(__AVX512F__)
    if constexpr (sizeof(Real) == 4) {
      _mm512_mask_storeu_ps(p, static_cast<__mmask16>((1u << n) - 1), reinterpret_cast<__m512>(v));
    } else {
      _mm512_mask_storeu_pd(p, static_cast<__mmask8>((1u << n) - 1), reinterpret_cast<__m512d>(v));
    }
#else
    for (int i = 0; i < n; ++i) p[i] = v[i];
#endif
  }

  /// Sum of all lanes by halving, a fixed order.
  static INNERLOOP_INLINE Real sum(V v) {
    alignas(INNERLOOP_VECTOR_BYTES) Real lane[kLanes];
    std::memcpy(lane, &v, sizeof(v));
    for (int half = kLanes / 2; half > 0; half /= 2) {
      for (int i = 0; i < half; ++i) lane[i] += lane[i + half];
    }
    return lane[0];
  }
};

inline int64_t round_up(int64_t n, int64_t multiple) {
  return (n + multiple - 1) / multiple * multiple;
}
inline int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }
inline int64_t larger(int64_t a, int64_t b) { return a < b ? b : a; }

/// Transposes a kLanes x kLanes tile held in r: row i becomes lane i of every r[j].
template <class Real>
INNERLOOP_INLINE void transpose_tile(typename Simd<Real>::V* r) {
  using S = Simd<Real>;
  constexpr int n = S::kLanes;
  typename S::I low{}, high{};
  for (int i = 0; i < n; ++i) {  // interleave the low (high) halves of two vectors
    low[i] = i / 2 + (i % 2) * n;
    high[i] = n / 2 + i / 2 + (i % 2) * n;
  }
  typename S::V t[n];
#pragma GCC unroll 8
  for (int width = n; width > 1; width /= 2) {
#pragma GCC unroll 16
    for (int i = 0; i < n / 2; ++i) {
#if defined(__clang__)
      for (int k = 0; k < n; ++k) {
        t[2 * i][k] = (k % 2 ? r[i + n / 2] : r[i])[k / 2];
        t[2 * i + 1][k] = (k % 2 ? r[i + n / 2] : r[i])[n / 2 + k / 2];
      }
#else
      t[2 * i] = __builtin_shuffle(r[i], r[i + n / 2], low);
      t[2 * i + 1] = __builtin_shuffle(r[i], r[i + n / 2], high);
#endif
    }
#pragma GCC unroll 16
    for (int i = 0; i < n; ++i) r[i] = t[i];
  }
}

/// out[c * kLanes + lane] = in[lane * stride + c] for c < columns; lanes >= used become 0.
template <class Real>
inline void interleave(Real* out, const Real* in, int64_t stride, int64_t columns, int used) {
  using S = Simd<Real>;
  constexpr int n = S::kLanes;
  typename S::V r[n];
  int64_t c = 0;
  for (; c + n <= columns; c += n) {
    for (int i = 0; i < n; ++i) r[i] = i < used ? S::load(in + i * stride + c) : typename S::V{};
    transpose_tile<Real>(r);
    for (int i = 0; i < n; ++i) S::store(out + (c + i) * n, r[i]);
  }
  for (; c < columns; ++c) {
    for (int i = 0; i < n; ++i) out[c * n + i] = i < used ? in[i * stride + c] : Real(0);
  }
}

/// The inverse of `interleave`: writes the first `used` lanes only.
template <class Real>
inline void deinterleave(Real* out, int64_t stride, const Real* in, int64_t columns, int used) {
  using S = Simd<Real>;
  constexpr int n = S::kLanes;
  typename S::V r[n];
  int64_t c = 0;
  for (; c + n <= columns; c += n) {
    for (int i = 0; i < n; ++i) r[i] = S::load(in + (c + i) * n);
    transpose_tile<Real>(r);
    for (int i = 0; i < used; ++i) S::store(out + i * stride + c, r[i]);
  }
  for (; c < columns; ++c) {
    for (int i = 0; i < used; ++i) out[i * stride + c] = in[c * n + i];
  }
}

}  // namespace INNERLOOP_LEVEL
}  // namespace innerloop
