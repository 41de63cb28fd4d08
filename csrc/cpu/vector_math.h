// exp, log, tanh, ... on whole vectors, for both dtypes, from argument reduction and Taylor series
// whose truncation error is below half a unit in the last place on the reduced interval.
#pragma once

#include <cmath>

#include "core/logarithm.h"
#include "cpu/simd.h"

namespace innerloop {
namespace INNERLOOP_LEVEL {

/// The policy `M` of core/activation.h and core/loss.h: element type and arithmetic.
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
  static INNERLOOP_INLINE V abs(V x) { return x < V{} ? -x : x; }

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
      p = p * r + set(1 / factorial);
    }
    return p;
  }
  static INNERLOOP_INLINE V clamp(V x) {  // keeps NaN
    x = x > S::set(C::kExpMax + 1) ? S::set(C::kExpMax + 1) : x;
    return x < S::set(C::kExpMin - 1) ? S::set(C::kExpMin - 1) : x;
  }
  static INNERLOOP_INLINE V exp(V x) {
    V first, second;
    const V r = reduce(clamp(x), &first, &second);
    const V y = (exp_series(r) * r + set(1)) * first * second;
    const V infinity = S::set(static_cast<Real>(INFINITY));
    return x > S::set(C::kExpMax) ? infinity : y;
  }
  /// exp(x) - 1 for x <= 0, accurate near 0.
  static INNERLOOP_INLINE V expm1_negative(V x) {
    V first, second;
    const V r = reduce(clamp(x), &first, &second);
    const V scale = first * second;
    return exp_series(r) * r * scale + (scale - set(1));
  }
  static INNERLOOP_INLINE V tanh(V x) {
    const V t = expm1_negative(set(-2) * abs(x));
    const V y = -t / (t + set(2));
    return x < V{} ? -y : y;
  }
  static INNERLOOP_INLINE V sigmoid(V x) { return set(1) / (set(1) + exp(-x)); }

  static INNERLOOP_INLINE I bits(V x) { return (I)x; }
  static INNERLOOP_INLINE V number(I bits) { return (V)bits; }
  static INNERLOOP_INLINE V convert(I x) { return __builtin_convertvector(x, V); }
  /// log of a positive normal x.
  static INNERLOOP_INLINE V log(V x) { return log_positive<VectorMath>(x); }
  /// log(1 + u) for u in [0, 1], accurate near 0.
  static INNERLOOP_INLINE V log1p_unit(V u) {
    const V w = set(1) + u;
    return log(w) + (u - (w - set(1))) / w;
  }
  static INNERLOOP_INLINE V softplus(V x) { return (x > V{} ? x : V{}) + log1p_unit(exp(-abs(x))); }
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
