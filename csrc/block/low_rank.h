// When a layer's adapted weights are kept as the initial ones and factors of their change
// (core/factors.h), and what that saves and costs.
#pragma once

#include "block/schedule.h"

namespace innerloop {

/// Which layers are factored: none, those where it pays, or all that can be.
enum class Factors : int { kNone, kWherePaying, kAll };

/// Factors need updates of rank N (no rates per element, no adapted weights as a result) and
/// initial weights that all tasks share.
inline bool allows_factors(const Request& r, int l) {
  const int leaf = r.problem.net->layers[l].weight_leaf;
  return r.allows_implicit && r.steps > 0 && r.adapt && r.adapt[leaf] &&
         r.problem.params.task_stride[leaf] == 0;
}

/// Multiply-adds of a task: of products with per-task weights that factors save (updates, and
/// products with lambda), and of products with factors that take their place.
struct FactorWork {
  double saved, added;
};
inline FactorWork factor_work(const Request& r, int l) {
  const Layer& layer = r.problem.net->layers[l];
  const double in = static_cast<double>(layer.in), out = static_cast<double>(layer.out);
  const double rows = static_cast<double>(r.support_rows);
  const double query = static_cast<double>(r.query_rows), steps = static_cast<double>(r.steps);
  const double pairs = steps * (steps - 1) / 2 * rows * rows;  // of rows of two steps
  const double with_query = steps * rows * query;
  FactorWork work{steps * rows * in * out, 2 * pairs + with_query};
  if (r.wants_grad) {
    work.added += with_query;  // back through the query
    work.saved += (r.order == 2 ? 2 : 1) * steps * rows * in * out;
    work.added += r.order == 2 ? 6 * pairs + 2 * with_query : with_query;
  }
  work.added *= in + out;
  return work;
}

/// Stored weights come from global memory in all products of a step, about three times as many as
/// those that factors save; so factors may cost so much more.
constexpr double kFactorsPay = 3;
inline bool pays_as_factors(const Request& r, int l) {
  if (!allows_factors(r, l)) return false;
  const FactorWork work = factor_work(r, l);
  return work.added <= kFactorsPay * work.saved;
}

inline bool is_factored(const Request& r, int l, Factors factors) {
  return factors == Factors::kAll           ? allows_factors(r, l)
         : factors == Factors::kWherePaying ? pays_as_factors(r, l)
                                            : false;
}

/// A task's work when layers are factored; an implicit first one never is.
inline TaskWork with_factors(TaskWork work, const Request& r, Factors factors, bool implicit) {
  for (int l = implicit ? 1 : 0; l < r.problem.net->depth; ++l) {
    if (!is_factored(r, l, factors)) continue;
    const FactorWork change = factor_work(r, l);
    work.multiply_adds += change.added - change.saved;
    work.phases += 2 * static_cast<double>(r.steps) * (r.wants_grad && r.order == 2 ? 3 : 1);
  }
  return work;
}

}  // namespace innerloop
