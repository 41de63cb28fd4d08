// Network: the elementwise steps of the lane engine, and sums over rows.
#pragma once

#include "core/activation.h"
#include "cpu/lane_products.h"

namespace innerloop {
namespace INNERLOOP_LEVEL {

template <class RealT>
class LaneMaps : public LaneProducts<RealT> {
 public:
  using Base = LaneProducts<RealT>;
  using Base::Base;
  using typename Base::R, typename Base::Out, typename Base::BiasRef;
  using typename Base::Real, typename Base::S, typename Base::M, typename Base::V;

  void bias_activation(const R& z, const R& h, const R& from, const BiasRef& b,
                       const LayerPlan& p) {
    if (!b && p.activation == Activation::kIdentity && from.p == h.p) return;
    const V slope = S::set(static_cast<Real>(p.slope));
    with_activation<M>(p.activation, [&](auto act) {
      using A = decltype(act);
      for (int64_t i = 0; i < z.rows; ++i) {
        for (int64_t j = 0; j < z.cols; ++j) {
          const V value = from.p[i * from.ld + j] + bias_at(b, j);
          z.p[i * z.ld + j] = value;
          h.p[i * h.ld + j] = A::value(value, slope);
        }
      }
    });
  }
  void activation_backward(const R& delta, const R& a, const R& z, const R& h, const LayerPlan& p) {
    if (p.activation == Activation::kIdentity && delta.p == a.p) return;
    const V slope = S::set(static_cast<Real>(p.slope));
    const int64_t n = delta.rows * delta.ld;
    with_activation<M>(p.activation, [&](auto act) {
      using A = decltype(act);
      for (int64_t i = 0; i < n; ++i) delta.p[i] = A::chain(a.p[i], z.p[i], h.p[i], slope);
    });
  }
  void r_activation(const R& rh, const R& rz, const BiasRef& b, const Real* rate, const R& z,
                    const R& h, const LayerPlan& p) {
    if (!b && p.activation == Activation::kIdentity && rz.p == rh.p) return;
    const V slope = S::set(static_cast<Real>(p.slope));
    const V scale = rate ? S::load(rate) : S::set(1);
    with_activation<M>(p.activation, [&](auto act) {
      using A = decltype(act);
      for (int64_t i = 0; i < rz.rows; ++i) {
        for (int64_t j = 0; j < rz.cols; ++j) {
          const int64_t at = i * rz.ld + j;
          const V value = rz.p[at] + scale * bias_at(b, j);
          rz.p[at] = value;
          rh.p[at] = A::chain(value, z.p[at], h.p[at], slope);
        }
      }
    });
  }
  /// rdelta, holding R{a}, becomes R{delta} = R{a} act' + a act'' R{z}.
  void r_activation_backward(const R& rdelta, const R& rz, const R& a, const R& z, const R& h,
                             const LayerPlan& p) {
    if (p.activation == Activation::kIdentity) return;
    const V slope = S::set(static_cast<Real>(p.slope));
    const int64_t n = rdelta.rows * rdelta.ld;
    with_activation<M>(p.activation, [&](auto act) {
      using A = decltype(act);
      for (int64_t i = 0; i < n; ++i) {
        V value = A::chain(rdelta.p[i], z.p[i], h.p[i], slope);
        if constexpr (A::kCurved) {
          value += a.p[i] * A::second(z.p[i], h.p[i], slope) * rz.p[i];
        }
        rdelta.p[i] = value;
      }
    });
  }
  void clear(const R& r) {
    for (int64_t i = 0; i < r.rows * r.ld; ++i) r.p[i] = V{};
  }
  void add_scaled(const R& to, const R& from, const Real* rate) {
    const V scale = rate ? S::load(rate) : S::set(1);
    for (int64_t i = 0; i < to.rows * to.ld; ++i) to.p[i] += scale * from.p[i];
  }
  void copy_scaled(const R& to, const R& from, const Real* rate) {
    const V scale = rate ? S::load(rate) : S::set(1);
    for (int64_t i = 0; i < to.rows * to.ld; ++i) to.p[i] = scale * from.p[i];
  }
  void column_sums(const Out& to, const BiasRef* from, const R& r, const Real* rate, Real sign) {
    const V scale = rate ? sign * S::load(rate) : S::set(sign);
    sum_columns<Real>(
        r, [&](int64_t j, V total) { to.p[j] = (from ? bias_at(*from, j) : V{}) + scale * total; });
  }
  /// -<a, b> for every task, in several sums: shorter chains of roundings and of latencies.
  void minus_dot(Real* to, const LayerPlan&, const R& a, const R& b) {
    constexpr int kParts = 8;
    V part[kParts] = {};
    const int64_t size = a.rows * a.ld, whole = size - size % kParts;
    int64_t i = 0;
    for (; i < whole; i += kParts) {
#pragma GCC unroll 8
      for (int k = 0; k < kParts; ++k) {
        part[k] = add_product<Real>(part[k], a.p[i + k], b.p[i + k]);
      }
    }
    for (int k = 0; i + k < size; ++k) {
      part[k] = add_product<Real>(part[k], a.p[i + k], b.p[i + k]);
    }
#pragma GCC unroll 4
    for (int half = kParts / 2; half > 0; half /= 2) {
#pragma GCC unroll 4
      for (int k = 0; k < half; ++k) part[k] += part[k + half];
    }
    S::store(to, -part[0]);
  }
  void minus_dot_bias(Real* to, const LayerPlan&, const R& delta, const Out& lambda) {
    V total{};
    sum_columns<Real>(delta, [&](int64_t j, V sum) { total -= lambda.p[j] * sum; });
    S::store(to, total);
  }

 protected:
  using Base::bias_at;
};

}  // namespace INNERLOOP_LEVEL
}  // namespace innerloop
