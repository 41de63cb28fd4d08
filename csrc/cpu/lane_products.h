// Products of the lane engine, as lane_gemm.h takes them, and sums over columns.
#pragma once

#include "core/plan.h"
#include "cpu/lane_gemm.h"

namespace innerloop {
namespace INNERLOOP_LEVEL {

template <class Real>
using Vector = typename Simd<Real>::V;
template <class Real>
using LaneRows = Rows<Vector<Real>>;

/// Calls f(j, the sum of value(i, j) over rows i); several columns at a time, so that rows are read
/// in runs.
template <class Real, class Value, class F>
static INNERLOOP_INLINE void sum_columns_of(int64_t rows, int64_t cols, Value&& value, F&& f) {
  constexpr int64_t kBlock = 8;
  for (int64_t j = 0; j < cols; j += kBlock) {
    const int64_t n = smaller(kBlock, cols - j);
    Vector<Real> total[kBlock] = {};
    for (int64_t i = 0; i < rows; ++i) {
      if (n == kBlock) {
#pragma GCC unroll 8
        for (int64_t k = 0; k < kBlock; ++k) total[k] += value(i, j + k);
      } else {
        for (int64_t k = 0; k < n; ++k) total[k] += value(i, j + k);
      }
    }
    for (int64_t k = 0; k < n; ++k) f(j + k, total[k]);
  }
}
/// The same of an array.
template <class Real, class F>
static void sum_columns(const LaneRows<Real>& r, F&& f) {
  sum_columns_of<Real>(r.rows, r.cols, [&](int64_t i, int64_t j) { return r.p[i * r.ld + j]; }, f);
}

/// A product of m x n sums of k terms; the caller adds what is multiplied and where it goes.
template <class Real>
static LaneProduct<Real> lane_product(int64_t m, int64_t n, int64_t k, const Vector<Real>* a,
                                      int64_t a_row, int64_t a_col, int64_t b_row, int64_t b_col) {
  LaneProduct<Real> x;
  x.m = m;
  x.n = n;
  x.k = k;
  x.a = a;
  x.a_row = a_row;
  x.a_col = a_col;
  x.b_row = b_row;
  x.b_col = b_col;
  return x;
}
template <class Real>
static void lane_weight_product(const LaneRows<Real>& c, int64_t m, int64_t n, int64_t k,
                                const Vector<Real>* a, int64_t a_row, int64_t a_col,
                                const Weight<Real, Vector<Real>>& w, int64_t b_row, int64_t b_col,
                                const Real* rate, Real sign, bool add) {
  LaneProduct<Real> x = lane_product<Real>(m, n, k, a, a_row, a_col, b_row, b_col);
  x.b = w.own;
  x.b_shared = w.own ? nullptr : w.shared;
  x.c = c.p;
  x.c_row = c.ld;
  x.c0 = add ? c.p : nullptr;
  x.rate = rate;
  x.sign = sign;
  lane_multiply(x);
}
template <class Real>
static void lane_rows_product(const LaneRows<Real>& c, int64_t m, int64_t n, int64_t k,
                              const Vector<Real>* a, int64_t a_row, int64_t a_col,
                              const Vector<Real>* b, int64_t b_row, int64_t b_col, const Real* rate,
                              Real sign, bool add) {
  LaneProduct<Real> x = lane_product<Real>(m, n, k, a, a_row, a_col, b_row, b_col);
  x.b = b;
  x.c = c.p;
  x.c_row = c.ld;
  x.c0 = add ? c.p : nullptr;
  x.rate = rate;
  x.sign = sign;
  lane_multiply(x);
}
/// a^T b + a2^T b2; the caller says where it goes.
template <class Real>
static LaneProduct<Real> lane_outer(const LayerPlan& p, const LaneRows<Real>& a,
                                    const LaneRows<Real>& b, const LaneRows<Real>* a2,
                                    const LaneRows<Real>* b2) {
  LaneProduct<Real> x = lane_product<Real>(p.out, p.in, a.rows, a.p, 1, a.ld, b.ld, 1);
  x.b = b.p;
  x.a2 = a2 ? a2->p : nullptr;
  x.b2 = b2 ? b2->p : nullptr;
  return x;
}

/// c = sign * rate * a diag(w), where w may be empty: the identity.
template <class Real>
static void lane_scale_columns(const LaneRows<Real>& c, const LaneRows<Real>& a,
                               const Weight<Real, Vector<Real>>& w, const Real* rate, Real sign,
                               bool add) {
  const Vector<Real> scale = rate ? sign * Simd<Real>::load(rate) : Simd<Real>::set(sign);
  for (int64_t i = 0; i < a.rows; ++i) {
    for (int64_t j = 0; j < a.cols; ++j) {
      Vector<Real> value = scale * a.p[i * a.ld + j];
      if (w) value *= w.own ? w.own[j] : Simd<Real>::set(w.shared[j]);
      Vector<Real>& to = c.p[i * c.ld + j];
      to = add ? to + value : value;
    }
  }
}
/// to = from + sign * rate * the column sums of a b + a2 b2: the diagonal of a^T b + a2^T b2.
template <class Real>
static void lane_column_products(Vector<Real>* to, const Vector<Real>* own, const Real* shared,
                                 const LaneRows<Real>& a, const LaneRows<Real>& b,
                                 const LaneRows<Real>* a2, const LaneRows<Real>* b2,
                                 const Real* rate, Real sign) {
  const Vector<Real> scale = rate ? sign * Simd<Real>::load(rate) : Simd<Real>::set(sign);
  const auto value = [&](int64_t i, int64_t j) {
    const Vector<Real> first = a.p[i * a.ld + j] * b.p[i * b.ld + j];
    return a2 ? first + a2->p[i * a2->ld + j] * b2->p[i * b2->ld + j] : first;
  };
  sum_columns_of<Real>(a.rows, a.cols, value, [&](int64_t j, Vector<Real> total) {
    to[j] = (own ? own[j] : shared ? Simd<Real>::set(shared[j]) : Vector<Real>{}) + scale * total;
  });
}

}  // namespace INNERLOOP_LEVEL
}  // namespace innerloop
