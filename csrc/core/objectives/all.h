// The objectives, one row each: from the kind that a call names to the struct that computes it.
#pragma once

#include "core/objectives/bce_with_logits.h"
#include "core/objectives/cross_entropy.h"
#include "core/objectives/huber.h"
#include "core/objectives/objective.h"
#include "core/objectives/policy.h"
#include "core/objectives/soft_cross_entropy.h"
#include "core/objectives/square.h"

namespace innerloop {

constexpr ObjectiveKind kLastObjective = ObjectiveKind::kWeightedBce;

/// f(struct) of the objective: one switch outside every loop.
template <class M, class F>
IL_HD inline void with_objective(const Objective& o, F&& f) {
  switch (o.kind) {
    case ObjectiveKind::kMse:
      return f(Mse<M>(o));
    case ObjectiveKind::kHalfMse:
      return f(HalfMse<M>(o));
    case ObjectiveKind::kCrossEntropy:
      return f(CrossEntropy<M>(o));
    case ObjectiveKind::kBceWithLogits:
      return f(BceWithLogits<M>(o));
    case ObjectiveKind::kHuber:
      return f(Huber<M>(o));
    case ObjectiveKind::kLogLikelihood:
      return f(LogLikelihood<M>(o));
    case ObjectiveKind::kRatio:
      return f(Ratio<M>(o));
    case ObjectiveKind::kClipped:
      return f(Clipped<M>(o));
    case ObjectiveKind::kKl:
      return f(Kl<M>(o));
    case ObjectiveKind::kSoftCrossEntropy:
      return f(SoftCrossEntropy<M>(o));
    case ObjectiveKind::kWeightedBce:
      return f(WeightedBce<M>(o));
  }
}

/// How a side's targets lie in memory.
struct TargetLayout {
  bool has_classes;
  int64_t columns;              // of numbers, or 1 class
  bool has_free;                // the objective has a free leaf
  const double* class_weights;  // [K], what the mean over rows divides by; null: by their number
};

/// Arithmetic that no engine has: for what does not compute.
struct NoMath {
  using V = double;
  using Cell = double;
  IL_HD static V set(double x) { return x; }
};

IL_HD inline TargetLayout target_layout(const Objective& o, int64_t outputs) {
  TargetLayout layout{};
  with_objective<NoMath>(o, [&](auto objective) {
    using O = decltype(objective);
    layout = {O::kClasses, O::columns(outputs), O::kFree, nullptr};
    if constexpr (O::kClasses) layout.class_weights = O::class_weights(o);
  });
  return layout;
}

}  // namespace innerloop
