// The logarithm from argument reduction and a series, for any lanes: the same rounded operations in
// the same order everywhere.
#pragma once

#include <cmath>

#include "core/host_device.h"

namespace innerloop {

/// What the reductions of exp and log need to know of a dtype.
template <class Real>
struct MathConstants;
template <>
struct MathConstants<float> {
  static constexpr int kExpTerms = 7, kLogTerms = 5, kMantissaBits = 23, kBias = 127;
  static constexpr float kRound = 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer
  static constexpr float kLn2High = 0.693359375f, kLn2Low = -2.12194440e-4f;
  static constexpr float kExpMax = 88.7228391f, kExpMin = -103.9720840f;
};
template <>
struct MathConstants<double> {
  static constexpr int kExpTerms = 13, kLogTerms = 11, kMantissaBits = 52, kBias = 1023;
  static constexpr double kRound = 6755399441055744.0;  // 1.5 * 2^52
  static constexpr double kLn2High = 6.93145751953125e-1, kLn2Low = 1.42860682030941723212e-6;
  static constexpr double kExpMax = 709.782712893383996, kExpMin = -745.133219101941108;
};

/// log of a positive normal x. `M` supplies lanes V with constants C, `set`, their bits as integer
/// lanes I (`bits`) and back (`number`), `convert` from I to V, and `fma` if the multiply-adds are
/// to be fused (faster, but then the bits depend on the machine).
template <class M, bool kFused = false>
IL_INLINE typename M::V log_positive(typename M::V x) {
  using V = typename M::V;
  using I = typename M::I;
  using C = typename M::C;
  const I bits = M::bits(x);
  const I exponent = (bits - M::bits(M::set(0.70710678118654752440))) >> C::kMantissaBits;
  const V m = M::number(bits - (exponent << C::kMantissaBits));  // in [sqrt(1/2), sqrt(2))
  const V s = (m - M::set(1)) / (m + M::set(1));
  const V s2 = s * s;
  V p = M::set(1.0 / (2 * C::kLogTerms + 1));
  IL_UNROLLED(16)
  for (int k = C::kLogTerms - 1; k >= 0; --k) {
    if constexpr (kFused) {
      p = M::fma(p, s2, M::set(1.0 / (2 * k + 1)));
    } else {
      p = p * s2 + M::set(1.0 / (2 * k + 1));
    }
  }
  const V n = M::convert(exponent);
  const V y = n * M::set(C::kLn2High) + (n * M::set(C::kLn2Low) + M::set(2) * s * p);
  const V keep = x + x;  // NaN and infinity pass through
  return (x < M::set(INFINITY)) ? y : keep;
}

}  // namespace innerloop
