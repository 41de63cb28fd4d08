// innerloop._cpu: unpack tensors, call the kernels without the GIL, translate the status.
#include <atomic>
#include <memory>
#include <mutex>
#include <string>
#include <utility>

#include "bindings/arguments.h"
#include "bindings/image_layers.h"
#include "bindings/out_of_memory.h"
#include "bindings/regression.h"
#include "cpu/dispatch.h"
#include "cpu/parallel.h"

namespace innerloop {
namespace {

std::atomic<int> strategy{static_cast<int>(Strategy::kAuto)};

void check(Status status, const NativePlan& plan) {
  switch (status) {
    case Status::kOk:
      return;
    case Status::kOutOfMemory:
      throw_out_of_memory();
    case Status::kBadLabel:
      throw py::value_error("target class must lie in [0, " +
                            std::to_string(plan.net().last().out) +
                            "), the number of outputs of the model");
    case Status::kBadCount:
      throw py::value_error("count must lie between 0 and the number of rows of x");
  }
}

/// Calls one entry of the current kernel table without the GIL.
template <class Call>
void dispatch(Status (*Kernels::*entry)(const Call&, Strategy), bool is_float64, const Call& call,
              const NativePlan& plan) {
  Status status;
  {
    py::gil_scoped_release release;
    status = (kernels(is_float64).*entry)(call, static_cast<Strategy>(strategy.load()));
  }
  check(status, plan);
}

void predict(const NativePlan& plan, const py::sequence& params, py::handle x, py::handle out,
             int threads) {
  Arguments a(plan, x, params, threads, true);
  const int64_t rows = size_of(x, 1);
  const auto n = static_cast<uint64_t>(rows);
  const PredictCall call{a.problem, rows, a.reader.address(x, a.extent.x(n), {"x"}),
                         a.reader.result(out, a.extent.outputs(n), {"out"})};
  dispatch(&Kernels::predict, a.extent.is_float64(), call, plan);
}

void loss_and_grad(const NativePlan& plan, const py::sequence& params, const py::tuple& batch,
                   py::handle out_loss, py::handle out_grad, int threads) {
  Arguments a(plan, rows_of(batch), params, threads, true);
  const LossAndGradCall call{
      a.problem, read_side("batch", batch, plan.support(), a.extent, a.reader),
      a.reader.result(out_loss, a.extent.per_task(1), {"out_loss"}),
      a.reader.result(out_grad, a.extent.per_task(a.extent.parameters()), {"out_grad"})};
  dispatch(&Kernels::loss_and_grad, a.extent.is_float64(), call, plan);
}

void hvp(const NativePlan& plan, const py::sequence& params, const py::sequence& vector,
         const py::tuple& batch, py::handle out, int threads) {
  const VectorArguments a(plan, params, vector, batch, out, threads, true);
  dispatch(&Kernels::hvp, a.extent.is_float64(), a.call(), plan);
}

void metric(const NativePlan& plan, const py::sequence& params, const py::sequence& vector,
            const py::tuple& batch, py::handle out, int threads) {
  const VectorArguments a(plan, params, vector, batch, out, threads, true);
  dispatch(&Kernels::metric, a.extent.is_float64(), a.call(), plan);
}

/// Products of one matrix with one vector after another: what they share lies in a tape that is
/// written at the first. Parameters and rows are read anew by each, and must not have changed.
class Linearization {
 public:
  Linearization(py::object plan, py::sequence params, py::tuple batch, bool is_metric)
      : plan_(std::move(plan)),
        params_(std::move(params)),
        batch_(std::move(batch)),
        entry_(is_metric ? &Kernels::metric : &Kernels::hvp) {}
  Linearization(const Linearization&) = delete;

  void product(const py::sequence& vector, py::handle out, int threads) {
    const auto& plan = plan_.cast<const NativePlan&>();
    const std::lock_guard<Turn> turn(turn_);  // products write to the tape
    const VectorArguments a(plan, params_, vector, batch_, out, threads, true);
    HvpCall call = a.call();
    if (!tape_) begin(a.extent.is_float64(), call);
    if (a.extent.is_float64() != is_float64_ || kernels_->tape_bytes(call, strategy_) != bytes_) {
      throw std::invalid_argument("Linearization: parameters and rows must stay as they are");
    }
    call.tape = tape_->data();
    Status status = Status::kOk;
    {
      py::gil_scoped_release release;
      if (!is_written_) {
        HvpCall writes = call;
        writes.out = nullptr;
        status = (kernels_->*entry_)(writes, strategy_);
      }
      if (status == Status::kOk) status = (kernels_->*entry_)(call, strategy_);
    }
    check(status, plan);
    is_written_ = true;
  }

