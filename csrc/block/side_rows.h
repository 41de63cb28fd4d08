// Which rows of a side count, and how much.
#pragma once

#include <cmath>

#include "core/kernels.h"

namespace innerloop {

/// The weight of row i in the task's loss: 0 beyond the task's count, NaN where the count is not
/// one.
template <class Real>
IL_HD inline Real row_weight(const Side& side, int64_t task, int64_t i) {
  const int64_t count = side.count ? side.count[task] : side.rows;
  if (count < 0 || count > side.rows) return static_cast<Real>(NAN);
  if (i >= count) return Real(0);
  const Real* given = static_cast<const Real*>(side.weight);
  return given ? given[task * side.rows + i] : Real(1) / static_cast<Real>(count);
}

}  // namespace innerloop
