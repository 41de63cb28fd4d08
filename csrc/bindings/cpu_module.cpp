// innerloop._cpu: unpack tensors, call the kernels without the GIL, translate the status.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <array>
#include <atomic>
#include <stdexcept>
#include <string>
#include <vector>

#include "bindings/regression.h"
#include "bindings/tensors.h"
#include "cpu/dispatch.h"
#include "cpu/parallel.h"

namespace py = pybind11;

namespace innerloop {
namespace {

std::atomic<int> strategy{static_cast<int>(Strategy::kAuto)};

/// Owns the description of a network; immutable.
class Model {
 public:
  Model(const std::vector<int64_t>& widths, const std::vector<int>& activations,
        const std::vector<double>& slopes, const std::vector<bool>& has_bias) {
    const size_t depth = activations.size();
    if (depth == 0 || widths.size() != depth + 1 || slopes.size() != depth ||
        has_bias.size() != depth) {
      throw std::invalid_argument(
          "Model: widths must have one entry more than activations, slopes "
          "and has_bias, which must have one entry per layer");
    }
    int leaf = 0;
    int64_t offset = 0;
    for (size_t l = 0; l < depth; ++l) {
      if (widths[l] < 1 || widths[l + 1] < 1 || widths[l] > kMaxWidth ||
          widths[l + 1] > kMaxWidth) {
        throw std::invalid_argument("Model: widths must lie in [1, 2^24]");
      }
      if (activations[l] < 0 || activations[l] > static_cast<int>(Activation::kGelu)) {
        throw std::invalid_argument("Model: unknown activation code");
      }
      Layer layer{};
      layer.in = widths[l];
      layer.out = widths[l + 1];
      layer.activation = static_cast<Activation>(activations[l]);
      layer.slope = slopes[l];
      layer.weight_leaf = leaf++;
      layer.weight_offset = offset;
      offset += layer.in * layer.out;
      layer.bias_leaf = has_bias[l] ? leaf++ : -1;
      layer.bias_offset = offset;
      if (has_bias[l]) offset += layer.out;
      layers_.push_back(layer);
    }
    net_ = {layers_.data(), static_cast<int>(depth), leaf, offset};
  }
  Model(const Model&) = delete;
  const Net& net() const { return net_; }

 private:
  static constexpr int64_t kMaxWidth = int64_t{1} << 24;
  std::vector<Layer> layers_;
  Net net_;
};

/// Addresses and task strides of one set of leaves: 0 if all tasks share a leaf.
struct LeafList {
  std::vector<void*> data;
  std::vector<int64_t> strides;

  LeafList(const Model& model, const py::sequence& tensors, TensorReader& reader) {
    const Net& net = model.net();
    if (tensors.size() != static_cast<size_t>(net.leaves)) {
      throw std::invalid_argument("one tensor per leaf expected");
    }
    data.reserve(tensors.size());
    strides.reserve(tensors.size());
    for (int l = 0; l < net.depth; ++l) {
      const Layer& layer = net.layers[l];
      add(tensors[static_cast<size_t>(layer.weight_leaf)], 2, layer.in * layer.out, reader);
      if (layer.bias_leaf >= 0) {
        add(tensors[static_cast<size_t>(layer.bias_leaf)], 1, layer.out, reader);
      }
    }
  }
  Leaves view() const { return {data.data(), strides.data()}; }

