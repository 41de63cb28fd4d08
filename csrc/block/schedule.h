// How an operation is cut into blocks: how many tasks and threads a block has, how many blocks
// there are. A small model of cost chooses among the possibilities, from shapes and from what the
// device has.
#pragma once

#include <algorithm>
#include <cstdint>

#include "core/request.h"

namespace innerloop {

struct DeviceFacts {
  int multiprocessors;
  int64_t shared_per_block;           // the most that a block may ask for
  int64_t shared_per_multiprocessor;  // of all blocks together
};

/// A way to cut an operation into blocks. As what the caller fixes: 0 leaves it to the model.
struct Cut {
  int64_t tasks_per_block = 0;
  int threads = 0;
};

/// What was chosen; no threads: nothing fits.
struct Schedule : Cut {
  int64_t groups = 0, blocks = 0;
  int64_t workspace_bytes = 0;  // of one block, in shared memory
  int64_t scratch_bytes = 0;    // in global memory, of the whole call
  double cycles = 0;            // the model's estimate
};

/// What the model knows of one task's work.
struct TaskWork {
  double multiply_adds;  // in products
  double width;          // results of a typical product: threads that find work
  double phases;         // barriers
};

constexpr int kThreadChoices[] = {32, 64, 128, 256};
constexpr int64_t kGroupChoices[] = {1, 2, 4, 8, 16, 32};
constexpr int kMaxThreads = 256;
constexpr int64_t kMaxGroup = 32;      // tasks of a block
constexpr int64_t kFrameBytes = 3072;  // static shared memory of a kernel, and the driver's own
constexpr double kPhaseCycles = 120;   // a barrier with the latency of one dependent chain
constexpr double kThreadCycles = 6;    // of a thread for one multiply-add
constexpr double kMultiplyAddsPerCycle = 32;  // of a multiprocessor, limited by shared memory
constexpr int64_t kRegisters = 65536;         // of a multiprocessor
constexpr int64_t kThreadRegisters = 224;     // of a kernel, at most: docs/cuda-resources.md
constexpr int64_t kBlocksPerMultiprocessor = 16;

/// Blocks that one multiprocessor holds at a time.
inline int64_t blocks_in_flight(const DeviceFacts& device, int threads, int64_t shared_bytes) {
  const int64_t by_threads = kRegisters / (kThreadRegisters * ((threads + 31) / 32 * 32));
  const int64_t by_memory = device.shared_per_multiprocessor / std::max<int64_t>(shared_bytes, 1);
  return std::max<int64_t>(1, std::min<int64_t>({by_threads, by_memory, kBlocksPerMultiprocessor}));
}

/// Cycles of the whole call: waves of groups, each as slow as the dependent chain of one group or
/// as the work of all blocks that share a multiprocessor, whichever is more.
inline double estimated_cycles(const TaskWork& work, const DeviceFacts& device, int64_t tasks,
                               const Cut& cut, int64_t in_flight) {
  const double group = static_cast<double>(cut.tasks_per_block);
  const double busy = std::min(static_cast<double>(cut.threads), group * work.width);
  const double macs = group * work.multiply_adds;
  const double alone = work.phases * kPhaseCycles + macs * kThreadCycles / busy;
  const int64_t groups = (tasks + cut.tasks_per_block - 1) / cut.tasks_per_block;
  const int64_t at_once = device.multiprocessors * in_flight;
  const double waves = static_cast<double>((groups + at_once - 1) / at_once);
  const int64_t together =
      std::min<int64_t>(in_flight, (groups + device.multiprocessors - 1) / device.multiprocessors);
  return waves * std::max(alone, static_cast<double>(together) * macs / kMultiplyAddsPerCycle);
}

/// f(cut) for every way that the caller leaves open, few tasks and threads first.
template <class F>
inline void each_cut(int64_t tasks, const Cut& fixed, F f) {
  const auto with_group = [&](int64_t group) {
    for (const int threads : kThreadChoices) {
      if (!fixed.threads) f(Cut{group, threads});
    }
    if (fixed.threads) f(Cut{group, fixed.threads});
  };
  for (const int64_t group : kGroupChoices) {
    if (!fixed.tasks_per_block && group <= std::max<int64_t>(tasks, 1)) with_group(group);
  }
  if (fixed.tasks_per_block) with_group(fixed.tasks_per_block);
}

/// The cut whose workspace, of `workspace_bytes(cut)`, fits a block, and that takes the fewest
/// estimated cycles; ties to fewer tasks and threads.
template <class WorkspaceBytes>
inline Schedule choose_schedule(const TaskWork& work, const DeviceFacts& device, int64_t tasks,
                                const Cut& fixed, WorkspaceBytes workspace_bytes) {
  Schedule best;
  each_cut(tasks, fixed, [&](const Cut& cut) {
    Schedule s;
    s.workspace_bytes = workspace_bytes(cut);
    if (s.workspace_bytes > device.shared_per_block - kFrameBytes) return;
    static_cast<Cut&>(s) = cut;
    const int64_t in_flight =
        blocks_in_flight(device, cut.threads, s.workspace_bytes + kFrameBytes);
    s.groups = (tasks + cut.tasks_per_block - 1) / cut.tasks_per_block;
    s.blocks = std::min(s.groups, device.multiprocessors * in_flight);
    s.cycles = estimated_cycles(work, device, tasks, cut, in_flight);
    if (!best.threads || s.cycles < best.cycles) best = s;
  });
  return best;
}

/// Counts of one task's work: `sweeps` passes over the layers with `support_rows` rows, and
/// `query_sweeps` with query_rows. An implicit first layer meets its initial weight once in each
/// direction and passes are products with Gram matrices.
inline TaskWork task_work(const Request& r, double sweeps, double query_sweeps, bool implicit) {
  const Net& net = *r.problem.net;
  const double support = static_cast<double>(r.support_rows);
  const double query = static_cast<double>(r.query_rows);
  const double passed = sweeps * support + query_sweeps * query;  // rows
  TaskWork work{};
  double widest = 1;
  for (int l = 0; l < net.depth; ++l) {
    const double in = static_cast<double>(net.layers[l].in);
    const double out = static_cast<double>(net.layers[l].out);
    widest = std::max(widest, out);
    work.multiply_adds += passed * out * (l == 0 && implicit ? support : in);
  }
  if (implicit) {
    const double in = static_cast<double>(net.first().in);
    const double out = static_cast<double>(net.first().out);
    const double rows = (r.steps > 0 ? support : 0) + query;
    work.multiply_adds += (support + query) * support * in;
    work.multiply_adds += (r.wants_grad ? 2 : 1) * rows * in * out;
  }
  work.width = std::max(1.0, std::max(support, query) * widest);
  work.phases = 2 * net.depth * (sweeps + query_sweeps) + 8;
  return work;
}

}  // namespace innerloop
