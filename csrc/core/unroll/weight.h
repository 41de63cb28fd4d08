// The kinds of weight in an inner loop, and which one a layer has. A kind is a struct of static
// functions over the state u of a group of tasks, at step s, for layer l:
//
//   update(u, s, l)            phi_{s+1} from phi_s, the delta of the layer and its input
//   seed(u, s, l)              the rate's gradient -<lambda, g>. Where that needs in_l lambda^T, it
//                              leaves alpha_s times it in rz_l and returns true
//   build_direction(u, s, l)   the direction of the product with H_s, where steps are built
//   decay(u, l)                lambda -= decay times that direction
//   direction(u, s, l, v)      says where this direction lies
//   start(u, l, delta, in)     lambda_S: what the query's backward pass gives
//   accumulate(u, s, l, left, right, left2, right2)
//                              lambda -= left^T right + left2^T right2 (the second pair may be
//                              null)
//   finish(u, l)               lambda_0 leaves for the caller, or for the sum over tasks
//
// Biases move in one way alone, without a choice (core/unroll/bias.h).
#pragma once

#include "core/unroll/fixed_weight.h"
#include "core/unroll/implicit_weight.h"
#include "core/unroll/stored_weight.h"

namespace innerloop {

/// f(kind) of layer l's weight; nothing where there is none, as with a free leaf.
template <class E, class F>
IL_HD inline void with_weight(const UnrollState<E>& u, int l, F&& f) {
  const LayerPlan& p = u.plan.layers[l];
  if (p.weight_leaf < 0) return;
  if (u.is_implicit(l)) return f(ImplicitWeight<E>{});
  if (p.adapts_weight) return f(StoredWeight<E>{});
  f(FixedWeight<E>{});
}

}  // namespace innerloop
