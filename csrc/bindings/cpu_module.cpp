// innerloop._cpu: unpack integers, call the kernels without the GIL, translate the status.
#include <atomic>
#include <string>

#include "bindings/arguments.h"
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
      throw std::bad_alloc();
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
             const std::vector<int64_t>& params, const std::vector<int64_t>& strides, int64_t x,
             int64_t out, int threads) {
  const LeafList leaves(model, params, strides);
  PredictCall call{problem(model, 0, 0, tasks, leaves, threads), rows, pointer(x), writable(out)};
  dispatch(&Kernels::predict, is_float64, call, model);
}

void loss_and_grad(const Model& model, bool is_float64, int loss, double loss_parameter,
                   int64_t tasks, const std::vector<int64_t>& params,
                   const std::vector<int64_t>& strides, const SideTuple& batch, int64_t out_loss,
                   int64_t out_grad, int threads) {
  const LeafList leaves(model, params, strides);
  LossAndGradCall call{problem(model, loss, loss_parameter, tasks, leaves, threads), side(batch),
                       writable(out_loss), writable(out_grad)};
  dispatch(&Kernels::loss_and_grad, is_float64, call, model);
}

void hvp(const Model& model, bool is_float64, int loss, double loss_parameter, int64_t tasks,
         const std::vector<int64_t>& params, const std::vector<int64_t>& strides,
         const std::vector<int64_t>& vector, const std::vector<int64_t>& vector_strides,
         const SideTuple& batch, int64_t out, int threads) {
  const LeafList leaves(model, params, strides), direction(model, vector, vector_strides);
  HvpCall call{problem(model, loss, loss_parameter, tasks, leaves, threads), side(batch),
               direction.view(), writable(out)};
  dispatch(&Kernels::hvp, is_float64, call, model);
}

void adapt(const Model& model, bool is_float64, int loss, double loss_parameter, int64_t tasks,
           int64_t steps, const std::vector<int64_t>& params, const std::vector<int64_t>& strides,
           const std::vector<bool>& adapts, const RateTuple& lr, const SideTuple& support,
           int64_t out, bool stepwise, int64_t out_support_loss, int threads) {
  const AdaptArguments arguments(model, loss, loss_parameter, tasks, steps, params, strides, adapts,
                                 lr, support, out, stepwise, out_support_loss, threads);
  dispatch(&Kernels::meta_grad, is_float64, arguments.call(), model);
}

void meta_grad(const Model& model, bool is_float64, int loss, double loss_parameter, int64_t tasks,
               int64_t steps, int order, const std::vector<int64_t>& params,
               const std::vector<int64_t>& strides, const std::vector<bool>& adapts,
               const RateTuple& lr, const SideTuple& support, const SideTuple& query,
               int64_t task_weight, int64_t out_loss, int64_t out_support_loss,
               int64_t out_query_loss, const std::vector<int64_t>& grads,
               const std::vector<int64_t>& grad_strides, int64_t out_lr_grad, int threads) {
  const MetaGradArguments arguments(model, loss, loss_parameter, tasks, steps, order, params,
                                    strides, adapts, lr, support, query, task_weight, out_loss,
                                    out_support_loss, out_query_loss, grads, grad_strides,
                                    out_lr_grad, threads);
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
  m.doc() =
      "Fused operations for batches of tasks, over raw addresses. Use innerloop's Python API.";
  simd_level();  // reads INNERLOOP_SIMD: a bad value fails the import, with its reason
  define_model(m);
  m.def("predict", &predict);
  m.def("loss_and_grad", &loss_and_grad);
  m.def("hvp", &hvp);
  m.def("adapt", &adapt);
  m.def("meta_grad", &meta_grad);
  m.def("simd_levels", &simd_levels);
  m.def("simd_level", &simd_level);
  m.def("set_simd_level", &set_simd_level);
  m.def("set_strategy", &set_strategy);
  m.def("build_info", &build_info);
  m.def("workspace_bytes", &workspace_bytes);
  m.def("release_workspace", &release_workspaces);
}

}  // namespace innerloop
