// The numbers of one row as vectors, for maps of whole rows (core/layers): how many vectors there
// are, and means over all values. Sums are four at a time: shorter chains of roundings and of
// latencies.
#pragma once

#include "cpu/vector_math.h"

namespace innerloop {
namespace INNERLOOP_LEVEL {

/// The sum of f(i) over i < n.
template <class V, class F>
INNERLOOP_INLINE V sum_of(int64_t n, F&& f) {
  constexpr int kParts = 4;
  V part[kParts] = {};
  int64_t i = 0;
  for (; i + kParts <= n; i += kParts) {
#pragma GCC unroll 4
    for (int k = 0; k < kParts; ++k) part[k] += f(i + k);
  }
  for (int k = 0; i + k < n; ++k) part[k] += f(i + k);
  return (part[0] + part[1]) + (part[2] + part[3]);
}

/// A row of several tasks side by side: a vector holds the same number of each of them.
template <class Real>
class TasksRow : public VectorMath<Real> {
 public:
  using S = Simd<Real>;
  using V = typename S::V;
  using Elem = V;

  explicit TasksRow(int64_t n) : n_(n), share_(S::set(Real(1) / static_cast<Real>(n))) {}
  INNERLOOP_INLINE V load(const V* p, int64_t i) const { return p[i]; }
  INNERLOOP_INLINE void store(V* p, int64_t i, V v) const { p[i] = v; }
  template <class F>
  INNERLOOP_INLINE void each(F&& f) const {
    for (int64_t i = 0; i < n_; ++i) f(i);
  }
  template <class F>
  INNERLOOP_INLINE V mean(F&& f) const {
    return sum_of<V>(n_, f) * share_;
  }
  /// One number of the row.
  static INNERLOOP_INLINE V get(const V* p) { return *p; }
  static INNERLOOP_INLINE void put(V* p, V v) { *p = v; }

 private:
  int64_t n_;
  V share_;
};

/// A row of one task: vectors along it, of which the last is filled with zeros.
template <class Real>
class PaddedRow : public VectorMath<Real> {
 public:
  using S = Simd<Real>;
  using V = typename S::V;
  using I = typename S::I;
  using Elem = Real;

  explicit PaddedRow(int64_t n)
      : whole_(n / S::kLanes),
        rest_(n % S::kLanes),
        share_(S::set(Real(1) / static_cast<Real>(n))) {
    for (int i = 0; i < S::kLanes; ++i) kept_[i] = i < rest_ ? -1 : 0;
  }
  INNERLOOP_INLINE V load(const Real* p, int64_t i) const {
    p += i * S::kLanes;
    return i < whole_ ? S::load(p) : S::load_part(p, rest_);
  }
  INNERLOOP_INLINE void store(Real* p, int64_t i, V v) const {
    S::store(p + i * S::kLanes, i < whole_ ? v : kept(v));
  }
  template <class F>
  INNERLOOP_INLINE void each(F&& f) const {
    for (int64_t i = 0; i < whole_; ++i) f(i);
    if (rest_) f(whole_);
  }
  template <class F>
  INNERLOOP_INLINE V mean(F&& f) const {
    V total = sum_of<V>(whole_, f);
    if (rest_) total += kept(f(whole_));
    return S::set(S::sum(total)) * share_;
  }
  /// One number of the row, which fills a vector of its own.
  static INNERLOOP_INLINE V get(const Real* p) { return S::load(p); }
  static INNERLOOP_INLINE void put(Real* p, V v) { S::store(p, v); }

 private:
  INNERLOOP_INLINE V kept(V v) const { return (V)((I)v & kept_); }

  int64_t whole_, rest_;
  V share_;
  I kept_{};
};

}  // namespace INNERLOOP_LEVEL
}  // namespace innerloop
