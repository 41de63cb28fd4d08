// From Python's tensors to the calls of core/kernels.h: what the extension modules share. No
// mathematics, no memory of their own.
#pragma once

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <array>
#include <stdexcept>
#include <tuple>
#include <utility>
#include <vector>

#include "bindings/tensors.h"
#include "core/kernels.h"
#include "core/layers/all.h"
#include "core/objectives/all.h"

namespace innerloop {

/// What a call fixes besides its tensors: a network, the objective of each side, the inner loop.
/// The native twin of innerloop._plan.Plan; immutable.
class NativePlan {
 public:
  using Constants = std::pair<int, std::vector<double>>;  // of an objective: its code, and those
  /// A layer: its kind's code and constant, sizes, the activation's code and slope, weight, bias.
  using LayerFacts = std::tuple<std::pair<int, double>, std::pair<int64_t, int64_t>,
                                std::pair<int, double>, bool, bool>;

  NativePlan(const std::vector<LayerFacts>& layers, int64_t free, Constants support,
             Constants query, int64_t steps, int order, const std::array<double, 4>& numbers,
             const std::vector<bool>& adapts, bool stepwise, std::pair<bool, bool> rate_axes,
             const std::string& rate_unit)
      : order(order),
        steps(steps),
        solver{numbers[0], numbers[1], numbers[2], numbers[3]},
        stepwise(stepwise),
        support_(std::move(support)),
        query_(std::move(query)),
        adapts_(adapts.begin(), adapts.end()) {
    add_layers(layers, free);
    for (const Constants* each : {&support_, &query_}) check_objective(*each);
    if (steps < 0) throw std::invalid_argument("the number of steps must not be negative");
    if (adapts_.empty()) adapts_.resize(static_cast<size_t>(net_.leaves), 0);
    if (adapts_.size() != static_cast<size_t>(net_.leaves)) {
      throw std::invalid_argument("one adapt flag per leaf expected");
    }
    const int64_t width = rate_unit == "element" ? net_.parameters
                          : rate_unit == "leaf"  ? net_.leaves
                                                 : 1;
    const auto [per_task, per_step] = rate_axes;
    rate_set = (per_step ? steps : 1) * width;
    rates = {nullptr, per_task ? rate_set : 0, per_step ? width : 0, rate_unit == "leaf",
             rate_unit == "element"};
  }
  NativePlan(const NativePlan&) = delete;

  const Net& net() const { return net_; }
  const uint8_t* adapts() const { return adapts_.data(); }
  Objective support() const { return objective(support_); }
  Objective query() const { return objective(query_); }

  const int order;
  const int64_t steps;
  const Solver solver;
  const bool stepwise;
  Rates rates{};         // without their data
  int64_t rate_set = 0;  // numbers of one task's rates

 private:
  static constexpr int64_t kMaxWidth = int64_t{1} << 24;

