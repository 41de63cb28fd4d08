// The module of the operations on a device: unpack tensors, call without the GIL, translate
// errors. Built as innerloop._cuda over CUDA, and for tests over an emulation on the host.
#include <algorithm>
#include <iterator>
#include <optional>
#include <string>
#include <utility>

#include "bindings/arguments.h"
#include "bindings/regression.h"
#include "cuda/device.h"

namespace innerloop {

/// What the module tells of its backend; cuda_info.cpp, or the emulation's own.
void define_backend(py::module_& m);

namespace {

/// (device, stream, allocate, facts, allow_tf32). allocate(bytes) returns the address of memory on
/// the device that stays until the stream has passed the launches; without it the operation is only
/// scheduled, for a device with these facts (multiprocessors, shared memory per block, per
/// multiprocessor, most blocks in a cluster).
using Facts = std::tuple<int, int64_t, int64_t, int>;
using Place = std::tuple<int, int64_t, py::object, std::optional<Facts>, bool>;

FixedParts fixed_schedule;

/// The strategies' names, in the order of their numbers.
constexpr const char* kStrategies[] = {"auto",     "resident", "streamed",
                                       "low_rank", "cluster",  "tiled"};

const char* strategy_name(BlockStrategy strategy) {
  return kStrategies[static_cast<int>(strategy)];
}
BlockStrategy named_strategy(const std::string& name) {
  const auto found = std::find(std::begin(kStrategies), std::end(kStrategies), name);
  if (found == std::end(kStrategies)) {
    throw std::invalid_argument(
        "strategy must be auto, resident, streamed, low_rank, cluster or tiled (got " + name + ")");
  }
  return static_cast<BlockStrategy>(found - std::begin(kStrategies));
}

/// Runs one operation with memory that Python allocates. Returns its schedule if that is all that
/// is wanted.
class DeviceCall {
 public:
  explicit DeviceCall(const Place& place) : allocate_(std::get<2>(place)) {
    context_.device = std::get<0>(place);
    context_.stream = reinterpret_cast<void*>(std::get<1>(place));
    context_.fixed = fixed_schedule;
    context_.allow_tf32 = std::get<4>(place);
    context_.only_schedules = allocate_.is_none();
    context_.schedule = &schedule_;
    context_.owner = this;
    context_.allocate = [](void* self, int64_t bytes) {
      const py::gil_scoped_acquire acquire;
      return reinterpret_cast<void*>(
          static_cast<DeviceCall*>(self)->allocate_(bytes).cast<int64_t>());
    };
    if (const auto& facts = std::get<3>(place)) {
      context_.facts = {std::get<0>(*facts), std::get<1>(*facts), std::get<2>(*facts),
                        std::get<3>(*facts)};
    }
  }

  template <class Call>
  py::object run(const char* (*BlockKernels::*entry)(const Call&, const BlockContext&),
                 bool is_float64, const Call& call) {
    std::string error;
    {
      const py::gil_scoped_release release;
      error = launch((block_kernels(is_float64).*entry), call);
    }
    if (!error.empty()) throw std::runtime_error(error);
    return context_.only_schedules ? py::object(described()) : py::none();
  }

 private:
  template <class Call>
  std::string launch(const char* (*entry)(const Call&, const BlockContext&), const Call& call) {
    const char* error = nullptr;
    if (context_.only_schedules) {
      error = entry(call, context_);
    } else {
      const DeviceGuard guard(context_.device);
      error = guard.error();
      if (!error) error = device_facts(context_.device, &context_.facts);
      if (!error) error = entry(call, context_);
    }
    return error ? error : "";
  }
  py::dict described() const {
    py::dict d;
    d["strategy"] = strategy_name(schedule_.strategy);
    d["tasks_per_block"] = schedule_.tasks_per_block;
    d["threads"] = schedule_.threads;
    d["cluster"] = schedule_.cluster;
    d["blocks"] = schedule_.blocks * schedule_.cluster;
    d["tile_rows"] = schedule_.tile_rows;
    d["far_steps"] = schedule_.far_steps;
    d["in_shared"] = schedule_.in_shared;
    d["one_product"] = schedule_.one_product;
    d["workspace_bytes"] = schedule_.workspace_bytes;
    d["shared_bytes"] = schedule_.shared_bytes;
    d["scratch_bytes"] = schedule_.scratch_bytes;
    d["cycles"] = schedule_.cycles;
    return d;
  }

