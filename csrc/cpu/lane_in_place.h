// Products of the lane engine with rows that stay where the caller has them. A layer with one
// output reads an input once per product, and putting it into lanes costs as much as two products:
// here vectors lie along the inputs of one task, and only the results go to lanes.
#pragma once

#include "cpu/lane_group.h"

namespace innerloop {
namespace INNERLOOP_LEVEL {

/// Rows in place are marked by a row length of 0; `p` is the first number of the group's first
/// task.
template <class Real>
static LaneRows<Real> in_place(const void* p, int64_t rows, int64_t cols) {
  void* const at = const_cast<void*>(p);
  return {static_cast<Vector<Real>*>(at), rows, cols, 0};
}
template <class Real>
static bool is_in_place(const LaneRows<Real>& r) {
  return r.ld == 0;
}
template <class Real>
static const Real* task_rows(const LaneRows<Real>& r, int64_t task) {
  return reinterpret_cast<const Real*>(r.p) + task * r.rows * r.cols;
}

/// sum[i] += row i * w, kLanes numbers or the first of them that `load` reads, for kLanes rows.
template <class Real, class Load>
INNERLOOP_INLINE void add_products(Vector<Real>* sum, const Real* x, int64_t cols, Vector<Real> w,
                                   Load load) {
  constexpr int64_t kWidth = Simd<Real>::kLanes;
  constexpr int64_t near = kWidth < 4 ? kWidth : 4;  // as in `interleave`
#pragma GCC unroll 16
  for (int64_t i = 0; i < kWidth; i += near, x = moved(x, near * cols)) {
#pragma GCC unroll 4
    for (int64_t k = 0; k < near; ++k) {
      sum[i + k] = Simd<Real>::fma(load(x + k * cols), w, sum[i + k]);
    }
  }
}
/// The products of kLanes rows with w: row i in lane i.
template <class Real>
INNERLOOP_INLINE Vector<Real> dot_rows(const Real* x, int64_t cols, const Real* w) {
  using S = Simd<Real>;
  Vector<Real> sum[S::kLanes] = {};
  int64_t j = 0;
  for (; j + S::kLanes <= cols; j += S::kLanes) {
    add_products(sum, x + j, cols, S::load(w + j), [](const Real* p) { return S::load(p); });
  }
  if (const int64_t n = cols - j; n > 0) {
    add_products(sum, x + j, cols, S::load_part(w + j, n),
                 [n](const Real* p) { return S::load_part(p, n); });
  }
  return reduce_tile<Real>(sum);
}
/// The same of fewer rows.
template <class Real>
static Vector<Real> dot_few_rows(const Real* x, int64_t rows, int64_t cols, const Real* w) {
  using S = Simd<Real>;
  Vector<Real> sum[S::kLanes] = {};
  for (int64_t i = 0; i < rows; ++i, x += cols) {
    for (int64_t j = 0; j < cols; j += S::kLanes) {
      const int64_t n = smaller(S::kLanes, cols - j);
      sum[i] = S::fma(S::load_part(x + j, n), S::load_part(w + j, n), sum[i]);
    }
  }
  return reduce_tile<Real>(sum);
}
/// Adds the sum of rows, row i times factors[i * step], to four sums: columns j to j + n - 1 of it.
template <class Real>
INNERLOOP_INLINE void add_rows(Vector<Real>* part, const Real* x, int64_t rows, int64_t cols,
                               int64_t j, int64_t n, const Real* factors, int64_t step) {
  using S = Simd<Real>;
  const auto add = [&](int64_t i, Vector<Real>& sum) __attribute__((always_inline)) {
    const Real* at = x + i * cols + j;
    const Vector<Real> row = n == S::kLanes ? S::load(at) : S::load_part(at, n);
    sum = S::fma(row, S::set(factors[i * step]), sum);
  };
  int64_t i = 0;
  for (; i + 4 <= rows; i += 4) {
#pragma GCC unroll 4
    for (int64_t k = 0; k < 4; ++k) add(i + k, part[k]);
  }
#pragma GCC unroll 4
  for (int64_t k = 0; k < 3; ++k) {  // few terms: none is fused
    if (i + k < rows) add(i + k, part[k]);
  }
}
template <class Real>
INNERLOOP_INLINE Vector<Real> total_of(const Vector<Real>* part) {
  return (part[0] + part[1]) + (part[2] + part[3]);
}

/// Room for the weights of the group's tasks, in vectors.
template <class Real>
static int64_t in_place_size(int64_t cols) {
  return round_up(cols, Simd<Real>::kLanes);
}
/// c = scale x w^T of every task, added to c if asked; `room` as `in_place_size` says.
template <class Real>
static void in_place_nt(const LaneRows<Real>& c, const LaneRows<Real>& x,
                        const Weight<Real, Vector<Real>>& w, Vector<Real> scale, bool add, int used,
                        Vector<Real>* room) {
  using S = Simd<Real>;
  constexpr int64_t kWidth = S::kLanes;
  const Real* weights = w.shared;
  int64_t stride = 0;
  if (w.own) {
    stride = in_place_size<Real>(x.cols);
    deinterleave(reinterpret_cast<Real*>(room), stride, reinterpret_cast<const Real*>(w.own),
                 x.cols, S::kLanes);
    weights = reinterpret_cast<const Real*>(room);
  }
  for (int64_t first = 0; first < x.rows; first += kWidth) {
    const int64_t n = smaller(kWidth, x.rows - first);
    Vector<Real> product[kWidth];
    for (int t = 0; t < used; ++t) {
      const Real* from = task_rows<Real>(x, t) + first * x.cols;
      const Real* factor = weights + t * stride;
      product[t] =
          n == kWidth ? dot_rows(from, x.cols, factor) : dot_few_rows(from, n, x.cols, factor);
    }
    for (int64_t t = used; t < kWidth; ++t) product[t] = Vector<Real>{};
    transpose_tile<Real>(product);
    for (int64_t i = 0; i < n; ++i) {
      Vector<Real>& to = c.p[(first + i) * c.ld];
      to = add ? to + scale * product[i] : scale * product[i];
    }
  }
}
/// f(j, column j of a^T x of every task).
template <class Real, class F>
static void in_place_tn(const LaneRows<Real>& a, const LaneRows<Real>& x, int used, F&& f) {
  constexpr int64_t kWidth = Simd<Real>::kLanes;
  const Real* factors = reinterpret_cast<const Real*>(a.p);
  for (int64_t j = 0; j < x.cols; j += kWidth) {
    const int64_t n = smaller(kWidth, x.cols - j);
    Vector<Real> sum[kWidth];
    for (int t = 0; t < used; ++t) {
      Vector<Real> part[4] = {};
      add_rows(part, task_rows<Real>(x, t), x.rows, x.cols, j, n, factors + t, a.ld * kWidth);
      sum[t] = total_of<Real>(part);
    }
    for (int64_t t = used; t < kWidth; ++t) sum[t] = Vector<Real>{};
    transpose_tile<Real>(sum);
    for (int64_t k = 0; k < n; ++k) f(j + k, sum[k]);
  }
}
/// sink += sign a^T x, summed over tasks: all of it in a vector's first lane.
template <class Real>
static void in_place_sink_tn(Vector<Real>* sink, const LaneRows<Real>& a, const LaneRows<Real>& x,
                             int used, Real sign) {
  constexpr int64_t kWidth = Simd<Real>::kLanes;
  const Real* factors = reinterpret_cast<const Real*>(a.p);
  for (int64_t j = 0; j < x.cols; j += kWidth) {
    const int64_t n = smaller(kWidth, x.cols - j);
    Vector<Real> sum{};
    for (int t = 0; t < used; ++t) {
      Vector<Real> part[4] = {};
      add_rows(part, task_rows<Real>(x, t), x.rows, x.cols, j, n, factors + t, a.ld * kWidth);
      sum += total_of<Real>(part);  // task by task: a long chain loses more
    }
    for (int64_t k = 0; k < n; ++k) sink[j + k][0] += sign * sum[k];
  }
}

}  // namespace INNERLOOP_LEVEL
}  // namespace innerloop
