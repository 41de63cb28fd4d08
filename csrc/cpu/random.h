// Uniform, normal and chi variables, one per lane, from counters. Compiled without contraction, a
// lane's numbers are made of correctly rounded operations in one order: they have the same bits for
// every instruction level and every neighbour in the vector.
#pragma once

#include "core/philox.h"
#include "cpu/vector_math.h"
#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace innerloop {
namespace INNERLOOP_LEVEL {

/// Lanes of 64-bit words and what the float64 lanes need beyond VectorMath.
struct Lanes {
  using S = Simd<double>;
  using V = S::V;
  using I = S::I;
  typedef uint64_t U __attribute__((vector_size(INNERLOOP_VECTOR_BYTES)));

  static INNERLOOP_INLINE U words(uint64_t x) { return x - U{}; }
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
  static INNERLOOP_INLINE V sqrt(V x) {
#if defined(__AVX512F__)
    return (V)_mm512_maskz_sqrt_pd(0xFF, (__m512d)x);
#elif defined(__AVX2__)
    return (V)_mm256_sqrt_pd((__m256d)x);
#elif defined(__SSE2__)
    return (V)_mm_sqrt_pd((__m128d)x);
#else
    for (int i = 0; i < S::kLanes; ++i) x[i] = __builtin_sqrt(x[i]);
    return x;
#endif
  }
  /// Whether a comparison holds in every lane.
  static INNERLOOP_INLINE bool all(I mask) {
#if defined(__AVX512F__)
    return _mm512_movepi64_mask((__m512i)mask) == 0xFF;
#elif defined(__AVX2__)
    return _mm256_movemask_pd((__m256d)mask) == 0xF;
#elif defined(__SSE2__)
    return _mm_movemask_pd((__m128d)mask) == 0x3;
#else
    int64_t every = -1;
    for (int i = 0; i < S::kLanes; ++i) every &= mask[i];
    return every != 0;
#endif
  }
  /// sin and cos of 2 pi u for u in [0, 1]: the nearest quarter turn is exact, the rest a Taylor
  /// series on [-pi / 4, pi / 4].
  static INNERLOOP_INLINE void sin_cos_turns(V u, V* sine, V* cosine) {
    const V four = S::set(4) * u;
    const V shifted = four + S::set(6755399441055744.0);  // 1.5 * 2^52: rounds to an integer
    const I quarter = (I)shifted;
    const V x = (four - (shifted - S::set(6755399441055744.0))) * S::set(1.57079632679489661923);
    const V x2 = x * x;
    constexpr double kSine[] = {
        1.0,          -1.0 / 6,        1.0 / 120,        -1.0 / 5040,
        1.0 / 362880, -1.0 / 39916800, 1.0 / 6227020800, -1.0 / 1307674368000};
    constexpr double kCosine[] = {1.0,
                                  -1.0 / 2,
                                  1.0 / 24,
                                  -1.0 / 720,
                                  1.0 / 40320,
                                  -1.0 / 3628800,
                                  1.0 / 479001600,
                                  -1.0 / 87178291200,
                                  1.0 / 20922789888000};
    V s = S::set(kSine[7]), c = S::set(kCosine[8]);
#pragma GCC unroll 8
    for (int k = 7; k >= 0; --k) {
      c = c * x2 + S::set(kCosine[k]);
      if (k < 7) s = s * x2 + S::set(kSine[k]);
    }
    s = s * x;
    const I odd = (quarter & 1) != 0;
    const V a = odd ? c : s, b = odd ? s : c;
    *sine = (quarter & 2) != 0 ? -a : a;
    *cosine = ((quarter + 1) & 2) != 0 ? -b : b;
  }
};

/// The random variables of one task in kLanes trials, in a fixed order. A call takes the next
/// counters; a rejected proposal draws again under the same counters with the next attempt.
class Stream {
 public:
  using S = Simd<double>;
  using M = VectorMath<double>;
  using V = S::V;
  using U = Lanes::U;
  struct Pair {
    V first, second;
  };

