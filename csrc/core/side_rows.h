// What the rows of a side weigh in their task's loss, unless the caller gives weights.
#pragma once

#include "core/kernels.h"
#include "core/objectives/all.h"

namespace innerloop {

/// The weight of each of a task's first `count` rows: 1 over their number, or over the sum of their
/// classes' weights. NaN where that is 0, as torch has it.
template <class Real>
IL_INLINE Real even_weight(const Side& side, const TargetLayout& targets, int64_t outputs,
                           int64_t task, int64_t count) {
  if (!targets.class_weights) return Real(1) / static_cast<Real>(count);
  const int64_t* labels = static_cast<const int64_t*>(side.y) + task * side.rows;
  double total = 0;
  for (int64_t i = 0; i < count; ++i) {
    const bool is_class = labels[i] >= 0 && labels[i] < outputs;
    total += is_class ? targets.class_weights[labels[i]] : 0;
  }
  return static_cast<Real>(total != 0 ? 1 / total : total / total);
}

}  // namespace innerloop
