// Products of the row engine, as row_gemm.h takes them: matrices of one task, or of the stacked
// rows of several.
#pragma once

#include "cpu/row_leaves.h"
#include "cpu/row_values.h"

namespace innerloop {
namespace INNERLOOP_LEVEL {

template <class Real>
constexpr int kPanel = kPanelVectors * Simd<Real>::kLanes;

/// Where a task's rows start.
template <class Real>
static Real* rows_at(const Rows<Real>& r, int64_t task) {
  return r.p + task * r.rows * r.ld;
}

/// c = factor * a W^T of m rows from `task` on, W in transposed panels.
template <class Real>
static void turned_product(const Rows<Real>& c, int64_t m, const Rows<Real>& a, int64_t task,
                           const Real* turned_w, const Weight<Real, Real>& w, Real factor,
                           bool add) {
  Product<Real> x;
  x.m = m;
  x.n = c.ld;
  x.k = w.in;
  x.a = rows_at(a, task);
  x.a_row = a.ld;
  x.a_col = 1;
  x.b = turned_w;
  x.b_row = kPanel<Real>;
  x.b_panel = w.in * kPanel<Real>;
  x.c = rows_at(c, task);
  x.c_row = c.ld;
  x.c0 = add ? x.c : nullptr;
  x.c0_row = c.ld;
  x.alpha = factor;
  multiply(x);
}
/// c = alpha * a b, added to c if asked.
template <class Real>
static void flat_product(Real* c, int64_t c_row, int64_t m, int64_t n, int64_t k, const Real* a,
                         int64_t a_row, int64_t a_col, const Real* b, int64_t b_row, Real alpha,
                         bool add) {
  Product<Real> x;
  x.m = m;
  x.n = n;
  x.k = k;
  x.a = a;
  x.a_row = a_row;
  x.a_col = a_col;
  x.b = b;
  x.b_row = b_row;
  x.b_panel = kPanel<Real>;
  x.c = c;
  x.c_row = c_row;
  x.c0 = add ? c : nullptr;
  x.c0_row = c_row;
  x.alpha = alpha;
  multiply(x);
}
/// c = alpha * a b^T.
template <class Real>
static void dot_product(Real* c, int64_t c_row, int64_t m, int64_t n, int64_t k, const Real* a,
                        int64_t a_row, const Real* b, int64_t b_row, Real alpha, bool add) {
  DotProduct<Real> x;
  x.m = m;
  x.n = n;
  x.k = k;
  x.a = a;
  x.a_row = a_row;
  x.b = b;
  x.b_row = b_row;
  x.c = c;
  x.c_row = c_row;
  x.c0 = add ? c : nullptr;
  x.c0_row = c_row;
  x.alpha = alpha;
  multiply_dot(x);
}
/// a^T b + a2^T b2 over rows from `task` on; the caller says where it goes.
template <class Real>
static Product<Real> outer_product(const LayerPlan& p, const Rows<Real>& a, const Rows<Real>& b,
                                   const Rows<Real>* a2, const Rows<Real>* b2, int64_t task,
                                   int64_t rows) {
  Product<Real> x;
  x.m = p.out;
  x.k = rows;
  x.a = rows_at(a, task);
  x.a_row = 1;
  x.a_col = a.ld;
  x.b = rows_at(b, task);
  x.b_row = b.ld;
  x.b_panel = kPanel<Real>;
  x.a2 = a2 ? rows_at(*a2, task) : nullptr;
  x.b2 = b2 ? rows_at(*b2, task) : nullptr;
  return x;
}
/// to = from + scale * the sums over rows of a b + a2 b2: the diagonal of a^T b + a2^T b2.
template <class Real>
static void column_products(Real* to, int64_t to_ld, const Real* from, int64_t first, int64_t rows,
                            const Rows<Real>& a, const Rows<Real>& b, const Rows<Real>* a2,
                            const Rows<Real>* b2, Real scale) {
  const PaddedRow<Real> row(a.cols);
  const auto product = [&](const Rows<Real>& x, const Rows<Real>& y, int64_t r, int64_t i) {
    return row.load(x.p + r * x.ld, i) * row.load(y.p + r * y.ld, i);
  };
  row.each([&](int64_t i) {
    typename Simd<Real>::V total{};
    for (int64_t r = first; r < first + rows; ++r) {
      total += a2 ? product(a, b, r, i) + product(*a2, *b2, r, i) : product(a, b, r, i);
    }
    typename Simd<Real>::V value = Simd<Real>::set(scale) * total;
    if (from) value += row.load(from, i);
    const int64_t j = i * Simd<Real>::kLanes;
    Simd<Real>::store_part(to + j, value, smaller(Simd<Real>::kLanes, to_ld - j));
  });
}

}  // namespace INNERLOOP_LEVEL
}  // namespace innerloop
