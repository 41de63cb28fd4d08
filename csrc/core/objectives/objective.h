// The contract of an objective: what one row's loss is to the passes and engines.
//
// An objective is a struct template over the arithmetic M of an engine (`M::V` is a number for each
// of its lanes, which are rows or tasks; `M::Cell` is how an array holds one), in a file of its own
// here, with a row in all.h and a twin in python/innerloop/objectives:
//
//   layout     a base that says what its targets are: ValueTargets, ClassTargets, PolicyTargets
//   O(o)       reads its constants from an Objective
//   V gradient(s, g, g_free)
//              the row's loss; writes its gradient in the outputs to g [K] and, if `kFree`, in the
//              free leaves to g_free [F]
//   curvature(s, rz, r_free, rg, rg_free)
//              writes the Hessian in outputs and free leaves times the direction (rz, r_free)
//   metric(s, rz, r_free, rg, rg_free)
//              the same of the Gauss-Newton matrix: the Fisher information, where outputs describe
//              a distribution. Of the losses that are convex in the outputs it is the Hessian.
//
// A free leaf is a parameter that belongs to no layer, such as a Gaussian policy's log_std. Without
// `kFree` the last pointers are null and not looked at.
#pragma once

#include "core/host_device.h"

namespace innerloop {

/// The place of a name in python/innerloop/objectives/named.py.
enum class ObjectiveKind : int {
  kMse = 0,
  kHalfMse = 1,
  kCrossEntropy = 2,
  kBceWithLogits = 3,
  kHuber = 4,
  kLogLikelihood = 5,
  kRatio = 6,
  kClipped = 7,
  kKl = 8,
  kSoftCrossEntropy = 9,
  kWeightedBce = 10,
};

/// What one side of a call minimises: plain data. The struct of a kind documents its constants.
struct Objective {
  ObjectiveKind kind = ObjectiveKind::kMse;
  const double* constants = nullptr;
  int constant_count = 0;
};

/// One row: z, K outputs; y, the columns of its targets (classes are held as numbers); the task's
/// free leaves.
template <class M>
struct Sample {
  using Cell = typename M::Cell;
  const Cell* z;
  const Cell* y;
  int64_t outputs;
  const Cell* free;
};

/// One number per output.
struct ValueTargets {
  static constexpr bool kClasses = false, kFree = false;
  IL_HD static int64_t columns(int64_t outputs) { return outputs; }
};

/// One int64 class in [0, K). The mean over a task's rows divides by the sum of the weights of
/// their classes; by the number of rows, if there are none.
struct ClassTargets {
  static constexpr bool kClasses = true, kFree = false;
  IL_HD static int64_t columns(int64_t) { return 1; }
  IL_HD static const double* class_weights(const Objective&) { return nullptr; }
};

/// A loss that is a scaled sum over outputs of a scalar function: `Term` has kScale, and with its
/// constants value(z, y), first = d/dz, curvature = d2/dz2 times rz.
template <class M, class Term>
struct SeparableObjective : ValueTargets {
  using V = typename M::V;
  using Cell = typename M::Cell;

  IL_HD explicit SeparableObjective(const Objective& o) : term(o) {}
  IL_INLINE V gradient(const Sample<M>& s, Cell* g, Cell*) const {
    const V scale = M::set(Term::kScale / static_cast<double>(s.outputs));
    V total = M::set(0);
    for (int64_t k = 0; k < s.outputs; ++k) {
      total += term.value(s.z[k], s.y[k]);
      g[k] = scale * term.first(s.z[k], s.y[k]);
    }
    return scale * total;
  }
  IL_INLINE void curvature(const Sample<M>& s, const Cell* rz, const Cell*, Cell* rg, Cell*) const {
    const V scale = M::set(Term::kScale / static_cast<double>(s.outputs));
    for (int64_t k = 0; k < s.outputs; ++k) {
      rg[k] = scale * term.curvature(s.z[k], s.y[k], rz[k]);
    }
  }
  IL_HD void metric(const Sample<M>& s, const Cell* rz, const Cell* r_free, Cell* rg,
                    Cell* rg_free) const {
    curvature(s, rz, r_free, rg, rg_free);
  }

  Term term;
};

}  // namespace innerloop
