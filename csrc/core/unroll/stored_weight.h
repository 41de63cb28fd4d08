// A weight that adapts: one copy for each task and step; its lambda is a matrix for each task.
#pragma once

#include "core/unroll/built_step.h"

namespace innerloop {

template <class E>
struct StoredWeight {
  using State = UnrollState<E>;
  using Elem = typename E::Elem;
  using R = Rows<Elem>;
  using Built = BuiltStep<E, WeightLeaf<E>>;

  IL_CALL static void update(const State& u, int64_t s, int l) {
    const LayerPlan& p = u.plan.layers[l];
    if (u.builds) {
      Built::update(u, s, l);
    } else {
      Elem* const next = u.block(s + 1);
      const typename E::WeightRef from = u.adds ? u.e.block_weight(l, next) : u.weight_at(s, l);
      u.e.tn(u.e.block_weight_target(l, next), &from, p, u.sweep.delta(u.support_tape(s), l),
             u.support_leaf_input(s, l), nullptr, nullptr, u.rate(s, p.weight_leaf), -1);
    }
    if (u.is_last) u.e.turn(l, u.block(s + 1));
  }

  IL_HD static void build_direction(const State& u, int64_t s, int l) {
    Built::build_direction(u, s, l);
  }
  IL_HD static void decay(const State& u, int l) { Built::decay(u, l); }
  /// <lambda, delta^T in> = <delta, in lambda^T>: the rate's gradient has the R-pass's product.
  IL_CALL static bool seed(const State& u, int64_t s, int l) {
    if (u.builds) {
      Built::rate_gradient(u, s, l);
      return false;
    }
    if (!u.wants_rate_grad) return false;
    const LayerPlan& p = u.plan.layers[l];
    const R r = u.sweep.rz(u.scratch, l);
    u.e.nt(r, u.support_leaf_input(s, l), u.e.block_weight(l, u.lambda), nullptr, 1, false);
    u.sum_rate_grad(s, p.weight_leaf, [&](typename E::PerTask* to) {
      u.e.minus_dot(to, p, u.sweep.delta(u.support_tape(s), l), r);
    });
    u.e.copy_scaled(r, r, u.rate(s, p.weight_leaf));
    return true;
  }
  IL_HD static void direction(const State& u, int64_t s, int l, Direction<E>& v) {
    v.weight = u.e.block_weight(l, u.builds ? u.direction : u.lambda);
    if (!u.builds) v.weight_rate = u.rate(s, u.plan.layers[l].weight_leaf);
  }

  IL_CALL static void start(const State& u, int l, const R& delta, const R& in) {
    const typename E::WeightRef from = u.e.block_weight(l, u.lambda);
    u.e.tn(u.e.block_weight_target(l, u.lambda), u.adds ? &from : nullptr, u.plan.layers[l], delta,
           in, nullptr, nullptr, nullptr, 1);
  }
  /// What step 0 gives reaches no product: it may go to the sum over tasks at once.
  IL_CALL static void accumulate(const State& u, int64_t s, int l, const R& left, const R& right,
                                 const R* left2, const R* right2) {
    const LayerPlan& p = u.plan.layers[l];
    if (s == 0 && !p.weight_per_task) {
      u.e.sink_tn(p, left, right, left2, right2, -1);
      return;
    }
    const typename E::WeightRef from = u.e.block_weight(l, u.next_lambda);
    u.e.tn(u.e.block_weight_target(l, u.next_lambda), &from, p, left, right, left2, right2, nullptr,
           -1);
  }
  IL_HD static void finish(const State& u, int l) {
    u.e.finish_weight(u.plan.layers[l], u.e.block_weight_target(l, u.lambda), u.call);
  }
};

}  // namespace innerloop
