// The logistic function and its relatives: what is small is computed as such, never as a difference
// from 1 or from |z|, so that saturated outputs keep all their digits.
#pragma once

#include "core/host_device.h"

namespace innerloop {

/// up = 1 / (1 + exp(-z)) and down = 1 / (1 + exp(z)) = 1 - up, each to a few units in its own last
/// place; 0 where that underflows.
template <class M>
struct Logistic {
  using V = typename M::V;
  V up, down;
  IL_HD explicit Logistic(V z) {
    const V e = M::exp(-z);
    up = M::set(1) / (M::set(1) + e);
    down = M::select_gt(z, M::set(0), e * up, M::set(1) - up);
  }
};

/// log(1 + exp(-|z|)): softplus(z) is this and max(z, 0).
template <class M>
IL_HD inline typename M::V softplus_tail(typename M::V z) {
  return M::log1p_unit(M::exp(-M::abs(z)));
}

}  // namespace innerloop
