// From Python's tensors to the calls of core/kernels.h: what the extension modules share. No
// mathematics, no memory of their own.
#pragma once

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <stdexcept>
#include <vector>

#include "bindings/tensors.h"
#include "core/kernels.h"

namespace innerloop {

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

/// The sizes that the tensors of one call share.
class Extent {
 public:
  Extent(const Model& model, bool is_float64, int loss, int64_t tasks)
      : net_(model.net()),
        width_(is_float64 ? 8 : 4),
        tasks_(static_cast<uint64_t>(tasks)),
        has_classes_(loss == static_cast<int>(LossKind::kCrossEntropy)) {
    if (tasks < 0) throw std::invalid_argument("the number of tasks must not be negative");
  }
  const Net& net() const { return net_; }
  uint64_t numbers(uint64_t count) const { return width_ * count; }
  uint64_t per_task(uint64_t count) const { return numbers(tasks_ * count); }
  uint64_t counts() const { return sizeof(int64_t) * tasks_; }
  uint64_t x(uint64_t rows) const { return per_task(rows * inputs()); }
  uint64_t outputs(uint64_t rows) const {
    return per_task(rows * static_cast<uint64_t>(net_.last().out));
  }
  uint64_t y(uint64_t rows) const { return has_classes_ ? counts() * rows : outputs(rows); }
  uint64_t parameters() const { return static_cast<uint64_t>(net_.parameters); }

 private:
  uint64_t inputs() const { return static_cast<uint64_t>(net_.first().in); }

  const Net& net_;
  uint64_t width_, tasks_;
  bool has_classes_;
};

/// Addresses and task strides of one set of leaves: 0 if all tasks share a leaf.
struct LeafList {
  std::vector<void*> data;
  std::vector<int64_t> strides;

  LeafList(const char* name, const Extent& extent, const py::sequence& tensors,
           TensorReader& reader) {
    const Net& net = extent.net();
    if (tensors.size() != static_cast<size_t>(net.leaves)) {
      throw std::invalid_argument("one tensor per leaf expected");
    }
    data.reserve(tensors.size());
    strides.reserve(tensors.size());
    const auto add = [&](int leaf, int64_t dimensions, int64_t size) {
      const py::object tensor = tensors[static_cast<size_t>(leaf)];
      const bool per_task = TensorReader::dimensions(tensor) > dimensions;
      const auto count = static_cast<uint64_t>(size);
      data.push_back(reader.address(tensor,
                                    per_task ? extent.per_task(count) : extent.numbers(count),
                                    {name, nullptr, leaf}));
      strides.push_back(per_task ? size : 0);
    };
    for (int l = 0; l < net.depth; ++l) {
      const Layer& layer = net.layers[l];
      add(layer.weight_leaf, 2, layer.in * layer.out);
      if (layer.bias_leaf >= 0) add(layer.bias_leaf, 1, layer.out);
    }
  }
  Leaves view() const { return {data.data(), strides.data()}; }
};

inline Problem problem(const Model& model, int loss, double loss_parameter, int64_t tasks,
                       const LeafList& params, int threads) {
  if (loss < 0 || loss > static_cast<int>(LossKind::kHuber)) {
    throw std::invalid_argument("unknown loss code");
  }
  return {&model.net(), static_cast<LossKind>(loss), loss_parameter, tasks, params.view(), threads};
}

/// A side is the tuple (rows, x, y, count, weight).
inline Side side(const char* name, const py::tuple& s, const Extent& extent, TensorReader& reader) {
  if (s.size() != 5) throw std::invalid_argument("a side has five entries");
  const auto rows = s[0].cast<int64_t>();
  if (rows < 0) throw std::invalid_argument("the number of rows must not be negative");
  const auto n = static_cast<uint64_t>(rows);
  return {rows, reader.address(s[1], extent.x(n), {name, "x"}),
          reader.address(s[2], extent.y(n), {name, "y"}),
          reader.address(s[4], extent.per_task(n), {name, "weight"}),
          static_cast<const int64_t*>(reader.address(s[3], extent.counts(), {name, "count"}))};
}

/// Rates are the tuple (tensor, task_stride, step_stride, leaf_stride, elementwise).
inline Rates rates(const py::tuple& r) {
  if (r.size() != 5) throw std::invalid_argument("rates have five entries");
  return {nullptr, r[1].cast<int64_t>(), r[2].cast<int64_t>(), r[3].cast<int64_t>(),
          r[4].cast<bool>()};
}

/// One byte per leaf, as the kernels read it.
inline std::vector<uint8_t> adapt_flags(const Model& model, const py::tuple& adapt) {
  if (adapt.size() != static_cast<size_t>(model.net().leaves)) {
    throw std::invalid_argument("one adapt flag per leaf expected");
  }
  std::vector<uint8_t> flags;
  for (py::handle flag : adapt) flags.push_back(flag.ptr() == Py_True);
  return flags;
}

/// The call of an unrolled inner loop, with the arrays that it refers to.
class UnrollArguments {
 public:
  UnrollArguments(const Model& model, bool is_float64, int loss, double loss_parameter,
                  int64_t tasks, int64_t steps, const py::sequence& params, const py::tuple& adapts,
                  const py::tuple& lr, const py::tuple& support, py::handle out_support_loss,
                  int threads, bool reads = true)
      : extent_(model, is_float64, loss, tasks),
        reader_(reads),
        leaves_("params", extent_, params, reader_),
        flags_(adapt_flags(model, adapts)) {
    if (steps < 0) throw std::invalid_argument("the number of steps must not be negative");
    call_.problem = problem(model, loss, loss_parameter, tasks, leaves_, threads);
    call_.steps = steps;
    call_.order = 1;
    call_.adapt = flags_.data();
    call_.rates = rates(lr);
    call_.rate_grad_size = rate_count(call_);
    rate_bytes_ = extent_.numbers(static_cast<uint64_t>(call_.rate_grad_size));
    call_.rates.data = reader_.address(lr[0], rate_bytes_, {"inner_lr"});
    call_.support = side("support", support, extent_, reader_);
    call_.out_support_loss =
        reader_.address(out_support_loss, extent_.per_task(step_count()), {"out_support_loss"});
  }
  UnrollArguments(const UnrollArguments&) = delete;
  const MetaGradCall& call() const { return call_; }

