// Cross entropy with label smoothing e and class weights w: -sum_k q_k log softmax(z)_k, where
// class y stands for q_k = (1 - e) w_y [k = y] + e / K w_k. A task's mean divides by the sum over
// its rows of w_y, as torch's does.
//
// With p = softmax(z) and Q = sum q the gradient is Q p - q. It is computed as
// p_k (Q - q_k) - q_k (1 - p_k) with both differences as sums, which keeps its digits near p = q /
// Q.
#pragma once

#include "core/objectives/cross_entropy.h"

namespace innerloop {

/// Constants: e and, unless all are 1, the K class weights.
template <class M>
struct SoftCrossEntropy : CrossEntropy<M> {
  using V = typename M::V;
  using Cell = typename M::Cell;

  IL_HD explicit SoftCrossEntropy(const Objective& o)
      : CrossEntropy<M>(o), weights(class_weights(o)), smoothing(o.constants[0]) {}
  IL_HD static const double* class_weights(const Objective& o) {
    return o.constant_count > 1 ? o.constants + 1 : nullptr;
  }

  IL_HD V gradient(const Sample<M>& s, Cell* g, Cell*) const {
    const V zero = M::set(0), one = M::set(1);
    const Target target(*this, s);
    V top = s.z[0];
    for (int64_t k = 1; k < s.outputs; ++k) top = M::max(top, s.z[k]);
    V below = zero, ties = zero, dot = zero;
    for (int64_t k = 0; k < s.outputs; ++k) {
      const V shifted = s.z[k] - top, e = M::exp(shifted), q = target.share(k);
      g[k] = e;
      below += M::select_eq(e, one, zero, e);
      ties += M::select_eq(e, one, one, zero);
      dot += M::select_eq(q, zero, zero, q * shifted);
    }
    const V total = below + ties, inverse = one / total;
    for (int64_t k = 0; k < s.outputs; ++k) {
      const V e = g[k];
      const V others = M::select_eq(e, one, below + (ties - one), total - e);
      g[k] = (e * target.rest(k) - target.share(k) * others) * inverse;
    }
    return target.total() * M::log(total) - dot;
  }
  IL_HD void curvature(const Sample<M>& s, const Cell* rz, const Cell* r_free, Cell* rg,
                       Cell* rg_free) const {
    CrossEntropy<M>::curvature(s, rz, r_free, rg, rg_free);
    const V total = Target(*this, s).total();
    for (int64_t k = 0; k < s.outputs; ++k) rg[k] = total * rg[k];
  }
  IL_HD void metric(const Sample<M>& s, const Cell* rz, const Cell* r_free, Cell* rg,
                    Cell* rg_free) const {
    curvature(s, rz, r_free, rg, rg_free);
  }

 private:
  /// q of a row.
  struct Target {
    const SoftCrossEntropy& o;
    V label, own;  // own: (1 - e) w_y
    double spread, sum;

    IL_HD Target(const SoftCrossEntropy& objective, const Sample<M>& s)
        : o(objective),
          label(s.y[0]),
          own(M::set(1 - o.smoothing)),
          spread(o.smoothing / static_cast<double>(s.outputs)),
          sum(o.smoothing) {
      if (!o.weights) return;
      V weight = M::set(0);
      sum = 0;
      for (int64_t k = 0; k < s.outputs; ++k) {
        weight = M::select_eq(label, M::set(static_cast<double>(k)), M::set(o.weights[k]), weight);
        sum += spread * o.weights[k];
      }
      own = own * weight;
    }
    IL_HD double spread_of(int64_t k) const { return o.weights ? spread * o.weights[k] : spread; }
    IL_HD V if_own(int64_t k, V yes, V no) const {
      return M::select_eq(label, M::set(static_cast<double>(k)), yes, no);
    }
    /// q_k
    IL_HD V share(int64_t k) const { return M::set(spread_of(k)) + if_own(k, own, M::set(0)); }
    /// Q - q_k
    IL_HD V rest(int64_t k) const { return M::set(sum - spread_of(k)) + if_own(k, M::set(0), own); }
    /// Q
    IL_HD V total() const { return M::set(sum) + own; }
  };

  const double* weights;
  double smoothing;
};

}  // namespace innerloop