  void add_layers(const std::vector<LayerFacts>& layers, int64_t free) {
    if (layers.empty()) throw std::invalid_argument("Plan: a network has at least one layer");
    int leaf = 0;
    int64_t offset = 0;
    for (const auto& [kind, sizes, activation, has_weight, has_bias] : layers) {
      Layer layer{};
      layer.kind = static_cast<LayerKind>(kind.first);
      layer.constant = kind.second;
      layer.in = sizes.first;
      layer.out = sizes.second;
      layer.activation = static_cast<Activation>(activation.first);
      layer.slope = activation.second;
      if (kind.first < 0 || kind.first > static_cast<int>(kLastLayerKind)) {
        throw std::invalid_argument("Plan: unknown kind of layer");
      }
      if (layer.in < 1 || layer.out < 1 || layer.in > kMaxWidth || layer.out > kMaxWidth ||
          (!layers_.empty() && layers_.back().out != layer.in)) {
        throw std::invalid_argument("Plan: widths must lie in [1, 2^24], and chain");
      }
      if (activation.first < 0 || activation.first > static_cast<int>(Activation::kGelu)) {
        throw std::invalid_argument("Plan: unknown activation code");
      }
      const bool affine = layer.kind == LayerKind::kAffine;
      if (affine ? !has_weight : layer.in != layer.out) {
        throw std::invalid_argument("Plan: a layer does not fit its kind");
      }
      layer.weight_leaf = has_weight ? leaf++ : -1;
      layer.weight_offset = offset;
      if (has_weight) offset += layer.weight_size();
      layer.bias_leaf = has_bias ? leaf++ : -1;
      layer.bias_offset = offset;
      if (has_bias) offset += layer.out;
      layers_.push_back(layer);
    }
    if (free < 0 || free > kMaxWidth) throw std::invalid_argument("Plan: bad size of a free leaf");
    net_ = {layers_.data(), static_cast<int>(layers_.size()), leaf + (free > 0), offset + free,
            free};
  }
  void check_objective(const Constants& given) const {
    if (given.first < 0 || given.first > static_cast<int>(kLastObjective)) {
      throw std::invalid_argument("Plan: unknown objective code");
    }
    if (target_layout(objective(given), net_.last().out).has_free != (net_.free > 0)) {
      throw std::invalid_argument("Plan: objective and network do not agree on a free leaf");
    }
  }
  static Objective objective(const Constants& given) {
    return {static_cast<ObjectiveKind>(given.first), given.second.data(),
            static_cast<int>(given.second.size())};
  }

  Constants support_, query_;
  std::vector<Layer> layers_;
  std::vector<uint8_t> adapts_;
  Net net_{};
};

/// A tensor's size along an axis.
inline int64_t size_of(py::handle tensor, int axis) { return TensorView(tensor).size(axis); }

/// The sizes that the tensors of one call share, read from its first rows x [T, N, D].
class Extent {
 public:
  Extent(const NativePlan& plan, py::handle x) : net_(plan.net()) {
    const TensorView view(x);
    width_ = view.itemsize();
    tasks_ = static_cast<uint64_t>(view.size(0));
  }
  const Net& net() const { return net_; }
  bool is_float64() const { return width_ == 8; }
  int64_t tasks() const { return static_cast<int64_t>(tasks_); }
  uint64_t numbers(uint64_t count) const { return width_ * count; }
  uint64_t per_task(uint64_t count) const { return numbers(tasks_ * count); }
  uint64_t counts() const { return sizeof(int64_t) * tasks_; }
  uint64_t x(uint64_t rows) const { return per_task(rows * inputs()); }
  uint64_t outputs(uint64_t rows) const {
    return per_task(rows * static_cast<uint64_t>(net_.last().out));
  }
  uint64_t y(uint64_t rows, const TargetLayout& targets) const {
    return targets.has_classes ? counts() * rows
                               : per_task(rows * static_cast<uint64_t>(targets.columns));
  }
  uint64_t parameters() const { return static_cast<uint64_t>(net_.parameters); }

 private:
  uint64_t inputs() const { return static_cast<uint64_t>(net_.first().in); }

  const Net& net_;
  uint64_t width_, tasks_;
};

/// f(leaf, dimensions, size) for every leaf, in order.
template <class F>
inline void each_leaf(const Net& net, F f) {
  for (int l = 0; l < net.depth; ++l) {
    const Layer& layer = net.layers[l];
    const int64_t dimensions = layer.kind == LayerKind::kAffine ? 2 : 1;
    if (layer.weight_leaf >= 0) f(layer.weight_leaf, dimensions, layer.weight_size());
    if (layer.bias_leaf >= 0) f(layer.bias_leaf, int64_t{1}, layer.out);
  }
  if (net.free > 0) f(net.free_leaf(), int64_t{1}, net.free);
}

/// Addresses and task strides of one set of leaves: 0 if all tasks share a leaf.
struct LeafList {
  std::vector<void*> data;
  std::vector<int64_t> strides;