  void adapt(py::handle out, bool stepwise) {
    const uint64_t sets = stepwise ? step_count() + 1 : 1;
    call_.adapted = reader_.address(out, extent_.per_task(sets * extent_.parameters()), {"out"});
    call_.adapted_stepwise = stepwise;
  }
  void query(const py::tuple& rows, py::handle task_weight, py::handle out_loss,
             py::handle out_query_loss) {
    call_.query = side("query", rows, extent_, reader_);
    call_.task_weight = reader_.address(task_weight, extent_.per_task(1), {"task_weight"});
    call_.out_loss = reader_.address(out_loss, extent_.per_task(1), {"out_loss"});
    call_.out_query_loss =
        reader_.address(out_query_loss, extent_.per_task(step_count() + 1), {"out_query_loss"});
  }
  /// `grads` is one flat tensor, leaf after leaf, each as its parameter: shared or per task. None
  /// computes the losses only.
  void differentiate(int order, py::handle grads, py::handle out_rate_grad) {
    call_.order = order;
    if (grads.is_none()) return;
    const Net& net = extent_.net();
    std::vector<uint64_t> starts;
    uint64_t bytes = 0;
    const auto leaf = [&](int64_t size) {
      const auto count = static_cast<uint64_t>(size);
      const bool per_task = leaves_.strides[starts.size()] != 0;
      starts.push_back(bytes);
      bytes += per_task ? extent_.per_task(count) : extent_.numbers(count);
    };
    for (int l = 0; l < net.depth; ++l) {
      const Layer& layer = net.layers[l];
      leaf(layer.in * layer.out);
      if (layer.bias_leaf >= 0) leaf(layer.out);
    }
    char* const first = static_cast<char*>(reader_.address(grads, bytes, {"grads"}));
    for (uint64_t start : starts) grads_.push_back(first + start);
    call_.grads = grads_.data();
    call_.grad_strides = leaves_.strides.data();
    call_.out_rate_grad = reader_.address(out_rate_grad, rate_bytes_, {"out_lr_grad"});
  }

 private:
  uint64_t step_count() const { return static_cast<uint64_t>(call_.steps); }
  /// How many numbers the rates are, by their layout.
  int64_t rate_count(const MetaGradCall& call) const {
    const Rates& r = call.rates;
    if (r.task_stride) return r.task_stride * call.problem.tasks;
    const Net& net = extent_.net();
    const int64_t per_step = r.elementwise ? net.parameters : r.leaf_stride ? net.leaves : 1;
    return per_step * (r.step_stride ? call.steps : 1);
  }

  const Extent extent_;
  TensorReader reader_;
  LeafList leaves_;
  std::vector<uint8_t> flags_;
  std::vector<void*> grads_;
  uint64_t rate_bytes_ = 0;
  MetaGradCall call_{};
};

/// Defines Model in a module, for this module alone: several may be loaded.
inline void define_model(py::module_& m) {
  py::class_<Model>(m, "Model", py::module_local())
      .def(py::init<const std::vector<int64_t>&, const std::vector<int>&,
                    const std::vector<double>&, const std::vector<bool>&>(),
           py::arg("widths"), py::arg("activations"), py::arg("slopes"), py::arg("has_bias"));
}

}  // namespace innerloop
