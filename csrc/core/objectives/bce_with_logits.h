// bce_with_logits: the mean over outputs of log(1 + exp(-|z|)) + (1 - y) max(z, 0) + y max(-z, 0).
// Finite for every z, and right to the last digits where the target is met and the loss is as small
// as exp(-|z|).
#pragma once

#include "core/logistic.h"
#include "core/objectives/objective.h"

namespace innerloop {

template <class M>
struct BceTerm {
  using V = typename M::V;
  static constexpr double kScale = 1;
  IL_HD explicit BceTerm(const Objective&) {}
  IL_HD V value(V z, V y) const {
    const V missed = M::select_gt(z, M::set(0), M::set(1) - y, y);
    return softplus_tail<M>(z) + missed * M::abs(z);
  }
  IL_HD V first(V z, V y) const {
    const Logistic<M> p(M::abs(z));  // shares its exp with softplus_tail
    const V up = M::select_gt(M::set(0), z, p.down, p.up);
    const V down = M::select_gt(M::set(0), z, p.up, p.down);
    return (M::set(1) - y) * up - y * down;
  }
  IL_HD V curvature(V z, V, V rz) const {
    const Logistic<M> p(z);
    return p.up * p.down * rz;
  }
};

template <class M>
using BceWithLogits = SeparableObjective<M, BceTerm<M>>;

}  // namespace innerloop
