// Unpacks addresses and sizes of the linear-regression study, calls its kernels without the GIL.
#include "bindings/regression.h"

#include "bindings/out_of_memory.h"
#include "cpu/dispatch.h"

namespace py = pybind11;

namespace innerloop {
namespace {

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
  if (status == Status::kOutOfMemory) throw_out_of_memory();
}

void regression_trials(const LawTuple& of, int64_t tasks, int64_t first_trial, int64_t trials,
                       int64_t rates, int64_t rate, int64_t risks, int64_t excess,
                       int64_t estimates, int threads) {
  const RegressionTrialsCall call{regression_law(of),
                                  tasks,
                                  first_trial,
                                  trials,
                                  rates,
                                  pointer<const double>(rate),
                                  pointer<const RegressionRisk>(risks),
                                  pointer<double>(excess),
                                  pointer<double>(estimates),
                                  threads};
  check_trials(call);
  dispatch(&RegressionKernels::trials, call);
}

void regression_tasks(const LawTuple& of, int64_t tasks, int64_t first_trial, int64_t trials,
                      int64_t theta, int64_t variance, int64_t covariance, int64_t gram,
                      int64_t moment, int threads) {
  const RegressionTasksCall call{regression_law(of),
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
