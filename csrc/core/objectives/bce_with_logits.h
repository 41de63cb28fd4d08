// bce_with_logits: the mean over outputs of log(1 + exp(-|z|)) + (1 - y) max(z, 0) + y max(-z, 0).
// Finite for every z, and right to the last digits where the target is met and the loss is as small
// as exp(-|z|).
//
// weighted_bce: the mean of a y log(1 + exp(-z)) + b (1 - y) log(1 + exp(z)), with numbers a and b
// for each output: torch's weight times pos_weight, and its weight.
#pragma once

#include "core/logistic.h"
#include "core/objectives/objective.h"

namespace innerloop {

template <class M>
struct BceTerm {
  using V = typename M::V;
  static constexpr double kScale = 1;
  IL_HD explicit BceTerm(const Objective&) {}
  IL_HD V value(V z, V y) const { return softplus_tail<M>(z) + missed(z, y, M::set(1) - y); }
  IL_HD V first(V z, V y) const { return slope(z, y, M::set(1) - y); }
  IL_HD V curvature(V z, V, V rz) const {
    const Logistic<M> p(z);
    return p.up * p.down * rz;
  }

  /// up max(-z, 0) + down max(z, 0)
  IL_HD static V missed(V z, V up, V down) {
    return M::select_gt(z, M::set(0), down, up) * M::abs(z);
  }
  /// d/dz of up log(1 + exp(-z)) + down log(1 + exp(z))
  IL_HD static V slope(V z, V up, V down) {
    const Logistic<M> p(M::abs(z));  // shares its exp with softplus_tail
    const V above = M::select_gt(M::set(0), z, p.down, p.up);
    const V below = M::select_gt(M::set(0), z, p.up, p.down);
    return down * above - up * below;
  }
};

template <class M>
using BceWithLogits = SeparableObjective<M, BceTerm<M>>;

/// Constants: a, then b: one number each for all outputs, or one for each of them.
template <class M>
struct WeightedBce : ValueTargets {
  using V = typename M::V;
  using Cell = typename M::Cell;
  using Term = BceTerm<M>;

  IL_HD explicit WeightedBce(const Objective& o)
      : numbers(o.constants), count(o.constant_count / 2) {}
  IL_HD V gradient(const Sample<M>& s, Cell* g, Cell*) const {
    const V scale = M::set(1 / static_cast<double>(s.outputs));
    V total = M::set(0);
    for (int64_t k = 0; k < s.outputs; ++k) {
      const V z = s.z[k], up = a(k) * s.y[k], down = b(k) * (M::set(1) - s.y[k]);
      total += (up + down) * softplus_tail<M>(z) + Term::missed(z, up, down);
      g[k] = scale * Term::slope(z, up, down);
    }
    return scale * total;
  }
  IL_HD void curvature(const Sample<M>& s, const Cell* rz, const Cell*, Cell* rg, Cell*) const {
    const V scale = M::set(1 / static_cast<double>(s.outputs));
    for (int64_t k = 0; k < s.outputs; ++k) {
      const Logistic<M> p(s.z[k]);
      const V sum = a(k) * s.y[k] + b(k) * (M::set(1) - s.y[k]);
      rg[k] = scale * sum * p.up * p.down * rz[k];
    }
  }
  IL_HD void metric(const Sample<M>& s, const Cell* rz, const Cell* r_free, Cell* rg,
                    Cell* rg_free) const {
    curvature(s, rz, r_free, rg, rg_free);
  }

 private:
  IL_HD V a(int64_t k) const { return M::set(numbers[count > 1 ? k : 0]); }
  IL_HD V b(int64_t k) const { return M::set(numbers[count + (count > 1 ? k : 0)]); }

  const double* numbers;
  int count;
};

}  // namespace innerloop
