// The module of the operations on a device: unpack tensors, call without the GIL, translate
// errors. Built as innerloop._cuda over CUDA, and for tests over an emulation on the host.
#include <mutex>
#include <optional>
#include <string>
#include <utility>

#include "bindings/arguments.h"
#include "bindings/regression.h"
#include "cuda/device.h"

namespace innerloop {

/// What the module tells of its backend; cuda_info.cpp, or the emulation's own.
void define_backend(py::module_& m);

namespace {

/// (device, stream, allocate, facts, allow_tf32). allocate(bytes) returns the address of memory on
/// the device that stays until the stream has passed the launches; without it the operation is only
/// scheduled, for a device with these facts (multiprocessors, shared memory per block, per
/// multiprocessor).
using Facts = std::tuple<int, int64_t, int64_t>;
using Place = std::tuple<int, int64_t, py::object, std::optional<Facts>, bool>;

/// What calls must use: one thread may set it while others read.
class FixedSchedule {
 public:
  Cut read() {
    const std::lock_guard<std::mutex> lock(mutex_);
    return cut_;
  }
  Cut exchange(const Cut& cut) {
    const std::lock_guard<std::mutex> lock(mutex_);
    return std::exchange(cut_, cut);
  }

 private:
  std::mutex mutex_;
  Cut cut_;
};

FixedSchedule fixed_schedule;

/// Runs one operation with memory that Python allocates. Returns its schedule if that is all that
/// is wanted.
class DeviceCall {
 public:
  explicit DeviceCall(const Place& place) : allocate_(std::get<2>(place)) {
    context_.device = std::get<0>(place);
    context_.stream = reinterpret_cast<void*>(std::get<1>(place));
    context_.fixed = fixed_schedule.read();
    context_.allow_tf32 = std::get<4>(place);
    context_.only_schedules = allocate_.is_none();
    context_.schedule = &schedule_;
    context_.owner = this;
    context_.allocate = [](void* self, int64_t bytes) {
      const py::gil_scoped_acquire acquire;
      return reinterpret_cast<void*>(
          static_cast<DeviceCall*>(self)->allocate_(bytes).cast<int64_t>());
    };
    if (const auto& facts = std::get<3>(place)) {
      context_.facts = {std::get<0>(*facts), std::get<1>(*facts), std::get<2>(*facts)};
    }
  }

  template <class Call>
  py::object run(const char* (*BlockKernels::*entry)(const Call&, const BlockContext&),
                 bool is_float64, const Call& call) {
    const char* error;
    {
      const py::gil_scoped_release release;
      error = launch((block_kernels(is_float64).*entry), call);
    }
    if (error == kDoesNotFit || error == kTooLarge || error == kHasNoLayer) {
      PyErr_SetString(PyExc_NotImplementedError, error);
      throw py::error_already_set();
    }
    if (error) throw std::runtime_error(error);
    return context_.only_schedules ? py::object(described()) : py::none();
  }

 private:
  template <class Call>
  const char* launch(const char* (*entry)(const Call&, const BlockContext&), const Call& call) {
    if (context_.only_schedules) return entry(call, context_);
    const DeviceGuard guard(context_.device);
    const char* error = guard.error();
    if (!error) error = device_facts(context_.device, &context_.facts);
    return error ? error : entry(call, context_);
  }
  py::dict described() const {
    py::dict d;
    d["tasks_per_block"] = schedule_.tasks_per_block;
    d["threads"] = schedule_.threads;
    d["blocks"] = schedule_.blocks;
    d["workspace_bytes"] = schedule_.workspace_bytes;
    d["scratch_bytes"] = schedule_.scratch_bytes;
    d["cycles"] = schedule_.cycles;
    return d;
  }

