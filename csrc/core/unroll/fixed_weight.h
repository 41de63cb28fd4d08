// A weight that does not adapt: one copy for all steps. What arrives at it goes straight to the sum
// over tasks, or to the task's own gradient if every task has a weight of its own.
#pragma once

#include "core/unroll/state.h"

namespace innerloop {

template <class E>
struct FixedWeight {
  using State = UnrollState<E>;
  using R = Rows<typename E::Elem>;

  IL_HD static void update(const State&, int64_t, int) {}
  IL_HD static void build_direction(const State&, int64_t, int) {}
  IL_HD static void decay(const State&, int) {}
  IL_HD static bool seed(const State& u, int64_t s, int l) {
    u.clear_rate_grad(s, u.plan.layers[l].weight_leaf);
    return false;
  }
  IL_HD static void direction(const State&, int64_t, int, Direction<E>&) {}

  IL_CALL static void start(const State& u, int l, const R& delta, const R& in) {
    const LayerPlan& p = u.plan.layers[l];
    if (p.weight_per_task) {
      const typename E::WeightRef from = u.e.block_weight(l, u.lambda);
      u.e.tn(u.e.block_weight_target(l, u.lambda), u.adds ? &from : nullptr, p, delta, in, nullptr,
             nullptr, nullptr, 1);
    } else {
      u.e.sink_tn(p, delta, in, nullptr, nullptr, 1);
    }
  }
  IL_CALL static void accumulate(const State& u, int64_t, int l, const R& left, const R& right,
                                 const R* left2, const R* right2) {
    const LayerPlan& p = u.plan.layers[l];
    if (p.weight_per_task) {
      const typename E::WeightRef from = u.e.block_weight(l, u.next_lambda);
      u.e.tn(u.e.block_weight_target(l, u.next_lambda), &from, p, left, right, left2, right2,
             nullptr, -1);
    } else {
      u.e.sink_tn(p, left, right, left2, right2, -1);
    }
  }
  IL_HD static void finish(const State& u, int l) {
    const LayerPlan& p = u.plan.layers[l];
    if (p.weight_per_task) u.e.finish_weight(p, u.e.block_weight_target(l, u.lambda), u.call);
  }
};

}  // namespace innerloop
