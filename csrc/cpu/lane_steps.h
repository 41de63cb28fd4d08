// Solver: what a step does to the leaves of each task in the lane engine, with a rate for all
// numbers of a leaf or for each, and the gradient in these rates.
#pragma once

#include "cpu/lane_objectives.h"

namespace innerloop {
namespace INNERLOOP_LEVEL {

template <class RealT>
class LaneSteps : public LaneObjectives<RealT> {
 public:
  using Base = LaneObjectives<RealT>;
  using Base::Base;
  using typename Base::Out, typename Base::WeightRef, typename Base::BiasRef;
  using typename Base::Real, typename Base::S, typename Base::V, typename Base::PerTask;

  /// to = keep * from + sign * rate * x; `from` is not read where keep is 0.
  void combine_weight(const Out& to, const WeightRef& from, Real keep, const Out& x,
                      const PerTask* rate, Real sign, const LayerPlan& p) {
    combine(to, from.own, from.shared, keep, x, rate, sign, p.weight_size());
  }
  void combine_bias(const Out& to, const BiasRef& from, Real keep, const Out& x,
                    const PerTask* rate, Real sign, const LayerPlan& p) {
    combine(to, from.own, from.shared, keep, x, rate, sign, p.out);
  }
  void step_weight(const Out& to, const WeightRef& from, const Out& g, const LayerPlan& p,
                   const Real* rates, int64_t task_stride) {
    for (int64_t i = 0; i < p.weight_size(); ++i) {
      const V base = from.own ? from.own[i] : S::set(from.shared[i]);
      to.p[i] = base - element_rate(rates + i, task_stride) * g.p[i];
    }
  }
  void step_bias(const Out& to, const BiasRef& from, const Out& g, const LayerPlan& p,
                 const Real* rates, int64_t task_stride) {
    for (int64_t i = 0; i < p.out; ++i) {
      to.p[i] = bias_at(from, i) - element_rate(rates + i, task_stride) * g.p[i];
    }
  }
  void scale_weight(const Out& to, const Out& from, const LayerPlan& p, const Real* rates,
                    int64_t task_stride) {
    scale(to, from, p.weight_size(), rates, task_stride);
  }
  void scale_bias(const Out& to, const Out& from, const LayerPlan& p, const Real* rates,
                  int64_t task_stride) {
    scale(to, from, p.out, rates, task_stride);
  }
  void rate_grad_weight(const MetaGradCall& call, int64_t offset, const LayerPlan& p,
                        const Out& lambda, const Out& g) {
    rate_grad(call, offset, p.weight_size(), lambda, g);
  }
  void rate_grad_bias(const MetaGradCall& call, int64_t offset, const LayerPlan& p,
                      const Out& lambda, const Out& g) {
    rate_grad(call, offset, p.out, lambda, g);
  }

 protected:
  using Base::bias_at, Base::first_, Base::used_, Base::rate_sink_;

 private:
  static void combine(const Out& to, const V* own, const Real* shared, Real keep, const Out& x,
                      const PerTask* rate, Real sign, int64_t n) {
    const V scale = rate ? S::set(sign) * S::load(rate) : S::set(sign);
    for (int64_t i = 0; i < n; ++i) {
      const V base = keep == 0 ? V{} : S::set(keep) * (own ? own[i] : S::set(shared[i]));
      to.p[i] = base + scale * x.p[i];
    }
  }
  V element_rate(const Real* rate, int64_t task_stride) const {
    if (!task_stride) return S::set(*rate);
    V v{};
    for (int i = 0; i < used_; ++i) v[i] = rate[(first_ + i) * task_stride];
    return v;
  }
  void scale(const Out& to, const Out& from, int64_t n, const Real* rates, int64_t task_stride) {
    for (int64_t i = 0; i < n; ++i) to.p[i] = element_rate(rates + i, task_stride) * from.p[i];
  }
  void rate_grad(const MetaGradCall& call, int64_t offset, int64_t n, const Out& lambda,
                 const Out& g) {
    for (int64_t i = 0; i < n; ++i) {
      const V value = lambda.p[i] * g.p[i];
      if (call.rates.task_stride) {
        Real* out = static_cast<Real*>(call.out_rate_grad) + offset + i;
        for (int t = 0; t < used_; ++t) out[(first_ + t) * call.rates.task_stride] -= value[t];
      } else {
        rate_sink_[offset + i] -= S::sum(value);
      }
    }
  }
};

}  // namespace INNERLOOP_LEVEL
}  // namespace innerloop
