// innerloop._cpu: unpack tensors, call the kernels without the GIL, translate the status.
#include <atomic>
#include <string>

#include "bindings/arguments.h"
#include "bindings/out_of_memory.h"
#include "bindings/regression.h"
#include "cpu/dispatch.h"
#include "cpu/parallel.h"

namespace innerloop {
namespace {

std::atomic<int> strategy{static_cast<int>(Strategy::kAuto)};

void check(Status status, const Model& model) {
  switch (status) {
    case Status::kOk:
      return;
    case Status::kOutOfMemory:
      throw_out_of_memory();
    case Status::kBadLabel:
      throw py::value_error("target class must lie in [0, " +
                            std::to_string(model.net().last().out) +
                            "), the number of outputs of the model");
    case Status::kBadCount:
      throw py::value_error("count must lie between 0 and the number of rows of x");
  }
}

/// Calls one entry of the current kernel table without the GIL.
template <class Call>
void dispatch(Status (*Kernels::*entry)(const Call&, Strategy), bool is_float64, const Call& call,
              const Model& model) {
  Status status;
  {
    py::gil_scoped_release release;
    status = (kernels(is_float64).*entry)(call, static_cast<Strategy>(strategy.load()));
  }
  check(status, model);
}

void predict(const Model& model, bool is_float64, int64_t tasks, int64_t rows,
             const py::sequence& params, py::handle x, py::handle out, int threads) {
  const Extent extent(model, is_float64, 0, tasks);
  TensorReader reader;
  const LeafList leaves("params", extent, params, reader);
  const auto n = static_cast<uint64_t>(rows);
  PredictCall call{problem(model, 0, 0, tasks, leaves, threads), rows,
                   reader.address(x, extent.x(n), {"x"}),
                   reader.address(out, extent.outputs(n), {"out"})};
  dispatch(&Kernels::predict, is_float64, call, model);
}

void loss_and_grad(const Model& model, bool is_float64, int loss, double loss_parameter,
                   int64_t tasks, const py::sequence& params, const py::tuple& batch,
                   py::handle out_loss, py::handle out_grad, int threads) {
  const Extent extent(model, is_float64, loss, tasks);
  TensorReader reader;
  const LeafList leaves("params", extent, params, reader);
  LossAndGradCall call{
      problem(model, loss, loss_parameter, tasks, leaves, threads),
      side("batch", batch, extent, reader),
      reader.address(out_loss, extent.per_task(1), {"out_loss"}),
      reader.address(out_grad, extent.per_task(extent.parameters()), {"out_grad"})};
  dispatch(&Kernels::loss_and_grad, is_float64, call, model);
}

void hvp(const Model& model, bool is_float64, int loss, double loss_parameter, int64_t tasks,
         const py::sequence& params, const py::sequence& vector, const py::tuple& batch,
         py::handle out, int threads) {
  const Extent extent(model, is_float64, loss, tasks);
  TensorReader reader;
  const LeafList leaves("params", extent, params, reader);
  const LeafList direction("vector", extent, vector, reader);
  HvpCall call{problem(model, loss, loss_parameter, tasks, leaves, threads),
               side("batch", batch, extent, reader), direction.view(),
               reader.address(out, extent.per_task(extent.parameters()), {"out"})};
  dispatch(&Kernels::hvp, is_float64, call, model);
}

void adapt(const Model& model, bool is_float64, int loss, double loss_parameter, int64_t tasks,
           int64_t steps, const py::sequence& params, const py::tuple& adapts, const py::tuple& lr,
           const py::tuple& support, py::handle out, bool stepwise, py::handle out_support_loss,
           int threads) {
  UnrollArguments arguments(model, is_float64, loss, loss_parameter, tasks, steps, params, adapts,
                            lr, support, out_support_loss, threads);
  arguments.adapt(out, stepwise);
  dispatch(&Kernels::meta_grad, is_float64, arguments.call(), model);
}

void meta_grad(const Model& model, bool is_float64, int loss, double loss_parameter, int64_t tasks,
               int64_t steps, int order, const py::sequence& params, const py::tuple& adapts,
               const py::tuple& lr, const py::tuple& support, const py::tuple& query,
               py::handle task_weight, py::handle out_loss, py::handle out_support_loss,
               py::handle out_query_loss, py::handle grads, py::handle out_lr_grad, int threads) {
  UnrollArguments arguments(model, is_float64, loss, loss_parameter, tasks, steps, params, adapts,
                            lr, support, out_support_loss, threads);
  arguments.query(query, task_weight, out_loss, out_query_loss);
  arguments.differentiate(order, grads, out_lr_grad);
  dispatch(&Kernels::meta_grad, is_float64, arguments.call(), model);
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
  define_model(m);
  m.def("predict", &predict);
  m.def("loss_and_grad", &loss_and_grad);
  m.def("hvp", &hvp);
  m.def("adapt", &adapt);
  m.def("meta_grad", &meta_grad);
  m.def("tensor_key", &tensor_key);
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
