// Uniform, normal and chi variables, one per lane, from counters.
//
// The linear-regression study is written once for SIMD lanes of a CPU (cpu/lanes.h) and single
// threads of a GPU (regression/one_lane.h), over a policy L:
//   kLanes                trials that are worked on side by side
//   V, U, I               their float64 numbers, 64-bit words and bits of numbers
//   Mask                  what comparing them gives: takes & and |, chooses in `mask ? a : b`
//   everywhere(), without(a, b)   the mask of all lanes; a and not b
//   any(mask), holds(mask, lane)
//   set(x), words(w), counting(w)   the same in every lane; w, w + 1, ...
//   bits(v), number(i), number_of(u), convert(i)   reinterpreted, and converted to a number
//   multiply(u, w)        64-bit products of the low halves
//   sqrt(v), log(v)
//   get(v, lane), put(v, lane, x)
//   Array                 V's in a worker's memory: array[i], array + n
//   take(&memory, n)      the next n of it, kGap apart from those that follow
//   Numbers, numbers(a)   kLanes float64 numbers for each V of an Array
// Every operation is correctly rounded and compiled without contraction, so a trial's numbers have
// the same bits for every L.
#pragma once

#include <cmath>

#include "core/philox.h"

namespace innerloop {

/// sin and cos of 2 pi u for u in [0, 1]: the nearest quarter turn is exact, the rest a Taylor
/// series on [-pi / 4, pi / 4].
template <class L>
IL_INLINE void sin_cos_turns(typename L::V u, typename L::V* sine, typename L::V* cosine) {
  using V = typename L::V;
  const V round = L::set(6755399441055744.0);  // 1.5 * 2^52: adding it rounds to an integer
  const V four = L::set(4) * u;
  const V shifted = four + round;
  const typename L::I quarter = L::bits(shifted);
  const V x = (four - (shifted - round)) * L::set(1.57079632679489661923);
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
  V s = L::set(kSine[7]), c = L::set(kCosine[8]);
  IL_UNROLLED(8)
  for (int k = 7; k >= 0; --k) {
    c = c * x2 + L::set(kCosine[k]);
    if (k < 7) s = s * x2 + L::set(kSine[k]);
  }
  s = s * x;
  const typename L::Mask odd = (quarter & 1) != 0;
  const V a = odd ? c : s, b = odd ? s : c;
  *sine = (quarter & 2) != 0 ? -a : a;
  *cosine = ((quarter + 1) & 2) != 0 ? -b : b;
}

/// The random variables of one task in kLanes trials, in a fixed order. A call takes the next
/// counters; a rejected proposal draws again under the same counters with the next attempt.
template <class L>
class Stream {
 public:
  using V = typename L::V;
  using U = typename L::U;
  using Mask = typename L::Mask;
  struct Pair {
    V first, second;
  };

  IL_INLINE Stream(const Philox<L>& philox, U trial, int64_t task)
      : philox_(philox), trial_(trial), task_(L::words(static_cast<uint64_t>(task))) {}

  /// Two uniform variables on (0, 1): odd multiples of 2^-53.
  IL_INLINE Pair uniforms() { return uniforms(draw_++, 0); }
  /// Two standard normal variables (Box and Muller, 1958).
  IL_INLINE Pair normals() { return normals(draw_++, 0); }
  /// Two chi variables with `degrees` degrees of freedom, up to the sign for one degree.
  IL_INLINE Pair chis(int64_t degrees) {
    const int64_t draw = draw_;
    draw_ += 2;
    return degrees == 1 ? normals(draw, 0) : gammas(0.5 * static_cast<double>(degrees), draw);
  }

 private:
  IL_INLINE Pair uniforms(int64_t draw, int64_t attempt) const {
    U word[4] = {L::words(static_cast<uint64_t>(draw)), task_, trial_,
                 L::words(static_cast<uint64_t>(attempt))};
    philox_.scramble(word);
    return {unit(word[0], word[1]), unit(word[2], word[3])};
  }
  /// 52 of the 64 bits: a number in [1, 2), moved by 1 - 2^-53.
  static IL_INLINE V unit(U low, U high) {
    const U bits = (low & 0xFFFFFFFFu) | (high << 32);
    const V one_to_two = L::number_of((bits >> 12) | uint64_t{0x3FF0000000000000});
    return one_to_two - L::set(1 - 0x1p-53);
  }
  IL_INLINE Pair normals(int64_t draw, int64_t attempt) const {
    const Pair u = uniforms(draw, attempt);
    const V radius = L::sqrt(L::set(-2) * L::log(u.first));
    V sine, cosine;
    sin_cos_turns<L>(u.second, &sine, &cosine);
    return {radius * cosine, radius * sine};
  }
  /// sqrt(2 g) for two gamma variables g of one shape >= 1, by rejection from a cubed normal
  /// (Marsaglia and Tsang, "A simple method for generating gamma variables", ACM TOMS 26, 2000).
  IL_OUTLINE Pair gammas(double shape, int64_t draw) const {
    const double d = shape - 1.0 / 3.0;
    const V c = L::set(1 / std::sqrt(9 * d)), scale = L::set(2 * d);
    Pair result{};
    Mask first_waits = L::everywhere(), second_waits = first_waits;
    for (int64_t attempt = 0; L::any(first_waits | second_waits); ++attempt) {
      const Pair x = normals(draw, attempt), u = uniforms(draw + 1, attempt);
      propose(x.first, u.first, d, c, &result.first, &first_waits);
      propose(x.second, u.second, d, c, &result.second, &second_waits);
    }
    return {L::sqrt(scale * result.first), L::sqrt(scale * result.second)};
  }
  /// Keeps (1 + c x)^3 in the lanes that wait for it and accept it. The polynomial bound accepts
  /// most without logarithms, and only what the exact test would accept.
  static IL_INLINE void propose(V x, V u, double d, V c, V* kept, Mask* waits) {
    const V root = L::set(1) + c * x, x2 = x * x;
    const V v = root * root * root;
    const Mask positive = root > L::set(0);
    Mask accepts = positive & (u < L::set(1) - L::set(0.0331) * (x2 * x2));
    if (L::any(L::without(*waits, accepts))) {
      const V limit =
          L::set(0.5) * x2 + L::set(d) * (L::set(1) - v + L::log(positive ? v : L::set(1)));
      accepts |= positive & (L::log(u) < limit);
    }
    *kept = (accepts & *waits) ? v : *kept;
    *waits = L::without(*waits, accepts);
  }

  const Philox<L>& philox_;
  U trial_, task_;
  int64_t draw_ = 0;
};

}  // namespace innerloop
