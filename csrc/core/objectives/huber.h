// huber and smooth_l1: the mean over outputs of what is quadratic inside |z - y| < delta and linear
// outside; the absolute value for a delta of 0.
#pragma once

#include "core/objectives/objective.h"

namespace innerloop {

/// Constants: delta and the slope outside, which is delta for huber and 1 for smooth_l1. Their
/// ratio is a finite number of the engine, or delta is 0.
template <class M>
struct HuberTerm {
  using V = typename M::V;
  static constexpr double kScale = 1;
  IL_HD explicit HuberTerm(const Objective& o)
      : delta(M::set(o.constants[0])),
        slope(M::set(o.constants[1])),
        inside(M::set(o.constants[0] > 0 ? o.constants[1] / o.constants[0] : 0)) {}
  IL_HD V value(V z, V y) const {
    const V r = M::abs(z - y);
    return M::select_gt(r, delta, slope * (r - M::set(0.5) * delta), M::set(0.5) * inside * r * r);
  }
  IL_HD V first(V z, V y) const {
    const V r = z - y;
    return M::select_gt(r, delta, slope, M::select_gt(-delta, r, -slope, inside * r));
  }
  IL_HD V curvature(V z, V y, V rz) const {  // chooses: 0 stops an infinite rz
    return M::select_gt(delta, M::abs(z - y), inside * rz, M::set(0));
  }

  V delta, slope, inside;  // `inside`: the second derivative there
};

template <class M>
using Huber = SeparableObjective<M, HuberTerm<M>>;

}  // namespace innerloop