  const py::object& allocate_;
  BlockContext context_;
  Schedule schedule_;
};

/// Whether an operation runs; without memory to allocate it is only scheduled.
bool runs(const Place& place) { return !std::get<2>(place).is_none(); }

py::object predict(const NativePlan& plan, const py::sequence& params, py::handle x, py::handle out,
                   const Place& place) {
  Arguments a(plan, x, params, 1, runs(place));
  const int64_t rows = size_of(x, 1);
  const auto n = static_cast<uint64_t>(rows);
  const PredictCall call{a.problem, rows, a.reader.address(x, a.extent.x(n), {"x"}),
                         a.reader.result(out, a.extent.outputs(n), {"out"})};
  return DeviceCall(place).run(&BlockKernels::predict, a.extent.is_float64(), call);
}

py::object loss_and_grad(const NativePlan& plan, const py::sequence& params, const py::tuple& batch,
                         py::handle out_loss, py::handle out_grad, const Place& place) {
  Arguments a(plan, rows_of(batch), params, 1, runs(place));
  const LossAndGradCall call{
      a.problem, read_side("batch", batch, plan.support(), a.extent, a.reader),
      a.reader.result(out_loss, a.extent.per_task(1), {"out_loss"}),
      a.reader.result(out_grad, a.extent.per_task(a.extent.parameters()), {"out_grad"})};
  return DeviceCall(place).run(&BlockKernels::loss_and_grad, a.extent.is_float64(), call);
}

py::object hvp(const NativePlan& plan, const py::sequence& params, const py::sequence& vector,
               const py::tuple& batch, py::handle out, const Place& place) {
  const VectorArguments a(plan, params, vector, batch, out, 1, runs(place));
  return DeviceCall(place).run(&BlockKernels::hvp, a.extent.is_float64(), a.call());
}

py::object metric(const NativePlan& plan, const py::sequence& params, const py::sequence& vector,
                  const py::tuple& batch, py::handle out, const Place& place) {
  const VectorArguments a(plan, params, vector, batch, out, 1, runs(place));
  return DeviceCall(place).run(&BlockKernels::metric, a.extent.is_float64(), a.call());
}

py::object adapt(const NativePlan& plan, const py::sequence& params, py::handle rates,
                 const py::tuple& support, py::handle out, py::handle out_support_loss,
                 const Place& place) {
  UnrollArguments a(plan, params, rates, support, out_support_loss, 1, runs(place));
  a.adapt(out);
  return DeviceCall(place).run(&BlockKernels::meta_grad, a.extent.is_float64(), a.call());
}

py::object meta_grad(const NativePlan& plan, const py::sequence& params, py::handle rates,
                     const py::tuple& support, const py::tuple& query, py::handle task_weight,
                     py::handle out_loss, py::handle out_support_loss, py::handle out_query_loss,
                     const py::object& grads, py::handle out_rate_grad, const Place& place) {
  UnrollArguments a(plan, params, rates, support, out_support_loss, 1, runs(place));
  a.query(query, task_weight, out_loss, out_query_loss);
  a.differentiate(grads, out_rate_grad);
  return DeviceCall(place).run(&BlockKernels::meta_grad, a.extent.is_float64(), a.call());
}

/// What later calls must use; 0 leaves it to the model of cost. Returns what was fixed before.
py::tuple fix_schedule(int64_t tasks_per_block, int threads) {
  if (tasks_per_block < 0 || tasks_per_block > kMaxGroup) {
    throw std::invalid_argument("tasks_per_block must lie in [1, " + std::to_string(kMaxGroup) +
                                "], or be 0 (got " + std::to_string(tasks_per_block) + ")");
  }
  if (threads < 0 || threads > kMaxThreads) {
    throw std::invalid_argument("threads must lie in [1, " + std::to_string(kMaxThreads) +
                                "], or be 0 (got " + std::to_string(threads) + ")");
  }
  const Cut before = fixed_schedule.exchange(Cut{tasks_per_block, threads});
  return py::make_tuple(before.tasks_per_block, before.threads);
}

}  // namespace

PYBIND11_MODULE(INNERLOOP_MODULE, m, py::mod_gil_not_used()) {
  m.doc() = "Fused operations on a device, unchecked. Use innerloop's Python API.";
  define_plan(m);
  m.def("predict", &predict);
  m.def("loss_and_grad", &loss_and_grad);
  m.def("hvp", &hvp);
  m.def("metric", &metric);
  m.def("adapt", &adapt);
  m.def("meta_grad", &meta_grad);
  m.def("fix_schedule", &fix_schedule, py::arg("tasks_per_block"), py::arg("threads"));
  define_device_regression(m);
  define_backend(m);
}

}  // namespace innerloop
