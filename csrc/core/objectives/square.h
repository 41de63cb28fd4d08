// mse and half_mse: the mean over outputs of (z - y)^2, or of half of it.
#pragma once

#include "core/objectives/objective.h"

namespace innerloop {

template <class M, int kHalves>
struct SquareTerm {
  using V = typename M::V;
  static constexpr double kScale = 0.5 * kHalves;
  IL_HD explicit SquareTerm(const Objective&) {}
  IL_HD V value(V z, V y) const { return (z - y) * (z - y); }
  IL_HD V first(V z, V y) const { return M::set(2) * (z - y); }
  IL_HD V curvature(V, V, V rz) const { return M::set(2) * rz; }
};

template <class M>
using Mse = SeparableObjective<M, SquareTerm<M, 2>>;
template <class M>
using HalfMse = SeparableObjective<M, SquareTerm<M, 1>>;

}  // namespace innerloop
