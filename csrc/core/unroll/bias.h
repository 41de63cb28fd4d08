// A bias, or a free leaf: one copy for each task and step if it adapts, one for all steps if not.
// It is small enough that its lambda is kept for each task in either case.
#pragma once

#include "core/unroll/built_step.h"

namespace innerloop {

template <class E>
struct UnrolledBias {
  using State = UnrollState<E>;
  using R = Rows<typename E::Elem>;
  using Built = BuiltStep<E, BiasLeaf<E>>;

  IL_CALL static void update(const State& u, int64_t s, int l) {
    const LayerPlan& p = u.plan.layers[l];
    if (!p.adapts_bias) return;
    if (u.builds) {
      Built::update(u, s, l);
      return;
    }
    typename E::Elem* const next = u.block(s + 1);
    const typename E::BiasRef from = u.adds ? u.e.block_bias(l, next) : u.bias_at(s, l);
    u.e.column_sums(u.e.block_bias_target(l, next), &from, u.sweep.delta(u.support_tape(s), l),
                    u.rate(s, p.bias_leaf), -1);
  }

  IL_HD static void build_direction(const State& u, int64_t s, int l) {
    if (u.plan.layers[l].adapts_bias) Built::build_direction(u, s, l);
  }
  IL_HD static void decay(const State& u, int l) {
    if (u.plan.layers[l].adapts_bias) Built::decay(u, l);
  }
  IL_CALL static void rate_gradient(const State& u, int64_t s, int l) {
    const LayerPlan& p = u.plan.layers[l];
    if (!p.adapts_bias) {
      u.clear_rate_grad(s, p.bias_leaf);
    } else if (u.builds) {
      Built::rate_gradient(u, s, l);
    } else if (u.wants_rate_grad) {
      u.sum_rate_grad(s, p.bias_leaf, [&](typename E::PerTask* to) {
        u.e.minus_dot_bias(to, p, u.sweep.delta(u.support_tape(s), l),
                           u.e.block_bias_target(l, u.lambda));
      });
    }
  }
  IL_HD static void direction(const State& u, int64_t s, int l, Direction<E>& v) {
    const LayerPlan& p = u.plan.layers[l];
    if (!p.adapts_bias) return;
    v.bias = u.e.block_bias(l, u.builds ? u.direction : u.lambda);
    if (!u.builds) v.bias_rate = u.rate(s, p.bias_leaf);
  }

  IL_HD static void start(const State& u, int l, const R& delta) {
    if (u.plan.layers[l].bias_leaf < 0) return;
    const typename E::BiasRef from = u.e.block_bias(l, u.lambda);
    u.e.column_sums(u.e.block_bias_target(l, u.lambda), u.adds ? &from : nullptr, delta, nullptr,
                    1);
  }
  IL_HD static void accumulate(const State& u, int l, const R& r_delta) {
    if (u.plan.layers[l].bias_leaf < 0) return;
    const typename E::BiasRef from = u.e.block_bias(l, u.next_lambda);
    u.e.column_sums(u.e.block_bias_target(l, u.next_lambda), &from, r_delta, nullptr, -1);
  }
  IL_HD static void finish(const State& u, int l) {
    const LayerPlan& p = u.plan.layers[l];
    if (p.bias_leaf >= 0) u.e.finish_bias(p, u.e.block_bias_target(l, u.lambda), u.call);
  }
};

}  // namespace innerloop
