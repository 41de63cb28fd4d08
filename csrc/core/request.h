// What decides strategy and layout of a call, taken from any of the operations: shapes and options,
// no data.
#pragma once

#include "core/kernels.h"

namespace innerloop {

struct Request {
  const Problem& problem;
  const uint8_t* adapt = nullptr;
  int64_t steps = 0;
  int order = 2;
  int64_t support_rows = 0, query_rows = 0;
  bool wants_grad = false;
  bool allows_implicit = false;
  bool allows_parts = true;   // no step is built, which takes all rows of a side
  bool ignores_rows = false;  // some may be out of use
  int64_t rate_grad_size = 0;
};

/// The first layer stays implicit if its Gram products cost less than the products they replace:
/// per step and sample 4 in*out become 2 rows*out, for (rows + query) * in once. A template over
/// the engine, so that every instruction level has its own copy.
template <class E>
inline bool first_pays_implicit(const Request& r) {
  const Layer& first = r.problem.net->first();
  if (first.kind != LayerKind::kAffine) return false;
  if (!r.allows_implicit || r.problem.params.task_stride[first.weight_leaf] != 0) return false;
  if (!r.adapt || !r.adapt[first.weight_leaf]) return true;
  if (r.steps == 0) return false;
  const double in = static_cast<double>(first.in), out = static_cast<double>(first.out);
  const double rows = static_cast<double>(r.support_rows);
  const double query = static_cast<double>(r.query_rows);
  const double saved = static_cast<double>(r.steps) * (4 * in - 2 * rows) * out;
  return rows <= in && saved > (rows + query) * in + query * out;
}

}  // namespace innerloop
