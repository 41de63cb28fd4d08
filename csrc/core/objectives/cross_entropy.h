// cross_entropy: -log softmax(z)[y], shifted by the maximum. The target's gradient p_y - 1 is minus
// the sum of the other probabilities: the gradient sums to zero over classes, and keeps its digits
// near p_y = 1. So does the Hessian's product p_k (r_k - sum_j p_j r_j), with r counted from that
// of the likeliest class.
#pragma once

#include "core/objectives/objective.h"

namespace innerloop {

template <class M>
struct CrossEntropy : ClassTargets {
  using V = typename M::V;
  using Cell = typename M::Cell;

  IL_HD explicit CrossEntropy(const Objective&) {}
  IL_HD V gradient(const Sample<M>& s, Cell* g, Cell*) const {
    V top = s.z[0];
    for (int64_t k = 1; k < s.outputs; ++k) top = M::max(top, s.z[k]);
    const V zero = M::set(0);
    V others = zero, own = zero, chosen = zero;
    for (int64_t k = 0; k < s.outputs; ++k) {
      const V shifted = s.z[k] - top, e = M::exp(shifted), label = M::set(static_cast<double>(k));
      g[k] = e;
      others += M::select_eq(s.y[0], label, zero, e);
      own = M::select_eq(s.y[0], label, e, own);
      chosen = M::select_eq(s.y[0], label, shifted, chosen);
    }
    const V total = others + own, inverse = M::set(1) / total;
    for (int64_t k = 0; k < s.outputs; ++k) {
      g[k] = M::select_eq(s.y[0], M::set(static_cast<double>(k)), -others, g[k]) * inverse;
    }
    return M::log(total) - chosen;
  }
  IL_HD void curvature(const Sample<M>& s, const Cell* rz, const Cell*, Cell* rg, Cell*) const {
    V top = s.z[0];
    for (int64_t k = 1; k < s.outputs; ++k) top = M::max(top, s.z[k]);
    const V zero = M::set(0);
    V total = zero, dot = zero, at_top = zero;
    for (int64_t k = 0; k < s.outputs; ++k) at_top = M::select_eq(s.z[k], top, rz[k], at_top);
    for (int64_t k = 0; k < s.outputs; ++k) {
      const V e = M::exp(s.z[k] - top);
      rg[k] = e;
      total += e;
      dot += e * (rz[k] - at_top);
    }
    const V inverse = M::set(1) / total;
    const V mean = dot * inverse;
    for (int64_t k = 0; k < s.outputs; ++k) rg[k] = rg[k] * inverse * (rz[k] - at_top - mean);
  }
  IL_HD void metric(const Sample<M>& s, const Cell* rz, const Cell* r_free, Cell* rg,
                    Cell* rg_free) const {
    curvature(s, rz, r_free, rg, rg_free);
  }
};

}  // namespace innerloop
