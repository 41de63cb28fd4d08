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

inline Problem problem(const Model& model, int loss, double loss_parameter, int64_t tasks,
                       const LeafList& params, int threads) {
  if (loss < 0 || loss > static_cast<int>(LossKind::kHuber)) {
    throw std::invalid_argument("unknown loss code");
  }
  if (tasks < 0) throw std::invalid_argument("the number of tasks must not be negative");
  return {&model.net(), static_cast<LossKind>(loss), loss_parameter, tasks, params.view(), threads};
}

/// A side is the tuple (rows, x, y, count, weight).
inline Side side(const py::tuple& s, TensorReader& reader) {
  if (s.size() != 5) throw std::invalid_argument("a side has five entries");
  return {s[0].cast<int64_t>(), reader.address(s[1]), reader.address(s[2]), reader.address(s[4]),
          static_cast<const int64_t*>(reader.address(s[3]))};
}

/// Rates are the tuple (tensor, task_stride, step_stride, leaf_stride, elementwise).
inline Rates rates(const py::tuple& r, TensorReader& reader) {
  if (r.size() != 5) throw std::invalid_argument("rates have five entries");
  return {reader.address(r[0]), r[1].cast<int64_t>(), r[2].cast<int64_t>(), r[3].cast<int64_t>(),
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
  UnrollArguments(const Model& model, int loss, double loss_parameter, int64_t tasks, int64_t steps,
                  const py::sequence& params, const py::tuple& adapts, const py::tuple& lr,
                  const py::tuple& support, py::handle out_support_loss, int threads)
      : net_(model.net()), leaves_(model, params, reader_), flags_(adapt_flags(model, adapts)) {
    call_.problem = problem(model, loss, loss_parameter, tasks, leaves_, threads);
    call_.steps = steps;
    call_.order = 1;
    call_.adapt = flags_.data();
    call_.rates = rates(lr, reader_);
    call_.support = side(support, reader_);
    call_.out_support_loss = reader_.address(out_support_loss);
  }
  UnrollArguments(const UnrollArguments&) = delete;
  const MetaGradCall& call() const { return call_; }

  void adapt(py::handle out, bool stepwise) {
    call_.adapted = reader_.address(out);
    call_.adapted_stepwise = stepwise;
  }
  void query(const py::tuple& rows, py::handle task_weight, py::handle out_loss,
             py::handle out_query_loss) {
    call_.query = side(rows, reader_);
    call_.task_weight = reader_.address(task_weight);
    call_.out_loss = reader_.address(out_loss);
    call_.out_query_loss = reader_.address(out_query_loss);
  }
  /// `grads` is one flat tensor, leaf after leaf, each as its parameter: shared or per task. None
  /// computes the losses only.
  void differentiate(int order, bool is_float64, py::handle grads, py::handle out_rate_grad) {
    call_.order = order;
    const int64_t tasks = call_.problem.tasks;
    if (!grads.is_none()) {
      char* next = static_cast<char*>(reader_.address(grads));
      const int64_t width = is_float64 ? 8 : 4;
      const auto leaf = [&](int64_t size) {
        const bool per_task = leaves_.strides[grads_.size()] != 0;
        grads_.push_back(next);
        next += width * (per_task ? tasks * size : size);
      };
      for (int l = 0; l < net_.depth; ++l) {
        const Layer& layer = net_.layers[l];
        leaf(layer.in * layer.out);
        if (layer.bias_leaf >= 0) leaf(layer.out);
      }
      call_.grads = grads_.data();
      call_.grad_strides = leaves_.strides.data();
      call_.out_rate_grad = reader_.address(out_rate_grad);
    }
    const int64_t per_step = call_.rates.elementwise   ? net_.parameters
                             : call_.rates.leaf_stride ? net_.leaves
                                                       : 1;
    const int64_t set = per_step * (call_.rates.step_stride ? call_.steps : 1);
    call_.rate_grad_size = call_.rates.task_stride ? call_.rates.task_stride * tasks : set;
  }

 private:
  const Net& net_;
  TensorReader reader_;
  LeafList leaves_;
  std::vector<uint8_t> flags_;
  std::vector<void*> grads_;
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
