// huber: the mean over outputs of what is quadratic inside |z - y| <= delta and linear outside.
#pragma once

#include "core/objectives/objective.h"

namespace innerloop {

/// Constants: delta.
template <class M>
struct HuberTerm {
  using V = typename M::V;
  static constexpr double kScale = 1;
  IL_HD explicit HuberTerm(const Objective& o) : delta(M::set(o.constants[0])) {}
  IL_HD V value(V z, V y) const {
    const V r = M::abs(z - y);
    return M::select_gt(r, delta, delta * (r - M::set(0.5) * delta), M::set(0.5) * r * r);
  }
  IL_HD V first(V z, V y) const {
    const V r = z - y;
    return M::select_gt(r, delta, delta, M::select_gt(-delta, r, -delta, r));
  }
  IL_HD V curvature(V z, V y, V rz) const {  // chooses: 0 stops an infinite rz
    return M::select_gt(M::abs(z - y), delta, M::set(0), rz);
  }

  V delta;
};

template <class M>
using Huber = SeparableObjective<M, HuberTerm<M>>;

}  // namespace innerloop