  LeafList(const char* name, const Extent& extent, const py::sequence& tensors,
           TensorReader& reader) {
    if (tensors.size() != static_cast<size_t>(extent.net().leaves)) {
      throw std::invalid_argument("one tensor per leaf expected");
    }
    data.reserve(tensors.size());
    strides.reserve(tensors.size());
    each_leaf(extent.net(), [&](int leaf, int64_t dimensions, int64_t size) {
      const py::object tensor = tensors[static_cast<size_t>(leaf)];
      const TensorView seen(tensor);
      const bool per_task = seen.dimensions() > dimensions;
      const auto count = static_cast<uint64_t>(size);
      data.push_back(reader.address(tensor, seen,
                                    per_task ? extent.per_task(count) : extent.numbers(count),
                                    {name, nullptr, leaf}));
      strides.push_back(per_task ? size : 0);
    });
  }
  Leaves view() const { return {data.data(), strides.data()}; }
};

/// A side is the tuple (x, y, count, weight).
inline py::handle rows_of(const py::tuple& side) {
  if (side.size() != 4) throw std::invalid_argument("a side has four entries");
  return PyTuple_GET_ITEM(side.ptr(), 0);
}
inline Side read_side(const char* name, const py::tuple& s, const Objective& objective,
                      const Extent& extent, TensorReader& reader) {
  const py::handle x = rows_of(s);
  const TensorView seen(x);
  const int64_t rows = seen.size(1);
  const auto n = static_cast<uint64_t>(rows);
  const TargetLayout targets = target_layout(objective, extent.net().last().out);
  const auto at = [&](Py_ssize_t i, uint64_t bytes, const char* what) {
    return reader.address(PyTuple_GET_ITEM(s.ptr(), i), bytes, {name, what});
  };
  return {rows,
          reader.address(x, seen, extent.x(n), {name, "x"}),
          at(1, extent.y(n, targets), "y"),
          at(3, extent.per_task(n), "weight"),
          static_cast<const int64_t*>(at(2, extent.counts(), "count")),
          objective};
}

/// What every call of an operation is made of, alive as long as this object.
struct Arguments {
  Arguments(const NativePlan& plan, py::handle x, const py::sequence& params, int threads,
            bool reads)
      : extent(plan, x),
        reader(reads),
        leaves("params", extent, params, reader),
        problem{&plan.net(), extent.tasks(), leaves.view(), threads} {}
  Arguments(const Arguments&) = delete;

  const Extent extent;
  TensorReader reader;
  const LeafList leaves;
  const Problem problem;
};

/// The call of a product of each task's matrix with its vector.
class VectorArguments : public Arguments {
 public:
  VectorArguments(const NativePlan& plan, const py::sequence& params, const py::sequence& vector,
                  const py::tuple& batch, py::handle out, int threads, bool reads,
                  void* tape = nullptr)
      : Arguments(plan, rows_of(batch), params, threads, reads),
        direction_("vector", extent, vector, reader),
        call_{problem, read_side("batch", batch, plan.support(), extent, reader), direction_.view(),
              reader.result(out, extent.per_task(extent.parameters()), {"out"}), tape} {}
  const HvpCall& call() const { return call_; }

 private:
  const LeafList direction_;
  const HvpCall call_;
};

/// The call of an unrolled inner loop, with the arrays that it refers to.
class UnrollArguments : public Arguments {
 public:
  UnrollArguments(const NativePlan& plan, const py::sequence& params, py::handle rates,
                  const py::tuple& support, py::handle out_support_loss, int threads,
                  bool reads = true)
      : Arguments(plan, rows_of(support), params, threads, reads), plan_(plan) {
    call_.problem = problem;
    call_.steps = plan.steps;
    call_.order = 1;
    call_.solver = plan.solver;
    call_.adapt = plan.adapts();
    call_.rates = plan.rates;
    call_.rate_grad_size = plan.rate_set * (plan.rates.task_stride ? problem.tasks : 1);
    rate_bytes_ = extent.numbers(static_cast<uint64_t>(call_.rate_grad_size));
    call_.rates.data = reader.address(rates, rate_bytes_, {"inner_lr"});
    call_.support = read_side("support", support, plan.support(), extent, reader);
    call_.out_support_loss =
        reader.result(out_support_loss, extent.per_task(step_count()), {"out_support_loss"});
  }
  const MetaGradCall& call() const { return call_; }

