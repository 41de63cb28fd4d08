// Vectors of one register's width over GCC/Clang vector extensions: one source for every level.
#pragma once

#include <cstdint>
#include <cstring>

#include "cpu/level.h"
#if defined(__AVX512F__) || defined(__FMA__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

namespace innerloop {
namespace INNERLOOP_LEVEL {

/// Sums of up to so many products are formed without fused multiply-adds: products that cancel
/// exactly (the gradients of two classes with equal weights, say) leave nothing then, where a fused
/// one leaves the rounding error of the other. It costs little, since such products are small.
constexpr int64_t kFewTerms = 4;

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
  /// a b + c, rounded once where the level has the instruction. Multiply-adds are never left to the
  /// compiler (-ffp-contract=off): it fuses one and the same expression in one tile and not in the
  /// next, and outputs that are exactly tied then come apart in the last bit. A step of descent,
  /// phi - alpha g, is not fused: the next step may undo it exactly, and rounding g alpha once but
  /// not twice would leave the product's rounding error in place of 0.
  static INNERLOOP_INLINE V fma(V a, V b, V c) {
#if defined(__AVX512F__)
    if constexpr (sizeof(Real) == 4) {
      return (V)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
    } else {
      return (V)_mm512_fmadd_pd((__m512d)a, (__m512d)b, (__m512d)c);
    }
#elif defined(__FMA__)
    if constexpr (sizeof(Real) == 4) {
      return (V)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
    } else {
      return (V)_mm256_fmadd_pd((__m256d)a, (__m256d)b, (__m256d)c);
    }
#elif defined(__aarch64__)
    if constexpr (sizeof(Real) == 4) {
      return (V)vfmaq_f32((float32x4_t)c, (float32x4_t)a, (float32x4_t)b);
    } else {
      return (V)vfmaq_f64((float64x2_t)c, (float64x2_t)a, (float64x2_t)b);
    }
#else
    return a * b + c;
#endif
  }
  /// c + a b, fused in products of many terms only.
  template <bool kFew>
  static INNERLOOP_INLINE V add_product(V a, V b, V c) {
    return kFew ? c + a * b : fma(a, b, c);
  }

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