  INNERLOOP_INLINE Stream(const Philox<Lanes>& philox, U trial, int64_t task)
      : philox_(philox), trial_(trial), task_(Lanes::words(static_cast<uint64_t>(task))) {}

  /// Two uniform variables on (0, 1): odd multiples of 2^-53.
  INNERLOOP_INLINE Pair uniforms() { return uniforms(draw_++, 0); }
  /// Two standard normal variables (Box and Muller, 1958).
  INNERLOOP_INLINE Pair normals() { return normals(draw_++, 0); }
  /// Two chi variables with `degrees` degrees of freedom, up to the sign for one degree.
  INNERLOOP_INLINE Pair chis(int64_t degrees) {
    const int64_t draw = draw_;
    draw_ += 2;
    return degrees == 1 ? normals(draw, 0) : gammas(0.5 * static_cast<double>(degrees), draw);
  }

 private:
  INNERLOOP_INLINE Pair uniforms(int64_t draw, int64_t attempt) const {
    U word[4] = {Lanes::words(static_cast<uint64_t>(draw)), task_, trial_,
                 Lanes::words(static_cast<uint64_t>(attempt))};
    philox_.scramble(word);
    return {unit(word[0], word[1]), unit(word[2], word[3])};
  }
  /// 52 of the 64 bits: a number in [1, 2), moved by 1 - 2^-53.
  static INNERLOOP_INLINE V unit(U low, U high) {
    const U bits = (low & 0xFFFFFFFFu) | (high << 32);
    const V one_to_two = (V)((bits >> 12) | uint64_t{0x3FF0000000000000});
    return one_to_two - S::set(1 - 0x1p-53);
  }
  INNERLOOP_INLINE Pair normals(int64_t draw, int64_t attempt) const {
    const Pair u = uniforms(draw, attempt);
    const V radius = Lanes::sqrt(S::set(-2) * M::log(u.first));
    V sine, cosine;
    Lanes::sin_cos_turns(u.second, &sine, &cosine);
    return {radius * cosine, radius * sine};
  }
  /// sqrt(2 g) for two gamma variables g of one shape >= 1, by rejection from a cubed normal
  /// (Marsaglia and Tsang, "A simple method for generating gamma variables", ACM TOMS 26, 2000).
  Pair gammas(double shape, int64_t draw) const {
    const double d = shape - 1.0 / 3.0;
    const V c = S::set(1 / __builtin_sqrt(9 * d)), scale = S::set(2 * d);
    Pair result{};
    S::I done_first{}, done_second{};
    for (int64_t attempt = 0;; ++attempt) {
      const Pair x = normals(draw, attempt), u = uniforms(draw + 1, attempt);
      propose(x.first, u.first, d, c, &result.first, &done_first);
      propose(x.second, u.second, d, c, &result.second, &done_second);
      if (Lanes::all(done_first & done_second)) break;
    }
    return {Lanes::sqrt(scale * result.first), Lanes::sqrt(scale * result.second)};
  }
  /// Keeps (1 + c x)^3 in the lanes that accept it and have none yet. The polynomial bound accepts
  /// most without logarithms, and only what the exact test would accept.
  static INNERLOOP_INLINE void propose(V x, V u, double d, V c, V* kept, S::I* done) {
    const V root = S::set(1) + c * x, x2 = x * x;
    const V v = root * root * root;
    const S::I positive = root > S::set(0);
    S::I accepts = positive & (u < S::set(1) - S::set(0.0331) * (x2 * x2));
    if (!Lanes::all(accepts | *done)) {
      const V limit =
          S::set(0.5) * x2 + S::set(d) * (S::set(1) - v + M::log(positive ? v : S::set(1)));
      accepts |= positive & (M::log(u) < limit);
    }
    *kept = (accepts & ~*done) ? v : *kept;
    *done |= accepts;
  }

  const Philox<Lanes>& philox_;
  U trial_, task_;
  int64_t draw_ = 0;
};

}  // namespace INNERLOOP_LEVEL
}  // namespace innerloop
