// A weight and a bias as a step sees them: the same questions to the engine under two names.
#pragma once

#include "core/unroll/state.h"

namespace innerloop {

template <class E>
struct WeightLeaf {
  using State = UnrollState<E>;
  using Real = typename E::Real;
  using Elem = typename E::Elem;
  using Out = Target<Elem>;
  using Ref = typename E::WeightRef;

  IL_HD static int index(const LayerPlan& p) { return p.weight_leaf; }
  IL_HD static int64_t offset(const LayerPlan& p) { return p.weight_offset; }
  IL_HD static Ref at(const State& u, int64_t step, int l) { return u.weight_at(step, l); }
  IL_HD static Ref in_block(const State& u, int l, Elem* b) { return u.e.block_weight(l, b); }
  IL_HD static Out target(const State& u, int l, Elem* b) { return u.e.block_weight_target(l, b); }
  /// The leaf in a block, as rows.
  IL_HD static Rows<Elem> rows(const LayerPlan& p, Elem* b) {
    return {b + p.w, p.weight_rows(), p.weight_cols(), p.weight_ld()};
  }
  IL_HD static void gradient(const State& u, const Out& to, int64_t s, int l) {
    u.e.tn(to, nullptr, u.plan.layers[l], u.sweep.delta(u.support_tape(s), l),
           u.support_leaf_input(s, l), nullptr, nullptr, nullptr, 1);
  }
  IL_HD static void combine(const State& u, const Out& to, const Ref& from, Real keep, const Out& x,
                            const typename E::PerTask* rate, Real sign, const LayerPlan& p) {
    u.e.combine_weight(to, from, keep, x, rate, sign, p);
  }
  IL_HD static void step(const State& u, const Out& to, const Ref& from, const Out& v,
                         const LayerPlan& p, const Real* rates) {
    u.e.step_weight(to, from, v, p, rates, u.call.rates.task_stride);
  }
  IL_HD static void scale(const State& u, const Out& to, const Out& from, const LayerPlan& p,
                          const Real* rates) {
    u.e.scale_weight(to, from, p, rates, u.call.rates.task_stride);
  }
  IL_HD static void rate_grad(const State& u, int64_t at, const LayerPlan& p, const Out& lambda,
                              const Out& v) {
    u.e.rate_grad_weight(u.call, at, p, lambda, v);
  }
};

template <class E>
struct BiasLeaf {
  using State = UnrollState<E>;
  using Real = typename E::Real;
  using Elem = typename E::Elem;
  using Out = Target<Elem>;
  using Ref = typename E::BiasRef;

  IL_HD static int index(const LayerPlan& p) { return p.bias_leaf; }
  IL_HD static int64_t offset(const LayerPlan& p) { return p.bias_offset; }
  IL_HD static Ref at(const State& u, int64_t step, int l) { return u.bias_at(step, l); }
  IL_HD static Ref in_block(const State& u, int l, Elem* b) { return u.e.block_bias(l, b); }
  IL_HD static Out target(const State& u, int l, Elem* b) { return u.e.block_bias_target(l, b); }
  IL_HD static Rows<Elem> rows(const LayerPlan& p, Elem* b) {
    return {b + p.b, 1, p.out, p.ld_out};
  }
  IL_HD static void gradient(const State& u, const Out& to, int64_t s, int l) {
    u.e.column_sums(to, nullptr, u.sweep.delta(u.support_tape(s), l), nullptr, 1);
  }
  IL_HD static void combine(const State& u, const Out& to, const Ref& from, Real keep, const Out& x,
                            const typename E::PerTask* rate, Real sign, const LayerPlan& p) {
    u.e.combine_bias(to, from, keep, x, rate, sign, p);
  }
  IL_HD static void step(const State& u, const Out& to, const Ref& from, const Out& v,
                         const LayerPlan& p, const Real* rates) {
    u.e.step_bias(to, from, v, p, rates, u.call.rates.task_stride);
  }
  IL_HD static void scale(const State& u, const Out& to, const Out& from, const LayerPlan& p,
                          const Real* rates) {
    u.e.scale_bias(to, from, p, rates, u.call.rates.task_stride);
  }
  IL_HD static void rate_grad(const State& u, int64_t at, const LayerPlan& p, const Out& lambda,
                              const Out& v) {
    u.e.rate_grad_bias(u.call, at, p, lambda, v);
  }
};

}  // namespace innerloop