  const py::object& allocate_;
  BlockContext context_;
  Schedule schedule_;
};

/// Whether an operation runs; without memory to allocate it is only scheduled.
bool runs(const Place& place) { return !std::get<2>(place).is_none(); }

py::object predict(const Model& model, bool is_float64, int64_t tasks, int64_t rows,
                   const py::sequence& params, py::handle x, py::handle out, const Place& place) {
  const Extent extent(model, is_float64, 0, tasks);
  TensorReader reader(runs(place));
  const LeafList leaves("params", extent, params, reader);
  const auto n = static_cast<uint64_t>(rows);
  const PredictCall call{problem(model, 0, 0, tasks, leaves, 1), rows,
                         reader.address(x, extent.x(n), {"x"}),
                         reader.address(out, extent.outputs(n), {"out"})};
  return DeviceCall(place).run(&BlockKernels::predict, is_float64, call);
}

py::object loss_and_grad(const Model& model, bool is_float64, int loss, double loss_parameter,
                         int64_t tasks, const py::sequence& params, const py::tuple& batch,
                         py::handle out_loss, py::handle out_grad, const Place& place) {
  const Extent extent(model, is_float64, loss, tasks);
  TensorReader reader(runs(place));
  const LeafList leaves("params", extent, params, reader);
  const LossAndGradCall call{
      problem(model, loss, loss_parameter, tasks, leaves, 1), side("batch", batch, extent, reader),
      reader.address(out_loss, extent.per_task(1), {"out_loss"}),
      reader.address(out_grad, extent.per_task(extent.parameters()), {"out_grad"})};
  return DeviceCall(place).run(&BlockKernels::loss_and_grad, is_float64, call);
}

py::object hvp(const Model& model, bool is_float64, int loss, double loss_parameter, int64_t tasks,
               const py::sequence& params, const py::sequence& vector, const py::tuple& batch,
               py::handle out, const Place& place) {
  const Extent extent(model, is_float64, loss, tasks);
  TensorReader reader(runs(place));
  const LeafList leaves("params", extent, params, reader);
  const LeafList direction("vector", extent, vector, reader);
  const HvpCall call{problem(model, loss, loss_parameter, tasks, leaves, 1),
                     side("batch", batch, extent, reader), direction.view(),
                     reader.address(out, extent.per_task(extent.parameters()), {"out"})};
  return DeviceCall(place).run(&BlockKernels::hvp, is_float64, call);
}

py::object adapt(const Model& model, bool is_float64, int loss, double loss_parameter,
                 int64_t tasks, int64_t steps, const py::sequence& params, const py::tuple& adapts,
                 const py::tuple& lr, const py::tuple& support, py::handle out, bool stepwise,
                 py::handle out_support_loss, const Place& place) {
  UnrollArguments arguments(model, is_float64, loss, loss_parameter, tasks, steps, params, adapts,
                            lr, support, out_support_loss, 1, runs(place));
  arguments.adapt(out, stepwise);
  return DeviceCall(place).run(&BlockKernels::meta_grad, is_float64, arguments.call());
}

py::object meta_grad(const Model& model, bool is_float64, int loss, double loss_parameter,
                     int64_t tasks, int64_t steps, int order, const py::sequence& params,
                     const py::tuple& adapts, const py::tuple& lr, const py::tuple& support,
                     const py::tuple& query, py::handle task_weight, py::handle out_loss,
                     py::handle out_support_loss, py::handle out_query_loss, py::handle grads,
                     py::handle out_lr_grad, const Place& place) {
  UnrollArguments arguments(model, is_float64, loss, loss_parameter, tasks, steps, params, adapts,
                            lr, support, out_support_loss, 1, runs(place));
  arguments.query(query, task_weight, out_loss, out_query_loss);
  arguments.differentiate(order, grads, out_lr_grad);
  return DeviceCall(place).run(&BlockKernels::meta_grad, is_float64, arguments.call());
}

/// What later calls must use; "auto", 0 and None leave it to the model of cost. Returns what was
/// fixed before.
py::tuple fix_schedule(const std::string& strategy, int64_t tasks_per_block, int threads,
                       int cluster, std::optional<bool> one_product) {
  FixedParts fixed;
  fixed.strategy = named_strategy(strategy);
  if (tasks_per_block < 0 || tasks_per_block > kMaxGroup) {
    throw std::invalid_argument("tasks_per_block must lie in [1, " + std::to_string(kMaxGroup) +
                                "], or be 0 (got " + std::to_string(tasks_per_block) + ")");
  }
  if (threads < 0 || threads > kMaxThreads) {
    throw std::invalid_argument("threads must lie in [1, " + std::to_string(kMaxThreads) +
                                "], or be 0 (got " + std::to_string(threads) + ")");
  }
  if (cluster < 0 || cluster > kMostInCluster) {
    throw std::invalid_argument("cluster must lie in [1, " + std::to_string(kMostInCluster) +
                                "], or be 0 (got " + std::to_string(cluster) + ")");
  }
  fixed.tasks_per_block = tasks_per_block;
  fixed.threads = threads;
  fixed.cluster = cluster;
  fixed.one_product = one_product;
  const FixedParts before = std::exchange(fixed_schedule, fixed);
  return py::make_tuple(strategy_name(before.strategy), before.tasks_per_block, before.threads,
                        before.cluster, before.one_product);
}

}  // namespace

PYBIND11_MODULE(INNERLOOP_MODULE, m) {
  m.doc() = "Fused operations on a device, unchecked. Use innerloop's Python API.";
  define_model(m);
  m.def("predict", &predict);
  m.def("loss_and_grad", &loss_and_grad);
  m.def("hvp", &hvp);
  m.def("adapt", &adapt);
  m.def("meta_grad", &meta_grad);
  m.def("fix_schedule", &fix_schedule, py::arg("strategy"), py::arg("tasks_per_block"),
        py::arg("threads"), py::arg("cluster") = 0, py::arg("one_product") = py::none());
  define_device_regression(m);
  define_backend(m);
}

}  // namespace innerloop
