// Network: products of the row engine, as row_gemm.h takes them: matrices of one task, or of the
// stacked rows of several.
#pragma once

#include "cpu/row_gemm.h"
#include "cpu/row_group.h"

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

template <class RealT>
class RowProducts : public RowGroup<RealT> {
 public:
  using Base = RowGroup<RealT>;
  using Base::Base, Base::row_count;
  using typename Base::Out, typename Base::WeightRef, typename Base::Row;
  using typename Base::Real, typename Base::S, typename Base::V, typename Base::R;
  static constexpr int64_t kFewRows = 8;  // up to here a dot product beats turning the weights

  void nt(const R& c, const R& a, const WeightRef& w, const Real* rate, Real sign, bool add) {
    if (w.diagonal) return scale_columns(c, a, w, rate, sign, add);
    const int64_t rows = a.rows;
    if (w.shared) {
      turned_product(c, used_ * rows, a, 0, w.shared_turned, w, sign, add);
      return;
    }
    for (int64_t t = 0; t < used_; ++t) {
      const Real factor = rate ? sign * rate[t] : sign;
      if (w.own_turned) {
        turned_product(c, rows, a, t, w.own_turned + t * w.turned_stride, w, factor, add);
      } else if (rows <= kFewRows) {
        dot_product<Real>(rows_at(c, t), c.ld, rows, w.out, w.in, rows_at(a, t), a.ld,
                          w.own + t * w.task_stride, w.ld, factor, add);
      } else {
        pack_transposed(turned_, w.own + t * w.task_stride, w.ld, w.out, w.in);
        turned_product(c, rows, a, t, turned_, w, factor, add);
      }
    }
  }
  void nn(const R& c, const R& a, const WeightRef& w, const Real* rate, Real sign, bool add) {
    if (w.diagonal) return scale_columns(c, a, w, rate, sign, add);
    const int64_t n = w.ld >= c.ld ? c.ld : w.in;
    if (w.shared) {
      flat_product<Real>(rows_at(c, 0), c.ld, used_ * a.rows, n, w.out, rows_at(a, 0), a.ld, 1,
                         w.shared, w.ld, sign, add);
      return;
    }
    for (int64_t t = 0; t < used_; ++t) {
      flat_product<Real>(rows_at(c, t), c.ld, a.rows, n, w.out, rows_at(a, t), a.ld, 1,
                         w.own + t * w.task_stride, w.ld, rate ? sign * rate[t] : sign, add);
    }
  }
  void tn(const Out& to, const WeightRef* from, const LayerPlan& p, const R& a, const R& b,
          const R* a2, const R* b2, const Real* rate, Real sign) {
    if (p.diagonal) {
      for (int64_t t = 0; t < used_; ++t) {
        const Real* base = from ? weight_of(*from, t) : nullptr;
        column_products(to.p + t * to.task_stride, to.ld, base, t * a.rows, a.rows, a, b, a2, b2,
                        rate ? sign * rate[t] : sign);
      }
      return;
    }
    for (int64_t t = 0; t < used_; ++t) {
      Product<Real> x = outer_product(p, a, b, a2, b2, t, a.rows);
      const bool whole = to.ld >= p.ld_in && b.ld >= p.ld_in && (!from || from->ld >= p.ld_in);
      x.n = whole ? p.ld_in : p.in;
      x.c = to.p + t * to.task_stride;
      x.c_row = to.ld;
      if (from) {
        x.c0 = weight_of(*from, t);
        x.c0_row = from->ld;
      }
      x.alpha = rate ? sign * rate[t] : sign;
      multiply_long(x);
    }
  }
  void sink_tn(const LayerPlan& p, const R& a, const R& b, const R* a2, const R* b2, Real sign) {
    if (p.diagonal) {
      Real* sink = sink_ + p.sink_w;
      return column_products<Real>(sink, p.weight_ld(), sink, 0, used_ * a.rows, a, b, a2, b2,
                                   sign);
    }
    Product<Real> x = outer_product(p, a, b, a2, b2, 0, used_ * a.rows);
    x.n = b.ld >= p.ld_in ? p.ld_in : p.in;
    x.c = sink_ + p.sink_w;
    x.c_row = p.ld_in;
    x.c0 = x.c;
    x.c0_row = p.ld_in;
    x.alpha = sign;
    multiply_long(x);
  }
  void rows_nt(const R& c, const R& a, const R& b) {
    for (int64_t t = 0; t < used_; ++t) {
      dot_product<Real>(rows_at(c, t), c.ld, a.rows, b.rows, a.cols, rows_at(a, t), a.ld,
                        rows_at(b, t), b.ld, 1, false);
    }
  }
  void rows_nn(const R& c, const R& a, const R& b, const Real* rate, Real sign, bool add) {
    for (int64_t t = 0; t < used_; ++t) {
      flat_product<Real>(rows_at(c, t), c.ld, a.rows, c.ld, a.cols, rows_at(a, t), a.ld, 1,
                         rows_at(b, t), b.ld, rate ? sign * rate[t] : sign, add);
    }
  }
  void rows_tn(const R& c, const R& a, const R& b) {
    for (int64_t t = 0; t < used_; ++t) {
      flat_product<Real>(rows_at(c, t), c.ld, a.cols, c.ld, a.rows, rows_at(a, t), 1, a.ld,
                         rows_at(b, t), b.ld, 1, false);
    }
  }

 protected:
  using Base::used_, Base::sink_, Base::turned_;

 private:
  /// c = sign * rate * a diag(w), where w may be empty: the identity.
  void scale_columns(const R& c, const R& a, const WeightRef& w, const Real* rate, Real sign,
                     bool add) const {
    const Row row(a.cols);
    for (int64_t r = 0; r < row_count(a); ++r) {
      const int64_t task = r / a.rows;
      const V scale = S::set(rate ? sign * rate[task] : sign);
      const Real* weight = weight_of(w, task);
      const Real* from = a.p + r * a.ld;
      Real* to = c.p + r * c.ld;
      row.each([&](int64_t i) {
        V value = scale * row.load(from, i);
        if (weight) value *= row.load(weight, i);
        row.store(to, i, add ? row.load(to, i) + value : value);
      });
    }
  }
};

}  // namespace INNERLOOP_LEVEL
}  // namespace innerloop
