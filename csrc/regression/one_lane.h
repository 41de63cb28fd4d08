// The policy `L` of regression/variables.h for a thread that works on one trial.
#pragma once

#include <cmath>
#include <cstring>

#include "core/logarithm.h"
#include "core/plan.h"

namespace innerloop {

/// A thread's share of memory in which neighbours of a block meet neighbouring cells: cell i of the
/// array lies i * stride cells after cell 0.
template <class Cell>
struct Strided {
  Cell* first;
  int64_t stride;

  IL_INLINE Cell& operator[](int64_t i) const { return first[i * stride]; }
  IL_INLINE Strided operator+(int64_t i) const { return {first + i * stride, stride}; }
};

/// `Cell`: how memory holds a number (block/phase.h).
template <class Cell>
struct OneLane {
  using V = double;
  using U = uint64_t;
  using I = int64_t;
  using C = MathConstants<double>;
  using Mask = bool;
  using Array = Strided<Cell>;
  using Numbers = Array;
  static constexpr int64_t kLanes = 1;
  static constexpr int64_t kGap = Gap<Cell>::kElements;

  IL_INLINE static V set(double x) { return x; }
  IL_INLINE static U words(uint64_t x) { return x; }
  IL_INLINE static U counting(uint64_t first) { return first; }
  IL_INLINE static U multiply(U a, uint32_t b) {
    return uint64_t{static_cast<uint32_t>(a)} * uint64_t{b};
  }
  IL_INLINE static I bits(V x) {
    I i;
    std::memcpy(&i, &x, sizeof i);
    return i;
  }
  IL_INLINE static V number(I i) {
    V x;
    std::memcpy(&x, &i, sizeof x);
    return x;
  }
  IL_INLINE static V number_of(U u) { return number(static_cast<I>(u)); }
  IL_INLINE static V convert(I i) { return static_cast<V>(i); }
  IL_INLINE static V sqrt(V x) { return std::sqrt(x); }
  IL_INLINE static V log(V x) { return log_positive<OneLane>(x); }

  IL_INLINE static Mask everywhere() { return true; }
  IL_INLINE static Mask without(Mask a, Mask b) { return a && !b; }
  IL_INLINE static bool any(Mask mask) { return mask; }
  IL_INLINE static bool holds(Mask mask, int64_t) { return mask; }
  IL_INLINE static double get(V v, int64_t) { return v; }
  IL_INLINE static void put(Cell& v, int64_t, double x) { v = x; }

  IL_INLINE static Array take(Array* memory, int64_t count) {
    const Array taken = *memory;
    if (kGap > 0) {
      for (int64_t i = 0; i < count; ++i) Gap<Cell>::open(&taken[i], 1);
    }
    *memory = taken + (count + kGap);
    return taken;
  }
  IL_INLINE static Numbers numbers(Array memory) { return memory; }
};

}  // namespace innerloop
