// From Python's integers to the calls of core/kernels.h: what the extension modules share. No
// mathematics, no memory of their own.
#pragma once

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <array>
#include <stdexcept>
#include <tuple>
#include <vector>

#include "core/kernels.h"

namespace innerloop {

namespace py = pybind11;

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

inline const void* pointer(int64_t address) { return reinterpret_cast<const void*>(address); }
inline void* writable(int64_t address) { return reinterpret_cast<void*>(address); }

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

inline Problem problem(const Model& model, int loss, double loss_parameter, int64_t tasks,
                       const LeafList& params, int threads) {
  if (loss < 0 || loss > static_cast<int>(LossKind::kHuber)) {
    throw std::invalid_argument("unknown loss code");
  }
  if (tasks < 0) throw std::invalid_argument("the number of tasks must not be negative");
  return {&model.net(), static_cast<LossKind>(loss), loss_parameter, tasks, params.view(), threads};
}

using SideTuple = std::array<int64_t, 5>;  // rows, x, y, weight, count

inline Side side(const SideTuple& s) {
  return {s[0], pointer(s[1]), pointer(s[2]), pointer(s[3]),
          static_cast<const int64_t*>(pointer(s[4]))};
}

using RateTuple = std::tuple<int64_t, int64_t, int64_t, int64_t, bool>;

inline Rates rates(const RateTuple& r) {
  return {pointer(std::get<0>(r)), std::get<1>(r), std::get<2>(r), std::get<3>(r), std::get<4>(r)};
}

/// One byte per leaf, as the kernels read it.
inline std::vector<uint8_t> adapt_flags(const Model& model, const std::vector<bool>& adapt) {
  if (adapt.size() != static_cast<size_t>(model.net().leaves)) {
    throw std::invalid_argument("one adapt flag per leaf expected");
  }
  return {adapt.begin(), adapt.end()};
}

/// A MetaGradCall with the arrays that it refers to.
class UnrollArguments {
 public:
  UnrollArguments(const Model& model, int loss, double loss_parameter, int64_t tasks, int64_t steps,
                  const std::vector<int64_t>& params, const std::vector<int64_t>& strides,
                  const std::vector<bool>& adapts, const RateTuple& lr, const SideTuple& support,
                  int64_t out_support_loss, int threads)
      : leaves_(model, params, strides), flags_(adapt_flags(model, adapts)) {
    call_.problem = problem(model, loss, loss_parameter, tasks, leaves_, threads);
    call_.steps = steps;
    call_.order = 1;
    call_.adapt = flags_.data();
    call_.rates = rates(lr);
    call_.support = side(support);
    call_.out_support_loss = writable(out_support_loss);
  }
  UnrollArguments(const UnrollArguments&) = delete;
  const MetaGradCall& call() const { return call_; }

 protected:
  LeafList leaves_;
  std::vector<uint8_t> flags_;
  MetaGradCall call_{};
};

class AdaptArguments : public UnrollArguments {
 public:
  AdaptArguments(const Model& model, int loss, double loss_parameter, int64_t tasks, int64_t steps,
                 const std::vector<int64_t>& params, const std::vector<int64_t>& strides,
                 const std::vector<bool>& adapts, const RateTuple& lr, const SideTuple& support,
                 int64_t out, bool stepwise, int64_t out_support_loss, int threads)
      : UnrollArguments(model, loss, loss_parameter, tasks, steps, params, strides, adapts, lr,
                        support, out_support_loss, threads) {
    call_.adapted = writable(out);
    call_.adapted_stepwise = stepwise;
  }
};

class MetaGradArguments : public UnrollArguments {
 public:
  MetaGradArguments(const Model& model, int loss, double loss_parameter, int64_t tasks,
                    int64_t steps, int order, const std::vector<int64_t>& params,
                    const std::vector<int64_t>& strides, const std::vector<bool>& adapts,
                    const RateTuple& lr, const SideTuple& support, const SideTuple& query,
                    int64_t task_weight, int64_t out_loss, int64_t out_support_loss,
                    int64_t out_query_loss, const std::vector<int64_t>& grads,
                    const std::vector<int64_t>& grad_strides, int64_t out_lr_grad, int threads)
      : UnrollArguments(model, loss, loss_parameter, tasks, steps, params, strides, adapts, lr,
                        support, out_support_loss, threads),
        grad_strides_(grad_strides) {
    for (int64_t address : grads) grads_.push_back(writable(address));
    const size_t count = static_cast<size_t>(model.net().leaves);
    if (!grads.empty() && (grads.size() != count || grad_strides.size() != count)) {
      throw std::invalid_argument("one gradient address and one stride per leaf expected");
    }
    call_.order = order;
    call_.query = side(query);
    call_.task_weight = pointer(task_weight);
    call_.out_loss = writable(out_loss);
    call_.out_query_loss = writable(out_query_loss);
    call_.grads = grads.empty() ? nullptr : grads_.data();
    call_.grad_strides = grad_strides_.data();
    call_.out_rate_grad = grads.empty() ? nullptr : writable(out_lr_grad);
    const int64_t per_step = call_.rates.elementwise   ? model.net().parameters
                             : call_.rates.leaf_stride ? model.net().leaves
                                                       : 1;
    const int64_t set = per_step * (call_.rates.step_stride ? steps : 1);
    call_.rate_grad_size = call_.rates.task_stride ? call_.rates.task_stride * tasks : set;
  }

 private:
  std::vector<void*> grads_;
  std::vector<int64_t> grad_strides_;
};

/// Defines Model in a module, for this module alone: several may be loaded.
inline void define_model(py::module_& m) {
  py::class_<Model>(m, "Model", py::module_local())
      .def(py::init<const std::vector<int64_t>&, const std::vector<int>&,
                    const std::vector<double>&, const std::vector<bool>&>(),
           py::arg("widths"), py::arg("activations"), py::arg("slopes"), py::arg("has_bias"));
}

}  // namespace innerloop
