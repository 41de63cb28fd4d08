// Unpacks addresses and sizes of the linear-regression study, calls its kernels without the GIL.
#include "bindings/regression.h"

#include <pybind11/stl.h>

#include <new>
#include <stdexcept>
#include <tuple>

#include "cpu/dispatch.h"

namespace py = pybind11;

namespace innerloop {
namespace {

using LawTuple = std::tuple<int64_t, int64_t, double, uint64_t>;  // p, N, scale, key

/// Trials, tasks, attempts and draws are 32-bit words of the counter.
constexpr int64_t kMaxCount = int64_t{1} << 32;
constexpr int64_t kMaxDimension = 1024;

RegressionLaw law(const LawTuple& t) {
  const RegressionLaw made{std::get<0>(t), std::get<1>(t), std::get<2>(t), std::get<3>(t)};
  if (made.dimension < 1 || made.dimension > kMaxDimension || made.samples < 1 ||
      made.samples > kMaxCount) {
    throw std::invalid_argument(
        "the dimension must lie in [1, 1024] and the number of samples in [1, 2^32]");
  }
  return made;
}

template <class Call>
void check_counts(const Call& call) {
  if (call.tasks < 1 || call.tasks > kMaxCount || call.trials < 0 || call.first_trial < 0 ||
      call.trials > kMaxCount - call.first_trial) {
    throw std::invalid_argument("tasks and trials must lie in [1, 2^32] and [0, 2^32]");
  }
}

template <class Real>
Real* pointer(int64_t address) {
  return reinterpret_cast<Real*>(address);
}

template <class Call>
void dispatch(Status (*RegressionKernels::*entry)(const Call&), const Call& call) {
  Status status;
  {
    py::gil_scoped_release release;
    status = (regression_kernels().*entry)(call);
  }
  if (status == Status::kOutOfMemory) throw std::bad_alloc();
}

void regression_trials(const LawTuple& of, int64_t tasks, int64_t first_trial, int64_t trials,
                       int64_t rates, int64_t rate, int64_t risks, int64_t excess,
                       int64_t estimates, int threads) {
  static_assert(sizeof(RegressionRisk) == 2 * sizeof(double), "risks are pairs of doubles");
  const RegressionTrialsCall call{law(of),
                                  tasks,
                                  first_trial,
                                  trials,
                                  rates,
                                  pointer<const double>(rate),
                                  pointer<const RegressionRisk>(risks),
                                  pointer<double>(excess),
                                  pointer<double>(estimates),
                                  threads};
  check_counts(call);
  if (rates < 0) throw std::invalid_argument("the number of rates must not be negative");
  dispatch(&RegressionKernels::trials, call);
}

void regression_tasks(const LawTuple& of, int64_t tasks, int64_t first_trial, int64_t trials,
                      int64_t theta, int64_t variance, int64_t covariance, int64_t gram,
                      int64_t moment, int threads) {
  const RegressionTasksCall call{law(of),
                                 tasks,
                                 first_trial,
                                 trials,
                                 pointer<double>(theta),
                                 pointer<double>(variance),
                                 pointer<double>(covariance),
                                 pointer<double>(gram),
                                 pointer<double>(moment),
                                 threads};
  check_counts(call);
  dispatch(&RegressionKernels::tasks, call);
}

void random_words(uint64_t key, int64_t count, int64_t counters, int64_t words) {
  dispatch(
      &RegressionKernels::random_words,
      RandomWordsCall{key, count, pointer<const uint32_t>(counters), pointer<uint32_t>(words)});
}

}  // namespace

void define_regression(py::module_& m) {
  m.def("regression_trials", &regression_trials);
  m.def("regression_tasks", &regression_tasks);
  m.def("random_words", &random_words);
}

}  // namespace innerloop
