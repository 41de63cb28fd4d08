// Solver: what a step does to the leaves of each task in the row engine, with a rate for all
// numbers of a leaf or for each, and the gradient in these rates.
#pragma once

#include "cpu/row_objectives.h"

namespace innerloop {
namespace INNERLOOP_LEVEL {

/// to = keep * from + scale * x, padded with zeros; `from` is not read where keep is 0.
template <class Real>
static void accelerate(Real* to, const Real* from, Real keep, const Real* x, Real scale, int64_t n,
                       int64_t padded) {
  for (int64_t j = 0; j < n; ++j) to[j] = (keep == 0 ? Real(0) : keep * from[j]) + scale * x[j];
  for (int64_t j = n; j < padded; ++j) to[j] = 0;
}
/// to = base - rate * g, a rate for each number.
template <class Real>
static void combine(Real* to, const Real* base, const Real* rate, const Real* g, int64_t n) {
  for (int64_t j = 0; j < n; ++j) to[j] = base[j] - rate[j] * g[j];
}

template <class RealT>
class RowSteps : public RowObjectives<RealT> {
 public:
  using Base = RowObjectives<RealT>;
  using Base::Base;
  using typename Base::Out, typename Base::WeightRef, typename Base::BiasRef;
  using typename Base::Real, typename Base::PerTask;

  /// to = keep * from + sign * rate * x; `from` is not read where keep is 0.
  void combine_weight(const Out& to, const WeightRef& from, Real keep, const Out& x,
                      const PerTask* rate, Real sign, const LayerPlan& p) {
    for (int64_t t = 0; t < used_; ++t) {
      const Real* base = weight_of(from, t);
      for (int64_t i = 0; i < p.weight_rows(); ++i) {
        accelerate(at(to, t, i), base + i * from.ld, keep, at(x, t, i),
                   rate ? sign * rate[t] : sign, p.weight_cols(), p.weight_ld());
      }
    }
  }
  void combine_bias(const Out& to, const BiasRef& from, Real keep, const Out& x,
                    const PerTask* rate, Real sign, const LayerPlan& p) {
    for (int64_t t = 0; t < used_; ++t) {
      accelerate(at(to, t, 0), bias_of(from, t), keep, at(x, t, 0), rate ? sign * rate[t] : sign,
                 p.out, p.ld_out);
    }
  }
  void step_weight(const Out& to, const WeightRef& from, const Out& g, const LayerPlan& p,
                   const Real* rates, int64_t task_stride) {
    for (int64_t t = 0; t < used_; ++t) {
      for (int64_t i = 0; i < p.weight_rows(); ++i) {
        const Real* base = weight_of(from, t) + i * from.ld;
        const Real* rate = rates + (first_ + t) * task_stride + i * p.weight_cols();
        combine(at(to, t, i), base, rate, at(g, t, i), p.weight_cols());
      }
    }
  }
  void step_bias(const Out& to, const BiasRef& from, const Out& g, const LayerPlan& p,
                 const Real* rates, int64_t task_stride) {
    for (int64_t t = 0; t < used_; ++t) {
      combine(at(to, t, 0), bias_of(from, t), rates + (first_ + t) * task_stride, at(g, t, 0),
              p.out);
    }
  }
  void scale_weight(const Out& to, const Out& from, const LayerPlan& p, const Real* rates,
                    int64_t task_stride) {
    for (int64_t t = 0; t < used_; ++t) {
      for (int64_t i = 0; i < p.weight_rows(); ++i) {
        const Real* rate = rates + (first_ + t) * task_stride + i * p.weight_cols();
        for (int64_t j = 0; j < p.weight_cols(); ++j) at(to, t, i)[j] = rate[j] * at(from, t, i)[j];
        for (int64_t j = p.weight_cols(); j < p.weight_ld(); ++j) at(to, t, i)[j] = 0;
      }
    }
  }
  void scale_bias(const Out& to, const Out& from, const LayerPlan& p, const Real* rates,
                  int64_t task_stride) {
    for (int64_t t = 0; t < used_; ++t) {
      const Real* rate = rates + (first_ + t) * task_stride;
      for (int64_t j = 0; j < p.out; ++j) at(to, t, 0)[j] = rate[j] * at(from, t, 0)[j];
      for (int64_t j = p.out; j < p.ld_out; ++j) at(to, t, 0)[j] = 0;
    }
  }
  void rate_grad_weight(const MetaGradCall& call, int64_t offset, const LayerPlan& p,
                        const Out& lambda, const Out& g) {
    for (int64_t t = 0; t < used_; ++t) {
      for (int64_t i = 0; i < p.weight_rows(); ++i) {
        rate_grad(call, offset + i * p.weight_cols(), t, p.weight_cols(), at(lambda, t, i),
                  at(g, t, i));
      }
    }
  }
  void rate_grad_bias(const MetaGradCall& call, int64_t offset, const LayerPlan& p,
                      const Out& lambda, const Out& g) {
    for (int64_t t = 0; t < used_; ++t) {
      rate_grad(call, offset, t, p.out, at(lambda, t, 0), at(g, t, 0));
    }
  }

 protected:
  using Base::at, Base::first_, Base::used_, Base::rate_sink_;

 private:
  void rate_grad(const MetaGradCall& call, int64_t offset, int64_t task, int64_t n,
                 const Real* lambda, const Real* g) {
    Real* out = call.rates.task_stride ? static_cast<Real*>(call.out_rate_grad) +
                                             (first_ + task) * call.rates.task_stride + offset
                                       : rate_sink_ + offset;
    for (int64_t i = 0; i < n; ++i) out[i] -= lambda[i] * g[i];
  }
};

}  // namespace INNERLOOP_LEVEL
}  // namespace innerloop
