// Schedules of earlier calls: choosing one takes longer than a call.
#pragma once

#include <map>
#include <mutex>
#include <vector>

#include "block/schedule.h"

namespace innerloop {

/// All that the schedule of an operation depends on.
class CallKey {
 public:
  CallKey(const Request& r, const DeviceFacts& device, const Cut& fixed) {
    const Net& net = *r.problem.net;
    for (int l = 0; l < net.depth; ++l) {
      const Layer& layer = net.layers[l];
      add(layer.in, layer.out, static_cast<int>(layer.activation), layer.bias_leaf);
    }
    for (int leaf = 0; leaf < net.leaves; ++leaf) {
      add(r.problem.params.task_stride[leaf] != 0, r.adapt && r.adapt[leaf]);
    }
    add(r.adapt != nullptr, net.free, r.problem.tasks);
    add(r.steps, r.order, r.support_rows, r.query_rows, r.wants_grad, r.allows_implicit);
    add(r.rate_grad_size, device.multiprocessors, device.shared_per_block);
    add(device.shared_per_multiprocessor, fixed.tasks_per_block, fixed.threads);
  }
  /// What the request leaves out: which arrays there are.
  void add_call(const PredictCall&) {}
  void add_call(const LossAndGradCall& call) {
    add_side(call.side);
    add(call.out_grad != nullptr);
  }
  void add_call(const HvpCall& call) { add_side(call.side); }
  void add_call(const MetaGradCall& call) {
    add_side(call.support);
    add_side(call.query);
    add(call.out_loss != nullptr);
    add(call.out_rate_grad != nullptr, call.rates.elementwise, call.solver.is_plain());
    add(call.solver.has_velocity(), call.solver.mixes());
  }
  bool operator<(const CallKey& other) const { return numbers_ < other.numbers_; }

 private:
  void add_side(const Side& side) { add(side.y != nullptr, static_cast<int>(side.objective.kind)); }
  template <class... T>
  void add(T... numbers) {
    (numbers_.push_back(static_cast<int64_t>(numbers)), ...);
  }

  std::vector<int64_t> numbers_;
};

/// Forgets all when there are some hundreds.
class ScheduleCache {
 public:
  bool find(const CallKey& key, Schedule* schedule) {
    const std::lock_guard<std::mutex> lock(mutex_);
    const auto found = known_.find(key);
    if (found == known_.end()) return false;
    *schedule = found->second;
    return true;
  }
  void add(const CallKey& key, const Schedule& schedule) {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (known_.size() >= kMost) known_.clear();
    known_[key] = schedule;
  }

 private:
  static constexpr size_t kMost = 256;
  std::mutex mutex_;
  std::map<CallKey, Schedule> known_;
};

}  // namespace innerloop
