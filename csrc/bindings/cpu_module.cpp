// innerloop._cpu: unpack tensors, call the kernels without the GIL, translate the status.
#include <atomic>
#include <string>

#include "bindings/arguments.h"
#include "bindings/layers.h"
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

void adapt(const NativePlan& plan, const py::sequence& params, py::handle rates,
           const py::tuple& support, py::handle out, py::handle out_support_loss, int threads) {
  UnrollArguments a(plan, params, rates, support, out_support_loss, threads);
  a.adapt(out);
  dispatch(&Kernels::meta_grad, a.extent.is_float64(), a.call(), plan);
}

void meta_grad(const NativePlan& plan, const py::sequence& params, py::handle rates,
               const py::tuple& support, const py::tuple& query, py::handle task_weight,
               py::handle out_loss, py::handle out_support_loss, py::handle out_query_loss,
               py::handle grads, py::handle out_rate_grad, int threads) {
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