  void adapt(py::handle out) {
    const uint64_t sets = plan_.stepwise ? step_count() + 1 : 1;
    call_.adapted = reader.result(out, extent.per_task(sets * extent.parameters()), {"out"});
    call_.adapted_stepwise = plan_.stepwise;
  }
  void query(const py::tuple& rows, py::handle task_weight, py::handle out_loss,
             py::handle out_query_loss) {
    call_.query = read_side("query", rows, plan_.query(), extent, reader);
    call_.task_weight = reader.address(task_weight, extent.per_task(1), {"task_weight"});
    call_.out_loss = reader.result(out_loss, extent.per_task(1), {"out_loss"});
    call_.out_query_loss =
        reader.result(out_query_loss, extent.per_task(step_count() + 1), {"out_query_loss"});
  }
  /// `grads` is one flat tensor, leaf after leaf, or a list with a tensor for each, all of them as
  /// their parameters: shared or per task. None computes the losses only.
  void differentiate(const py::object& grads, py::handle out_rate_grad) {
    call_.order = plan_.order;
    if (grads.is_none()) return;
    std::vector<uint64_t> sizes;
    uint64_t bytes = 0;
    each_leaf(extent.net(), [&](int leaf, int64_t, int64_t size) {
      const auto count = static_cast<uint64_t>(size);
      const bool per_task = leaves.strides[static_cast<size_t>(leaf)] != 0;
      sizes.push_back(per_task ? extent.per_task(count) : extent.numbers(count));
      bytes += sizes.back();
    });
    if (PyList_Check(grads.ptr())) {
      const py::list apart(grads);
      if (apart.size() != sizes.size()) throw std::invalid_argument("one gradient per leaf");
      for (size_t leaf = 0; leaf < sizes.size(); ++leaf) {
        const Argument what{"grads", nullptr, static_cast<int>(leaf)};
        grads_.push_back(reader.result(apart[leaf], sizes[leaf], what));
      }
    } else {
      char* place = static_cast<char*>(reader.result(grads, bytes, {"grads"}));
      for (const uint64_t size : sizes) {
        grads_.push_back(place);
        place += size;
      }
    }
    call_.grads = grads_.data();
    call_.grad_strides = leaves.strides.data();
    call_.out_rate_grad = reader.result(out_rate_grad, rate_bytes_, {"out_rate_grad"});
  }

 private:
  uint64_t step_count() const { return static_cast<uint64_t>(call_.steps); }

  const NativePlan& plan_;
  std::vector<void*> grads_;
  uint64_t rate_bytes_ = 0;
  MetaGradCall call_{};
};

/// Defines Plan in a module, for this module alone: several may be loaded.
inline void define_plan(py::module_& m) {
  py::class_<NativePlan>(m, "Plan", py::module_local())
      .def(py::init<const std::vector<NativePlan::LayerFacts>&, int64_t, NativePlan::Constants,
                    NativePlan::Constants, int64_t, int, const std::array<double, 4>&,
                    const std::vector<bool>&, bool, std::pair<bool, bool>, const std::string&>(),
           py::arg("layers"), py::arg("free"), py::arg("support"), py::arg("query"),
           py::arg("steps"), py::arg("order"), py::arg("solver"), py::arg("adapts"),
           py::arg("stepwise"), py::arg("rate_axes"), py::arg("rate_unit"));
}

}  // namespace innerloop