  /// The lanes of a and b alternately: the first kLanes of them, and the rest.
  static INNERLOOP_INLINE void zip(V a, V b, V* first, V* rest) {
#if defined(__clang__)
    for (int k = 0; k < kLanes; ++k) {
      (*first)[k] = (k % 2 ? b : a)[k / 2];
      (*rest)[k] = (k % 2 ? b : a)[kLanes / 2 + k / 2];
    }
#else
    I low{}, high{};
    for (int i = 0; i < kLanes; ++i) {
      low[i] = i / 2 + (i % 2) * kLanes;
      high[i] = kLanes / 2 + i / 2 + (i % 2) * kLanes;
    }
    *first = __builtin_shuffle(a, b, low);
    *rest = __builtin_shuffle(a, b, high);
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

/// total + a b, where a = 0 stops an infinite b.
template <class Real>
INNERLOOP_INLINE typename Simd<Real>::V add_product(typename Simd<Real>::V total,
                                                    typename Simd<Real>::V a,
                                                    typename Simd<Real>::V b) {
  const typename Simd<Real>::V zero{};
  return Simd<Real>::fma(a, a == zero ? zero : b, total);
}

inline int64_t round_up(int64_t n, int64_t multiple) {
  return (n + multiple - 1) / multiple * multiple;
}
inline int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }
inline int64_t larger(int64_t a, int64_t b) { return a < b ? b : a; }

/// Transposes a kLanes x kLanes tile held in r: row i becomes lane i of every r[j]. Perfect
/// shuffles of the two halves, log2(kLanes) times, rotate the (row, lane) index bits until both are
/// swapped.
template <class Real>
INNERLOOP_INLINE void transpose_tile(typename Simd<Real>::V* r) {
  using S = Simd<Real>;
  constexpr int n = S::kLanes;
  typename S::V t[n];
#pragma GCC unroll 8
  for (int width = n; width > 1; width /= 2) {
#pragma GCC unroll 16
    for (int i = 0; i < n / 2; ++i) S::zip(r[i], r[i + n / 2], &t[2 * i], &t[2 * i + 1]);
#pragma GCC unroll 16
    for (int i = 0; i < n; ++i) r[i] = t[i];
  }
}

#if defined(__AVX512F__) && !defined(__clang__)
// Lanes of two vectors, by number or in pairs inside their 128-bit quarters, and quarters.
constexpr Simd<float>::I kLow = {0, 16, 1, 17, 4, 20, 5, 21, 8, 24, 9, 25, 12, 28, 13, 29};
constexpr Simd<float>::I kHigh = {2, 18, 3, 19, 6, 22, 7, 23, 10, 26, 11, 27, 14, 30, 15, 31};
constexpr Simd<float>::I kLowPairs = {0, 1, 16, 17, 4, 5, 20, 21, 8, 9, 24, 25, 12, 13, 28, 29};
constexpr Simd<float>::I kHighPairs = {2, 3, 18, 19, 6, 7, 22, 23, 10, 11, 26, 27, 14, 15, 30, 31};
constexpr Simd<float>::I kEven = {0, 1, 2, 3, 8, 9, 10, 11, 16, 17, 18, 19, 24, 25, 26, 27};
constexpr Simd<float>::I kOdd = {4, 5, 6, 7, 12, 13, 14, 15, 20, 21, 22, 23, 28, 29, 30, 31};

/// The same with shuffles that stay inside 128-bit quarters as long as possible: one cycle each.
template <>
INNERLOOP_INLINE void transpose_tile<float>(Simd<float>::V* r) {
  Simd<float>::V t[16];
#pragma GCC unroll 8
  for (int i = 0; i < 16; i += 2) {
    t[i] = __builtin_shuffle(r[i], r[i + 1], kLow);
    t[i + 1] = __builtin_shuffle(r[i], r[i + 1], kHigh);
  }
#pragma GCC unroll 4
  for (int i = 0; i < 16; i += 4) {
#pragma GCC unroll 2
    for (int k = 0; k < 2; ++k) {
      r[i + 2 * k] = __builtin_shuffle(t[i + k], t[i + 2 + k], kLowPairs);
      r[i + 2 * k + 1] = __builtin_shuffle(t[i + k], t[i + 2 + k], kHighPairs);
    }
  }
#pragma GCC unroll 2
  for (int i = 0; i < 16; i += 8) {
#pragma GCC unroll 4
    for (int k = 0; k < 4; ++k) {
      t[i + k] = __builtin_shuffle(r[i + k], r[i + 4 + k], kEven);
      t[i + 4 + k] = __builtin_shuffle(r[i + k], r[i + 4 + k], kOdd);
    }
  }
#pragma GCC unroll 8
  for (int i = 0; i < 8; ++i) {
    r[i] = __builtin_shuffle(t[i], t[i + 8], kEven);
    r[i + 8] = __builtin_shuffle(t[i], t[i + 8], kOdd);
  }
}
#endif

/// Sums kLanes vectors across: lane j of the result is the sum of r[j]. Overwrites r.
template <class Real>
INNERLOOP_INLINE typename Simd<Real>::V reduce_tile(typename Simd<Real>::V* r) {
  using S = Simd<Real>;
#pragma GCC unroll 8
  for (int count = S::kLanes; count > 1; count /= 2) {
#pragma GCC unroll 16
    for (int i = 0; i < count / 2; ++i) {
      typename S::V low, high;
      S::zip(r[i], r[i + count / 2], &low, &high);
      r[i] = low + high;
    }
  }
  return r[0];
}

#if defined(__AVX512F__) && !defined(__clang__)
/// The same with shuffles that stay inside 128-bit quarters as long as possible: one cycle each.
template <>
INNERLOOP_INLINE Simd<float>::V reduce_tile<float>(Simd<float>::V* r) {
  const auto halve = [r](int count, Simd<float>::I first,
                         Simd<float>::I second) __attribute__((always_inline)) {
#pragma GCC unroll 8
    for (int i = 0; i < count; ++i) {
      const Simd<float>::V a = r[2 * i], b = r[2 * i + 1];
      r[i] = __builtin_shuffle(a, b, first) + __builtin_shuffle(a, b, second);
    }
  };
  halve(8, kLow, kHigh);
  halve(4, kLowPairs, kHighPairs);
  halve(2, kEven, kOdd);
  halve(1, kEven, kOdd);
  return r[0];
}
#endif

/// A pointer moved on. The compiler does not see by how much: it would compute the addresses of all
/// rows of a tile beforehand, which are more than there are registers.
template <class T>
INNERLOOP_INLINE T* moved(T* at, int64_t by) {
  at += by;
  asm("" : "+r"(at));
  return at;
}

/// out[c * kLanes + lane] = in[lane * stride + c] for c < columns; lanes >= used become 0. Where
/// rows lie far apart it asks for those one group of lanes further on, which the next call will
/// read.
template <class Real>
inline void interleave(Real* out, const Real* in, int64_t stride, int64_t columns, int used) {
  using S = Simd<Real>;
  constexpr int n = S::kLanes;
  constexpr int near = n < 4 ? n : 4;  // rows whose addresses are one register and the stride
  constexpr int64_t kFarRows = 1024 / sizeof(Real);  // nearer ones the processor foresees
  typename S::V r[n];
  int64_t c = 0;
  for (; c + n <= columns; c += n) {
    const Real* row = in + c;
    if (used == n) {
#pragma GCC unroll 16
      for (int i = 0; i < n; i += near, row = moved(row, near * stride)) {
#pragma GCC unroll 4
        for (int k = 0; k < near; ++k) r[i + k] = S::load(row + k * stride);
      }
      if (stride >= kFarRows) {
#pragma GCC unroll 16
        for (int i = 0; i < n; i += near, row = moved(row, near * stride)) {
#pragma GCC unroll 4
          for (int k = 0; k < near; ++k) __builtin_prefetch(row + k * stride, 0, 2);
        }
      }
    } else {
      for (int i = 0; i < n; ++i) r[i] = i < used ? S::load(row + i * stride) : typename S::V{};
    }
    transpose_tile<Real>(r);
#pragma GCC unroll 16
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
#pragma GCC unroll 16
    for (int i = 0; i < n; ++i) r[i] = S::load(in + (c + i) * n);
    transpose_tile<Real>(r);
    if (used == n) {
      Real* row = out + c;
#pragma GCC unroll 16
      for (int i = 0; i < n; ++i, row = moved(row, stride)) S::store(row, r[i]);
    } else {
      for (int i = 0; i < used; ++i) S::store(out + i * stride + c, r[i]);
    }
  }
  for (; c < columns; ++c) {
    for (int i = 0; i < used; ++i) out[i * stride + c] = in[c * n + i];
  }
}

}  // namespace INNERLOOP_LEVEL
}  // namespace innerloop
