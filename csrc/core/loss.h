// Per-sample losses: value, gradient and Hessian product with respect to the network's outputs,
// written once for any element type `M::V` (lanes are samples or tasks, whichever the back end
// has). `M::Cell` is how an array holds an element.
#pragma once

#include "core/logistic.h"
#include "core/net.h"

namespace innerloop {

/// One sample's outputs and target. z: K outputs; y: K targets, or one class index held as a
/// number.
template <class M>
struct Sample {
  using V = typename M::V;
  using Cell = typename M::Cell;
  const Cell* z;
  const Cell* y;
  int64_t outputs;
  V parameter;  // the loss's own constant (huber's delta)
};

/// A loss that is a scaled sum over outputs of a scalar function `Term`:
/// value(z, y), first = d/dz, curvature = d2/dz2 times rz.
template <class M, class Term>
struct SeparableLoss {
  using V = typename M::V;
  using Cell = typename M::Cell;
  /// Returns the sample's loss and writes its gradient dl/dz to g [K].
  IL_HD static V gradient(const Sample<M>& s, Cell* g) {
    const V scale = M::set(Term::kScale / static_cast<double>(s.outputs));
    V total = M::set(0);
    for (int64_t k = 0; k < s.outputs; ++k) {
      total += Term::value(s.z[k], s.y[k], s.parameter);
      g[k] = scale * Term::first(s.z[k], s.y[k], s.parameter);
    }
    return scale * total;
  }
  /// Writes rg = (d2l/dz2) rz, both [K].
  IL_HD static void curvature(const Sample<M>& s, const Cell* rz, Cell* rg) {
    const V scale = M::set(Term::kScale / static_cast<double>(s.outputs));
    for (int64_t k = 0; k < s.outputs; ++k) {
      rg[k] = scale * Term::curvature(s.z[k], s.y[k], s.parameter, rz[k]);
    }
  }
};

/// kScale makes one term serve mse (1) and half_mse (1/2).
template <class M, int kHalves>
struct SquareTerm {
  using V = typename M::V;
  static constexpr double kScale = 0.5 * kHalves;
  IL_HD static V value(V z, V y, V) { return (z - y) * (z - y); }
  IL_HD static V first(V z, V y, V) { return M::set(2) * (z - y); }
  IL_HD static V curvature(V, V, V, V rz) { return M::set(2) * rz; }
};

/// log(1 + exp(-|z|)) + (1 - y) max(z, 0) + y max(-z, 0): finite for every z, and right to the last
/// digits where the target is met and the loss is as small as exp(-|z|).
template <class M>
struct BceTerm {
  using V = typename M::V;
  static constexpr double kScale = 1;
  IL_HD static V value(V z, V y, V) {
    const V missed = M::select_gt(z, M::set(0), M::set(1) - y, y);
    return softplus_tail<M>(z) + missed * M::abs(z);
  }
  IL_HD static V first(V z, V y, V) {
    const Logistic<M> p(M::abs(z));  // shares its exp with softplus_tail
    const V up = M::select_gt(M::set(0), z, p.down, p.up);
    const V down = M::select_gt(M::set(0), z, p.up, p.down);
    return (M::set(1) - y) * up - y * down;
  }
  IL_HD static V curvature(V z, V, V, V rz) {
    const Logistic<M> p(z);
    return p.up * p.down * rz;
  }
};

/// Quadratic inside |z - y| <= delta (parameter), linear outside.
template <class M>
struct HuberTerm {
  using V = typename M::V;
  static constexpr double kScale = 1;
  IL_HD static V value(V z, V y, V delta) {
    const V r = M::abs(z - y);
    return M::select_gt(r, delta, delta * (r - M::set(0.5) * delta), M::set(0.5) * r * r);
  }
  IL_HD static V first(V z, V y, V delta) {
    const V r = z - y;
    return M::select_gt(r, delta, delta, M::select_gt(-delta, r, -delta, r));
  }
  IL_HD static V curvature(V z, V y, V delta, V rz) {  // chooses: 0 stops an infinite rz
    return M::select_gt(M::abs(z - y), delta, M::set(0), rz);
  }
};

/// -log softmax(z)[y], shifted by the maximum. The target's gradient p_y - 1 is minus the sum of
/// the other probabilities: the gradient sums to zero over classes, and keeps its digits near p_y
/// = 1.
template <class M>
struct CrossEntropyLoss {
  using V = typename M::V;
  using Cell = typename M::Cell;
  IL_HD static V gradient(const Sample<M>& s, Cell* g) {
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
  IL_HD static void curvature(const Sample<M>& s, const Cell* rz, Cell* rg) {
    V top = s.z[0];
    for (int64_t k = 1; k < s.outputs; ++k) top = M::max(top, s.z[k]);
    V total = M::set(0), dot = M::set(0);
    for (int64_t k = 0; k < s.outputs; ++k) {
      const V e = M::exp(s.z[k] - top);
      rg[k] = e;
      total += e;
      dot += e * rz[k];
    }
    const V inverse = M::set(1) / total;
    const V mean = dot * inverse;
    for (int64_t k = 0; k < s.outputs; ++k) rg[k] = rg[k] * inverse * (rz[k] - mean);
  }
};

/// Calls f(struct) with the loss's struct: one switch outside every loop.
template <class M, class F>
IL_HD inline void with_loss(LossKind kind, F&& f) {
  switch (kind) {
    case LossKind::kMse:
      return f(SeparableLoss<M, SquareTerm<M, 2>>{});
    case LossKind::kHalfMse:
      return f(SeparableLoss<M, SquareTerm<M, 1>>{});
    case LossKind::kCrossEntropy:
      return f(CrossEntropyLoss<M>{});
    case LossKind::kBceWithLogits:
      return f(SeparableLoss<M, BceTerm<M>>{});
    case LossKind::kHuber:
      return f(SeparableLoss<M, HuberTerm<M>>{});
  }
}

}  // namespace innerloop
