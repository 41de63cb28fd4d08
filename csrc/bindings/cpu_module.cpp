// innerloop._cpu: unpack integers, call the kernels without the GIL, translate the status.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <array>
#include <atomic>
#include <stdexcept>
#include <string>
#include <vector>

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

const void* pointer(int64_t address) { return reinterpret_cast<const void*>(address); }
void* writable(int64_t address) { return reinterpret_cast<void*>(address); }

/// Addresses and strides of one set of leaves, kept alive for the call.
struct LeafList {
  std::vector<const void*> data;
  std::vector<int64_t> strides;

  LeafList(const Model& model, const std::vector<int64_t>& addresses,
           const std::vector<int64_t>& task_strides)
      : strides(task_strides) {
    const size_t leaves = static_cast<size_t>(model.net().leaves);
    if (addresses.size() != leaves || task_strides.size() != leaves) {
      throw std::invalid_argument("one address and one stride per leaf expected");
    }
    for (int64_t address : addresses) data.push_back(pointer(address));
  }
  Leaves view() const { return {data.data(), strides.data()}; }
};

Problem problem(const Model& model, int loss, double loss_parameter, int64_t tasks,
                const LeafList& params, int threads) {
  if (loss < 0 || loss > static_cast<int>(LossKind::kHuber)) {
    throw std::invalid_argument("unknown loss code");
  }
  if (tasks < 0) throw std::invalid_argument("the number of tasks must not be negative");
  return {&model.net(), static_cast<LossKind>(loss), loss_parameter, tasks, params.view(), threads};
}

using SideTuple = std::array<int64_t, 5>;  // rows, x, y, weight, count

Side side(const SideTuple& s) {
  return {s[0], pointer(s[1]), pointer(s[2]), pointer(s[3]),
          static_cast<const int64_t*>(pointer(s[4]))};
}

using RateTuple = std::tuple<int64_t, int64_t, int64_t, int64_t, bool>;

Rates rates(const RateTuple& r) {
  return {pointer(std::get<0>(r)), std::get<1>(r), std::get<2>(r), std::get<3>(r), std::get<4>(r)};
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

/// One byte per leaf, as the kernels read it.
std::vector<uint8_t> adapt_flags(const Model& model, const std::vector<bool>& adapt) {
  if (adapt.size() != static_cast<size_t>(model.net().leaves)) {
    throw std::invalid_argument("one adapt flag per leaf expected");
  }
  return {adapt.begin(), adapt.end()};
}

void adapt(const Model& model, bool is_float64, int loss, double loss_parameter, int64_t tasks,
           int64_t steps, const std::vector<int64_t>& params, const std::vector<int64_t>& strides,
           const std::vector<bool>& adapts, const RateTuple& lr, const SideTuple& support,
           int64_t out, bool stepwise, int64_t out_support_loss, int threads) {
  const LeafList leaves(model, params, strides);
  const std::vector<uint8_t> flags = adapt_flags(model, adapts);
  MetaGradCall call{};
  call.problem = problem(model, loss, loss_parameter, tasks, leaves, threads);
  call.steps = steps;
  call.order = 1;
  call.adapt = flags.data();
  call.rates = rates(lr);
  call.support = side(support);
  call.out_support_loss = writable(out_support_loss);
  call.adapted = writable(out);
  call.adapted_stepwise = stepwise;
  dispatch(&Kernels::meta_grad, is_float64, call, model);
}

void meta_grad(const Model& model, bool is_float64, int loss, double loss_parameter, int64_t tasks,
               int64_t steps, int order, const std::vector<int64_t>& params,
               const std::vector<int64_t>& strides, const std::vector<bool>& adapts,
               const RateTuple& lr, const SideTuple& support, const SideTuple& query,
               int64_t task_weight, int64_t out_loss, int64_t out_support_loss,
               int64_t out_query_loss, const std::vector<int64_t>& grads,
               const std::vector<int64_t>& grad_strides, int64_t out_lr_grad, int threads) {
  const LeafList leaves(model, params, strides);
  const std::vector<uint8_t> flags = adapt_flags(model, adapts);
  std::vector<void*> grad_pointers;
  for (int64_t address : grads) grad_pointers.push_back(writable(address));
  const size_t count = static_cast<size_t>(model.net().leaves);
  if (!grads.empty() && (grads.size() != count || grad_strides.size() != count)) {
    throw std::invalid_argument("one gradient address and one stride per leaf expected");
  }
  MetaGradCall call{};
  call.problem = problem(model, loss, loss_parameter, tasks, leaves, threads);
  call.steps = steps;
  call.order = order;
  call.adapt = flags.data();
  call.rates = rates(lr);
  call.support = side(support);
  call.query = side(query);
  call.task_weight = pointer(task_weight);
  call.out_loss = writable(out_loss);
  call.out_support_loss = writable(out_support_loss);
  call.out_query_loss = writable(out_query_loss);
  call.grads = grads.empty() ? nullptr : grad_pointers.data();
  call.grad_strides = grad_strides.data();
  call.out_rate_grad = grads.empty() ? nullptr : writable(out_lr_grad);
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
  m.doc() =
      "Fused operations for batches of tasks, over raw addresses. Use innerloop's Python API.";
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
  m.def("simd_levels", &simd_levels);
  m.def("simd_level", &simd_level);
  m.def("set_simd_level", &set_simd_level);
  m.def("set_strategy", &set_strategy);
  m.def("build_info", &build_info);
  m.def("workspace_bytes", &workspace_bytes);
  m.def("release_workspace", &release_workspaces);
}

}  // namespace innerloop