 private:
  void add(const py::object& tensor, int64_t dimensions, int64_t size, TensorReader& reader) {
    data.push_back(reader.address(tensor));
    strides.push_back(TensorReader::dimensions(tensor) > dimensions ? size : 0);
  }
};

Problem problem(const Model& model, int loss, double loss_parameter, int64_t tasks,
                const LeafList& params, int threads) {
  if (loss < 0 || loss > static_cast<int>(LossKind::kHuber)) {
    throw std::invalid_argument("unknown loss code");
  }
  if (tasks < 0) throw std::invalid_argument("the number of tasks must not be negative");
  return {&model.net(), static_cast<LossKind>(loss), loss_parameter, tasks, params.view(), threads};
}

/// A side is the tuple (rows, x, y, count, weight).
Side side(const py::tuple& s, TensorReader& reader) {
  if (s.size() != 5) throw std::invalid_argument("a side has five entries");
  return {s[0].cast<int64_t>(), reader.address(s[1]), reader.address(s[2]), reader.address(s[4]),
          static_cast<const int64_t*>(reader.address(s[3]))};
}

/// Rates are the tuple (tensor, task_stride, step_stride, leaf_stride, elementwise).
Rates rates(const py::tuple& r, TensorReader& reader) {
  if (r.size() != 5) throw std::invalid_argument("rates have five entries");
  return {reader.address(r[0]), r[1].cast<int64_t>(), r[2].cast<int64_t>(), r[3].cast<int64_t>(),
          r[4].cast<bool>()};
}

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
             const py::sequence& params, py::handle x, py::handle out, int threads) {
  TensorReader reader;
  const LeafList leaves(model, params, reader);
  PredictCall call{problem(model, 0, 0, tasks, leaves, threads), rows, reader.address(x),
                   reader.address(out)};
  dispatch(&Kernels::predict, is_float64, call, model);
}

void loss_and_grad(const Model& model, bool is_float64, int loss, double loss_parameter,
                   int64_t tasks, const py::sequence& params, const py::tuple& batch,
                   py::handle out_loss, py::handle out_grad, int threads) {
  TensorReader reader;
  const LeafList leaves(model, params, reader);
  LossAndGradCall call{problem(model, loss, loss_parameter, tasks, leaves, threads),
                       side(batch, reader), reader.address(out_loss), reader.address(out_grad)};
  dispatch(&Kernels::loss_and_grad, is_float64, call, model);
}

void hvp(const Model& model, bool is_float64, int loss, double loss_parameter, int64_t tasks,
         const py::sequence& params, const py::sequence& vector, const py::tuple& batch,
         py::handle out, int threads) {
  TensorReader reader;
  const LeafList leaves(model, params, reader), direction(model, vector, reader);
  HvpCall call{problem(model, loss, loss_parameter, tasks, leaves, threads), side(batch, reader),
               direction.view(), reader.address(out)};
  dispatch(&Kernels::hvp, is_float64, call, model);
}

/// One byte per leaf, as the kernels read it.
std::vector<uint8_t> adapt_flags(const Model& model, const py::tuple& adapt) {
  if (adapt.size() != static_cast<size_t>(model.net().leaves)) {
    throw std::invalid_argument("one adapt flag per leaf expected");
  }
  std::vector<uint8_t> flags;
  for (py::handle flag : adapt) flags.push_back(flag.ptr() == Py_True);
  return flags;
}

void adapt(const Model& model, bool is_float64, int loss, double loss_parameter, int64_t tasks,
           int64_t steps, const py::sequence& params, const py::tuple& adapts, const py::tuple& lr,
           const py::tuple& support, py::handle out, bool stepwise, py::handle out_support_loss,
           int threads) {
  TensorReader reader;
  const LeafList leaves(model, params, reader);
  const std::vector<uint8_t> flags = adapt_flags(model, adapts);
  MetaGradCall call{};
  call.problem = problem(model, loss, loss_parameter, tasks, leaves, threads);
  call.steps = steps;
  call.order = 1;
  call.adapt = flags.data();
  call.rates = rates(lr, reader);
  call.support = side(support, reader);
  call.out_support_loss = reader.address(out_support_loss);
  call.adapted = reader.address(out);
  call.adapted_stepwise = stepwise;
  dispatch(&Kernels::meta_grad, is_float64, call, model);
}

/// `grads` is one flat tensor, leaf after leaf, each as its parameter: shared or per task. None
/// computes the losses only.
void meta_grad(const Model& model, bool is_float64, int loss, double loss_parameter, int64_t tasks,
               int64_t steps, int order, const py::sequence& params, const py::tuple& adapts,
               const py::tuple& lr, const py::tuple& support, const py::tuple& query,
               py::handle task_weight, py::handle out_loss, py::handle out_support_loss,
               py::handle out_query_loss, py::handle grads, py::handle out_lr_grad, int threads) {
  TensorReader reader;
  const LeafList leaves(model, params, reader);
  const std::vector<uint8_t> flags = adapt_flags(model, adapts);
  MetaGradCall call{};
  call.problem = problem(model, loss, loss_parameter, tasks, leaves, threads);
  call.steps = steps;
  call.order = order;
  call.adapt = flags.data();
  call.rates = rates(lr, reader);
  call.support = side(support, reader);
  call.query = side(query, reader);
  call.task_weight = reader.address(task_weight);
  call.out_loss = reader.address(out_loss);
  call.out_support_loss = reader.address(out_support_loss);
  call.out_query_loss = reader.address(out_query_loss);
  std::vector<void*> grad_pointers;
  if (!grads.is_none()) {
    char* next = static_cast<char*>(reader.address(grads));
    const int64_t width = is_float64 ? 8 : 4;
    const auto leaf = [&](int64_t size) {
      const bool per_task = leaves.strides[grad_pointers.size()] != 0;
      grad_pointers.push_back(next);
      next += width * (per_task ? tasks * size : size);
    };
    for (int l = 0; l < model.net().depth; ++l) {
      const Layer& layer = model.net().layers[l];
      leaf(layer.in * layer.out);
      if (layer.bias_leaf >= 0) leaf(layer.out);
    }
    call.grads = grad_pointers.data();
    call.grad_strides = leaves.strides.data();
    call.out_rate_grad = reader.address(out_lr_grad);
  }
  const int64_t per_step = call.rates.elementwise   ? model.net().parameters
                           : call.rates.leaf_stride ? model.net().leaves
                                                    : 1;
  const int64_t set = per_step * (call.rates.step_stride ? steps : 1);
  call.rate_grad_size = call.rates.task_stride ? call.rates.task_stride * tasks : set;
  dispatch(&Kernels::meta_grad, is_float64, call, model);
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
  py::class_<Model>(m, "Model")
      .def(py::init<const std::vector<int64_t>&, const std::vector<int>&,
                    const std::vector<double>&, const std::vector<bool>&>(),
           py::arg("widths"), py::arg("activations"), py::arg("slopes"), py::arg("has_bias"));
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
