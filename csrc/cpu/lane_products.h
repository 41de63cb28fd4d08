// Network: products of the lane engine, as lane_gemm.h takes them, and sums over columns.
#pragma once

#include "cpu/lane_gemm.h"
#include "cpu/lane_in_place.h"

namespace innerloop {
namespace INNERLOOP_LEVEL {

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

template <class RealT>
class LaneProducts : public LaneGroup<RealT> {
 public:
  using Base = LaneGroup<RealT>;
  using Base::Base;
  using typename Base::Out, typename Base::WeightRef;
  using typename Base::Real, typename Base::S, typename Base::V, typename Base::R;

  void nt(const R& c, const R& a, const WeightRef& w, const Real* rate, Real sign, bool add) {
    if (w.diagonal) return lane_scale_columns<Real>(c, a, w, rate, sign, add);
    if (is_in_place<Real>(a)) {
      return in_place_nt<Real>(c, a, w, scale_of(rate, sign), add, used_, room_);
    }
    lane_weight_product<Real>(c, a.rows, w.out, w.in, a.p, a.ld, 1, w, 1, w.ld, rate, sign, add);
  }
  void nn(const R& c, const R& a, const WeightRef& w, const Real* rate, Real sign, bool add) {
    if (w.diagonal) return lane_scale_columns<Real>(c, a, w, rate, sign, add);
    lane_weight_product<Real>(c, a.rows, w.in, w.out, a.p, a.ld, 1, w, w.ld, 1, rate, sign, add);
  }
  void tn(const Out& to, const WeightRef* from, const LayerPlan& p, const R& a, const R& b,
          const R* a2, const R* b2, const Real* rate, Real sign) {
    if (p.diagonal) {
      const WeightRef base = from ? *from : WeightRef{};
      return lane_column_products<Real>(to.p, base.own, base.shared, a, b, a2, b2, rate, sign);
    }
    if (is_in_place<Real>(b)) {
      const V scale = scale_of(rate, sign);
      return in_place_tn<Real>(a, b, used_, [&](int64_t j, V sum) {
        const V base = !from ? V{} : from->own ? from->own[j] : S::set(from->shared[j]);
        to.p[j] = base + scale * sum;
      });
    }
    LaneProduct<Real> x = lane_outer<Real>(p, a, b, a2, b2);
    x.c = to.p;
    x.c_row = to.ld;
    if (from) {
      x.c0 = from->own;
      x.c0_shared = from->own ? nullptr : from->shared;
    }
    x.rate = rate;
    x.sign = sign;
    lane_multiply(x);
  }
  void sink_tn(const LayerPlan& p, const R& a, const R& b, const R* a2, const R* b2, Real sign) {
    if (p.diagonal) {
      V* sink = sink_ + p.sink_w;
      return lane_column_products<Real>(sink, sink, nullptr, a, b, a2, b2, nullptr, sign);
    }
    if (is_in_place<Real>(b)) {
      return in_place_sink_tn<Real>(sink_ + p.sink_w, a, b, used_, sign);
    }
    LaneProduct<Real> x = lane_outer<Real>(p, a, b, a2, b2);
    x.c = sink_ + p.sink_w;
    x.c_row = p.in;
    x.c0 = x.c;
    x.sign = sign;
    lane_multiply(x);
  }
  void rows_nt(const R& c, const R& a, const R& b) {
    lane_rows_product<Real>(c, a.rows, b.rows, a.cols, a.p, a.ld, 1, b.p, 1, b.ld, nullptr, 1,
                            false);
  }
  void rows_nn(const R& c, const R& a, const R& b, const Real* rate, Real sign, bool add) {
    lane_rows_product<Real>(c, a.rows, b.cols, a.cols, a.p, a.ld, 1, b.p, b.ld, 1, rate, sign, add);
  }
  void rows_tn(const R& c, const R& a, const R& b) {
    lane_rows_product<Real>(c, a.cols, b.cols, a.rows, a.p, 1, a.ld, b.p, b.ld, 1, nullptr, 1,
                            false);
  }

 protected:
  using Base::used_, Base::sink_, Base::room_;

 private:
  static V scale_of(const Real* rate, Real sign) {
    return rate ? sign * S::load(rate) : S::set(sign);
  }
};

}  // namespace INNERLOOP_LEVEL
}  // namespace innerloop
