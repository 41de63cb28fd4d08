// The linear-regression study in the extension modules: what innerloop._cpu and innerloop._cuda
// define of it, and the checks that both make.
#pragma once

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <stdexcept>
#include <tuple>

#include "core/regression.h"

namespace innerloop {

using LawTuple = std::tuple<int64_t, int64_t, double, uint64_t>;  // p, N, scale, key

inline RegressionLaw regression_law(const LawTuple& t) {
  constexpr int64_t kMaxDimension = 1024, kMaxSamples = int64_t{1} << 32;
  const RegressionLaw made{std::get<0>(t), std::get<1>(t), std::get<2>(t), std::get<3>(t)};
  if (made.dimension < 1 || made.dimension > kMaxDimension || made.samples < 1 ||
      made.samples > kMaxSamples) {
    throw std::invalid_argument(
        "the dimension must lie in [1, 1024] and the number of samples in [1, 2^32]");
  }
  return made;
}

/// Trials, tasks, attempts and draws are 32-bit words of the counter.
template <class Call>
void check_counts(const Call& call) {
  constexpr int64_t kMaxCount = int64_t{1} << 32;
  if (call.tasks < 1 || call.tasks > kMaxCount || call.trials < 0 || call.first_trial < 0 ||
      call.trials > kMaxCount - call.first_trial) {
    throw std::invalid_argument("tasks and trials must lie in [1, 2^32] and [0, 2^32]");
  }
}

inline void check_trials(const RegressionTrialsCall& call) {
  static_assert(sizeof(RegressionRisk) == 2 * sizeof(double), "risks are pairs of doubles");
  check_counts(call);
  if (call.rates < 0) throw std::invalid_argument("the number of rates must not be negative");
}

/// Of innerloop._cpu.
void define_regression(pybind11::module_& m);
/// Of innerloop._cuda.
void define_device_regression(pybind11::module_& m);

}  // namespace innerloop
