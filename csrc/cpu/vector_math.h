// exp, log, tanh, ... on whole vectors, for both dtypes, from argument reduction and Taylor series
// whose truncation error is below half a unit in the last place on the reduced interval.
#pragma once

#include <cmath>

#include "core/logarithm.h"
#include "cpu/simd.h"
#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace innerloop {
namespace INNERLOOP_LEVEL {

/// The policy `M` of core/activation.h and core/objectives: element type and arithmetic.
template <class Real>
struct VectorMath {
  using S = Simd<Real>;
  using V = typename S::V;
  using Cell = V;
  using I = typename S::I;
  using Int = typename S::Int;
  using C = MathConstants<Real>;

  static INNERLOOP_INLINE V set(double x) { return S::set(static_cast<Real>(x)); }
  static INNERLOOP_INLINE V select_gt(V a, V b, V yes, V no) { return a > b ? yes : no; }
  static INNERLOOP_INLINE V select_eq(V a, V b, V yes, V no) { return a == b ? yes : no; }
  static INNERLOOP_INLINE V max(V a, V b) { return b > a ? b : a; }
  static INNERLOOP_INLINE V abs(V x) { return (V)((I)x & ~(I)S::set(Real(-0.0))); }

  static INNERLOOP_INLINE V fma(V a, V b, V c) { return S::fma(a, b, c); }
  static INNERLOOP_INLINE V sqrt(V x) {
#if defined(__AVX512F__)
    if constexpr (sizeof(Real) == 4) {
      return (V)_mm512_maskz_sqrt_ps(0xFFFF, (__m512)x);
    } else {
      return (V)_mm512_maskz_sqrt_pd(0xFF, (__m512d)x);
    }
#elif defined(__AVX2__)
    if constexpr (sizeof(Real) == 4) {
      return (V)_mm256_sqrt_ps((__m256)x);
    } else {
      return (V)_mm256_sqrt_pd((__m256d)x);
    }
#elif defined(__SSE2__)
    if constexpr (sizeof(Real) == 4) {
      return (V)_mm_sqrt_ps((__m128)x);
    } else {
      return (V)_mm_sqrt_pd((__m128d)x);
    }
#else
    for (int i = 0; i < S::kLanes; ++i) x[i] = std::sqrt(x[i]);
    return x;
#endif
  }

  /// x = n ln2 + r with |r| <= ln2 / 2; returns r and 2^(n/2), 2^(n - n/2) as two factors, so that
  /// results down to the smallest denormal need no special case.
  static INNERLOOP_INLINE V reduce(V x, V* first, V* second) {
    const V shifted = x * set(1.44269504088896340736) + S::set(C::kRound);
    const V n = shifted - S::set(C::kRound);
    const I integer = (I)shifted - (I)S::set(C::kRound);
    const I half = integer >> 1;
    *first = (V)((half + C::kBias) << C::kMantissaBits);
    *second = (V)((integer - half + C::kBias) << C::kMantissaBits);
    return (x - n * S::set(C::kLn2High)) - n * S::set(C::kLn2Low);
  }
  /// (exp(r) - 1) / r by Horner.
  static INNERLOOP_INLINE V exp_series(V r) {
    double factorial = 1;
    for (int k = 2; k <= C::kExpTerms; ++k) factorial *= k;
    V p = set(1 / factorial);
#pragma GCC unroll 16
    for (int k = C::kExpTerms; k >= 2; --k) {
      factorial /= k;
      p = fma(p, r, set(1 / factorial));
    }
    return p;
  }
  /// x between two bounds; keeps NaN.
  static INNERLOOP_INLINE V clamp(V x, Real low, Real high) {
    x = x > S::set(high) ? S::set(high) : x;
    return x < S::set(low) ? S::set(low) : x;
  }
  static INNERLOOP_INLINE V exp(V x) {
    V first, second;
    const V r = reduce(clamp(x, C::kExpMin - 1, C::kExpMax + 1), &first, &second);
    const V y = fma(exp_series(r), r, set(1)) * first * second;
    return x > S::set(C::kExpMax) ? S::set(static_cast<Real>(INFINITY)) : y;
  }
  /// (1 - e) / (1 + e) with e = exp(-2 |x|): from e - 1 where that is small, and as 1 - 2 e / (1 +
  /// e) beyond, so that tanh'(x) = (1 - h)(1 + h) is as good as h can make it.
  static INNERLOOP_INLINE V tanh(V x) {
    V first, second;
    const V r = reduce(clamp(set(-2) * abs(x), C::kExpMin - 1, 0), &first, &second);
    const V scale = first * second, change = exp_series(r) * r;
    const V e = fma(change, scale, scale);
    const V missing = fma(change, scale, scale - set(1));  // e - 1
    const V near = set(0.5);
    const V q = select_gt(e, near, -missing, e + e) / (set(1) + e);
    const V y = select_gt(e, near, q, set(1) - q);
    return x < V{} ? -y : y;
  }
  static INNERLOOP_INLINE V sigmoid(V x) { return set(1) / (set(1) + exp(-x)); }

  static INNERLOOP_INLINE I bits(V x) { return (I)x; }
  static INNERLOOP_INLINE V number(I bits) { return (V)bits; }
  static INNERLOOP_INLINE V convert(I x) { return __builtin_convertvector(x, V); }
  /// log of a positive normal x.
  static INNERLOOP_INLINE V log(V x) { return log_positive<VectorMath, true>(x); }
  /// log(1 + u) for u in [0, 1], accurate near 0.
  static INNERLOOP_INLINE V log1p_unit(V u) {
    const V w = set(1) + u;
    return log(w) + (u - (w - set(1))) / w;
  }
  /// The standard normal distribution function, by libm lane by lane (gelu only).
  static inline V normal_cdf(V x) {
    V y;
    for (int i = 0; i < S::kLanes; ++i) {
      y[i] = Real(0.5) * std::erfc(x[i] * Real(-0.70710678118654752440));
    }
    return y;
  }
};

}  // namespace INNERLOOP_LEVEL
}  // namespace innerloop
