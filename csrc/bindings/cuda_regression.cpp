// The linear-regression study on a device: unpacks tensors, launches without the GIL. Linked into
// innerloop._cuda, and for tests into the emulation.
#include <string>

#include "bindings/regression.h"
#include "bindings/tensors.h"
#include "cuda/device.h"
#include "cuda/regression.h"

namespace innerloop {
namespace {

int64_t scratch_numbers(const LawTuple& of, int64_t tasks, int64_t trials, int64_t rates) {
  RegressionTrialsCall call{};
  call.law = regression_law(of);
  call.tasks = tasks;
  call.trials = trials;
  call.rates = rates;
  check_trials(call);
  return regression_scratch(call);
}

void regression_trials(const LawTuple& of, int64_t tasks, int64_t first_trial, int64_t trials,
                       int64_t rates, py::handle rate, py::handle risks, py::handle excess,
                       py::handle estimates, py::handle scratch, int device, int64_t stream) {
  RegressionTrialsCall call{};
  call.law = regression_law(of);
  call.tasks = tasks;
  call.first_trial = first_trial;
  call.trials = trials;
  call.rates = rates;
  call.threads = 1;
  check_trials(call);
  TensorReader reader;
  const auto numbers = [&reader](py::handle tensor, int64_t count, const char* name) {
    return static_cast<double*>(
        reader.address(tensor, sizeof(double) * static_cast<uint64_t>(count), {name}));
  };
  call.rate = numbers(rate, rates, "rate");
  call.risks = reinterpret_cast<const RegressionRisk*>(numbers(risks, 2 * (1 + rates), "risks"));
  call.excess = numbers(excess, trials * (1 + 3 * rates), "excess");
  call.estimates = numbers(estimates, trials * (1 + rates) * call.law.dimension, "estimates");
  double* const memory = numbers(scratch, regression_scratch(call), "scratch");
  std::string error;
  {
    const py::gil_scoped_release release;
    const DeviceGuard guard(device);
    const char* text = guard.error();
    if (!text) text = launch_regression(call, reinterpret_cast<void*>(stream), memory);
    if (text) error = text;
  }
  if (!error.empty()) throw std::runtime_error(error);
}

}  // namespace

void define_device_regression(py::module_& m) {
  m.def("regression_scratch", &scratch_numbers);
  m.def("regression_trials", &regression_trials);
}

}  // namespace innerloop
