// The contract of a layer: what one stage of a network is to the passes.
//
// Every layer computes z = u W^T + b and h = act(z). Its kind says what u is of the layer's input,
// by a map of each row that has no parameters, and whether W is a full matrix or a diagonal one:
//
//   affine (affine.h)           u = in, W full
//   layer norm (layer_norm.h)   u = (in - mean) / sqrt(variance + eps), W diagonal
//
// Leaves, activations, kinds of weight (core/unroll/weight.h) and solvers are therefore the same
// for all kinds. A kind is a struct of static functions over a sweep x, its tape t, the scratch s
// of the R-pass, and layer l:
//
//   kDiagonal                      W is a vector: one product for each output
//   lay_out(p, tape, scratch)      the columns that the map keeps of each row, of both passes
//   leaf_input(x, t, l, in)        u
//   r_leaf_input(x, s, l)          R{u}, where the input moves
//   forward(x, t, l, in)           u from the input
//   r_forward(x, t, s, l, r_in)    R{u} from R{in}
//   backward(x, t, c, params, l, delta, to)
//                                  the input's cotangent from delta; that of u may lie in c, which
//                                  is cotangent(x, t, l), or r_cotangent(x, s, l) where the
//                                  R-pass needs it no more
//   r_backward(x, t, s, params, v, l, moves, to, add)
//                                  R{.} of the input's cotangent, along a direction v in the
//                                  weight, to `to` or added to it; `moves`: the input does
//
// An engine says which kinds it has by supports(kind): the passes do not mention others to it.
#pragma once

#include "core/engine.h"
#include "core/plan.h"

namespace innerloop {

/// Activations and deltas of one pass.
template <class Elem>
struct Tape {
  Elem* p;
  int64_t rows;
};

/// A direction in parameter space with one factor per task and leaf (null: 1). Empty leaves do not
/// move.
template <class E>
struct Direction {
  typename E::WeightRef weight;
  typename E::BiasRef bias;
  const typename E::PerTask* weight_rate = nullptr;
  const typename E::PerTask* bias_rate = nullptr;
};

}  // namespace innerloop