 private:
  /// One product at a time; who waits does so without the GIL, which the other needs.
  class Turn {
   public:
    void lock() {
      py::gil_scoped_release release;
      mutex_.lock();
    }
    void unlock() { mutex_.unlock(); }

   private:
    std::mutex mutex_;
  };
  /// Fixes how the tape lies in memory, and allocates it.
  void begin(bool is_float64, const HvpCall& call) {
    is_float64_ = is_float64;
    kernels_ = &kernels(is_float64);
    strategy_ = static_cast<Strategy>(strategy.load());
    bytes_ = kernels_->tape_bytes(call, strategy_);
    if (bytes_ < 0) {
      refused_bytes() = 0;
      throw_out_of_memory();
    }
    auto tape = std::make_unique<Workspace>(bytes_ + 64);
    if (!tape->data()) throw_out_of_memory();
    tape_ = std::move(tape);
  }

  const py::object plan_;
  const py::sequence params_;
  const py::tuple batch_;
  Status (*Kernels::* const entry_)(const HvpCall&, Strategy);
  Turn turn_;
  const Kernels* kernels_ = nullptr;
  Strategy strategy_ = Strategy::kAuto;
  bool is_float64_ = false;
  int64_t bytes_ = 0;
  std::unique_ptr<Workspace> tape_;
  bool is_written_ = false;
};

void adapt(const NativePlan& plan, const py::sequence& params, py::handle rates,
           const py::tuple& support, py::handle out, py::handle out_support_loss, int threads) {
  UnrollArguments a(plan, params, rates, support, out_support_loss, threads);
  a.adapt(out);
  dispatch(&Kernels::meta_grad, a.extent.is_float64(), a.call(), plan);
}

void meta_grad(const NativePlan& plan, const py::sequence& params, py::handle rates,
               const py::tuple& support, const py::tuple& query, py::handle task_weight,
               py::handle out_loss, py::handle out_support_loss, py::handle out_query_loss,
               const py::object& grads, py::handle out_rate_grad, int threads) {
  UnrollArguments a(plan, params, rates, support, out_support_loss, threads);
  a.query(query, task_weight, out_loss, out_query_loss);
  a.differentiate(grads, out_rate_grad);
  dispatch(&Kernels::meta_grad, a.extent.is_float64(), a.call(), plan);
}

void set_strategy(const std::string& name) {
  if (name == "auto") {
    strategy = static_cast<int>(Strategy::kAuto);
  } else if (name == "lanes") {
    strategy = static_cast<int>(Strategy::kLanes);
  } else if (name == "rows") {
    strategy = static_cast<int>(Strategy::kRows);
  } else {
    throw std::invalid_argument("strategy must be auto, lanes or rows (got " + name + ")");
  }
}

py::dict build_info() {
  py::dict info;
  info["compiler"] = INNERLOOP_COMPILER;
  info["build_type"] = INNERLOOP_BUILD_TYPE;
  info["cuda"] = INNERLOOP_CUDA_STATE;
  info["pybind11"] =
      PYBIND11_TOSTRING(PYBIND11_VERSION_MAJOR) "." PYBIND11_TOSTRING(PYBIND11_VERSION_MINOR);
  return info;
}

}  // namespace

PYBIND11_MODULE(_cpu, m, py::mod_gil_not_used()) {
  m.doc() = "Fused operations for batches of tasks, unchecked. Use innerloop's Python API.";
  simd_level();  // reads INNERLOOP_SIMD: a bad value fails the import, with its reason
  define_plan(m);
  m.def("predict", &predict);
  m.def("loss_and_grad", &loss_and_grad);
  m.def("hvp", &hvp);
  m.def("metric", &metric);
  py::class_<Linearization>(m, "Linearization", py::module_local())
      .def(py::init<py::object, py::sequence, py::tuple, bool>(), py::arg("plan"),
           py::arg("params"), py::arg("batch"), py::arg("is_metric"))
      .def("product", &Linearization::product, py::arg("vector"), py::arg("out"),
           py::arg("threads"));
  m.def("adapt", &adapt);
  m.def("meta_grad", &meta_grad);
  m.def("tensor_key", &tensor_key);
  define_layers(m);
  define_regression(m);
  m.def("simd_levels", &simd_levels);
  m.def("simd_level", &simd_level);
  m.def("set_simd_level", &set_simd_level);
  m.def("set_strategy", &set_strategy);
  m.def("build_info", &build_info);
  m.def("workspace_bytes", &workspace_bytes);
  m.def("release_workspace", &release_workspaces);
}

}  // namespace innerloop
