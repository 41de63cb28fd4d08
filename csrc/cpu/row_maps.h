// Network: the elementwise steps of the row engine, and sums over rows.
#pragma once

#include "core/activation.h"
#include "cpu/row_products.h"
#include "cpu/vector_math.h"

namespace innerloop {
namespace INNERLOOP_LEVEL {

template <class RealT>
class RowMaps : public RowProducts<RealT> {
 public:
  using Base = RowProducts<RealT>;
  using Base::Base, Base::kWidth;
  using typename Base::R, typename Base::Out, typename Base::BiasRef;
  using typename Base::Real, typename Base::S, typename Base::M, typename Base::V;
  void bias_activation(const R& z, const R& h, const R& from, const BiasRef& b,
                       const LayerPlan& p) {
    if (!b && p.activation == Activation::kIdentity && from.p == h.p) return;
    const V slope = S::set(static_cast<Real>(p.slope));
    with_activation<M>(p.activation, [&](auto act) {
      using A = decltype(act);
      for (int64_t r = 0; r < used_ * z.rows; ++r) {
        const Real* bias = bias_of(b, r / z.rows);
        for (int64_t j = 0; j < z.ld; j += kWidth) {
          const int64_t at = r * z.ld + j;
          V value = S::load(from.p + at);
          if (bias) value += S::load(bias + j);
          S::store(z.p + at, value);
          S::store(h.p + at, A::value(value, slope));
        }
      }
    });
  }
  void activation_backward(const R& delta, const R& a, const R& z, const R& h, const LayerPlan& p) {
    if (p.activation == Activation::kIdentity && delta.p == a.p) return;
    const V slope = S::set(static_cast<Real>(p.slope));
    with_activation<M>(p.activation, [&](auto act) {
      using A = decltype(act);
      for (int64_t i = 0; i < size(delta); i += kWidth) {
        S::store(delta.p + i,
                 A::chain(S::load(a.p + i), S::load(z.p + i), S::load(h.p + i), slope));
      }
    });
  }
  void r_activation(const R& rh, const R& rz, const BiasRef& b, const Real* rate, const R& z,
                    const R& h, const LayerPlan& p) {
    if (!b && p.activation == Activation::kIdentity && rz.p == rh.p) return;
    const V slope = S::set(static_cast<Real>(p.slope));
    with_activation<M>(p.activation, [&](auto act) {
      using A = decltype(act);
      for (int64_t r = 0; r < used_ * rz.rows; ++r) {
        const int64_t task = r / rz.rows;
        const Real* bias = bias_of(b, task);
        const V scale = S::set(rate ? rate[task] : Real(1));
        for (int64_t j = 0; j < rz.ld; j += kWidth) {
          const int64_t at = r * rz.ld + j;
          V value = S::load(rz.p + at);
          if (bias) value += scale * S::load(bias + j);
          S::store(rz.p + at, value);
          S::store(rh.p + at, A::chain(value, S::load(z.p + at), S::load(h.p + at), slope));
        }
      }
    });
  }
  /// rdelta, holding R{a}, becomes R{delta} = R{a} act' + a act'' R{z}.
  void r_activation_backward(const R& rdelta, const R& rz, const R& a, const R& z, const R& h,
                             const LayerPlan& p) {
    if (p.activation == Activation::kIdentity) return;
    const V slope = S::set(static_cast<Real>(p.slope));
    with_activation<M>(p.activation, [&](auto act) {
      using A = decltype(act);
      for (int64_t i = 0; i < size(rdelta); i += kWidth) {
        const V zi = S::load(z.p + i), hi = S::load(h.p + i);
        V value = A::chain(S::load(rdelta.p + i), zi, hi, slope);
        if constexpr (A::kCurved) {
          value += S::load(a.p + i) * A::second(zi, hi, slope) * S::load(rz.p + i);
        }
        S::store(rdelta.p + i, value);
      }
    });
  }
  void clear(const R& r) {
    if (size(r) > 0) std::memset(r.p, 0, size(r) * sizeof(Real));  // no rows: r.p is null
  }
  void add_scaled(const R& to, const R& from, const Real* rate) { scaled(to, from, rate, true); }
  void copy_scaled(const R& to, const R& from, const Real* rate) { scaled(to, from, rate, false); }
  void column_sums(const Out& to, const BiasRef* from, const R& r, const Real* rate, Real sign) {
    for (int64_t t = 0; t < used_; ++t) {
      const V scale = S::set(rate ? sign * rate[t] : sign);
      const Real* base = from ? bias_of(*from, t) : nullptr;
      Real* out = to.p + t * to.task_stride;
      for (int64_t j = 0; j < r.cols; j += kWidth) {
        const V total = sum_of_rows(r.rows, [&](int64_t i, V part) __attribute__((always_inline)) {
          return part + S::load(rows_at(r, t) + i * r.ld + j);
        });
        if (j + kWidth <= to.ld) {
          S::store(out + j, (base ? S::load(base + j) : V{}) + scale * total);
        } else {
          const V before = base ? S::load_part(base + j, to.ld - j) : V{};
          S::store_part(out + j, before + scale * total, to.ld - j);
        }
      }
    }
  }
  /// -<a, b> for every task, over true columns: padding may hold anything finite.
  void minus_dot(Real* to, const LayerPlan&, const R& a, const R& b) {
    for (int64_t t = 0; t < used_; ++t) {
      const V total = sum_of_rows(a.rows, [&](int64_t i, V part) __attribute__((always_inline)) {
        const Real *x = rows_at(a, t) + i * a.ld, *y = rows_at(b, t) + i * b.ld;
        for (int64_t j = 0; j < a.cols; j += kWidth) {
          const int64_t n = smaller(kWidth, a.cols - j);
          part = add_product<Real>(part, S::load_part(x + j, n), S::load_part(y + j, n));
        }
        return part;
      });
      to[t] = -S::sum(total);
    }
  }
  void minus_dot_bias(Real* to, const LayerPlan&, const R& delta, const Out& lambda) {
    for (int64_t t = 0; t < used_; ++t) {
      const V total =
          sum_of_rows(delta.rows, [&](int64_t i, V part) __attribute__((always_inline)) {
            for (int64_t j = 0; j < delta.cols; j += kWidth) {
              const int64_t n = smaller(kWidth, delta.cols - j);
              part += S::load_part(rows_at(delta, t) + i * delta.ld + j, n) *
                      S::load_part(lambda.p + t * lambda.task_stride + j, n);
            }
            return part;
          });
      to[t] = -S::sum(total);
    }
  }

 protected:
  using Base::used_, Base::size;

 private:
  static constexpr int64_t kRowsOfASum = 128;  // longer sums are made of such

  /// The sum of f(row, sum so far) over rows, in parts: a long chain loses more.
  template <class F>
  static INNERLOOP_INLINE V sum_of_rows(int64_t rows, F f) {
    V total{};
    for (int64_t first = 0; first < rows; first += kRowsOfASum) {
      V part{};
      for (int64_t i = first; i < smaller(first + kRowsOfASum, rows); ++i) part = f(i, part);
      total += part;
    }
    return total;
  }
  void scaled(const R& to, const R& from, const Real* rate, bool add) {
    const int64_t n = to.rows * to.ld;
    for (int64_t t = 0; t < used_; ++t) {
      const V scale = S::set(rate ? rate[t] : Real(1));
      for (int64_t i = t * n; i < (t + 1) * n; i += kWidth) {
        const V value = scale * S::load(from.p + i);
        S::store(to.p + i, add ? S::load(to.p + i) + value : value);
      }
    }
  }
};

}  // namespace INNERLOOP_LEVEL
}  // namespace innerloop
