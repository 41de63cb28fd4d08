// How an operation is cut into blocks: which strategy, how many tasks and threads a block has, how
// many blocks there are. A small model of cost chooses among the possibilities, from shapes and
// from what the device has.
#pragma once

#include <algorithm>
#include <cstdint>
#include <optional>

#include "core/request.h"

namespace innerloop {

/// resident: a block's whole workspace lies in shared memory; streamed: in global memory; low-rank:
/// per-task weights are kept as factors, in shared memory if they fit, sums over tasks apart from
/// them in global memory.
enum class BlockStrategy : int { kAuto = 0, kResident = 1, kStreamed = 2, kLowRank = 3 };

struct DeviceFacts {
  int multiprocessors;
  int64_t shared_per_block;           // the most that a block may ask for
  int64_t shared_per_multiprocessor;  // of all blocks together
};

/// What the caller fixes; 0, kAuto and nothing leave the choice to the model.
struct ScheduleOverride {
  BlockStrategy strategy = BlockStrategy::kAuto;
  int64_t tasks_per_block = 0;
  int threads = 0;
  std::optional<bool> one_product;  // where it is possible
};

struct Schedule {
  BlockStrategy strategy = BlockStrategy::kAuto;
  int threads = 0;
  int64_t tasks_per_block = 0;
  int64_t groups = 0, blocks = 0;
  bool in_shared = false;       // the workspace; else in global memory
  bool one_product = false;     // of the first weight with the rows of all tasks
  int64_t workspace_bytes = 0;  // of one block, without sums that lie apart
  int64_t shared_bytes = 0;     // of one block, asked for at the launch
  int64_t scratch_bytes = 0;    // in global memory, of the whole call
  double cycles = 0;            // the model's estimate
};

/// What the model knows of one task's work.
struct TaskWork {
  double multiply_adds;  // in products
  double width;          // results of a typical product: threads that find work
  double phases;         // barriers
  double apart_multiply_adds = 0, apart_launches = 0;  // in launches of all multiprocessors
};

/// What a block of a strategy needs, or that the strategy cannot run the call.
struct Footprint {
  bool possible = false;
  int64_t workspace_bytes = 0;
  int64_t far_bytes = 0;      // sums that lie apart, in global memory
  int64_t staging_bytes = 0;  // shared memory for operands on their way
};

constexpr int kThreadChoices[] = {32, 64, 128, 256};
constexpr int64_t kGroupChoices[] = {1, 2, 4, 8, 16, 32};
constexpr int kMaxThreads = 256;
constexpr int64_t kMaxGroup = 32;      // tasks of a block
constexpr int64_t kFrameBytes = 3072;  // static shared memory of a kernel, and the driver's own
constexpr int64_t kStreamedBudget = int64_t{1} << 31;  // of workspace in global memory
constexpr double kPhaseCycles = 120;          // a barrier with the latency of one dependent chain
constexpr double kThreadCycles = 6;           // of a thread for one multiply-add from shared memory
constexpr double kMultiplyAddsPerCycle = 32;  // of a multiprocessor, limited by shared memory
constexpr double kStreamedFactor = 4;         // the same from global memory through the caches
constexpr double kLowRankFactor = 2;          // the same where factors alone are in shared memory
constexpr double kLaunchCycles = 4000;        // until a launch that waits for another one works
constexpr int64_t kRegisters = 65536;         // of a multiprocessor
constexpr int64_t kThreadRegisters = 192;     // of a kernel, rounded up: docs/cuda-resources.md
constexpr int64_t kLowRankRegisters = 224;    // of the low-rank kernels
constexpr int64_t kBlocksPerMultiprocessor = 16;

/// Blocks that one multiprocessor holds at a time.
inline int64_t blocks_in_flight(const DeviceFacts& device, BlockStrategy strategy, int threads,
                                int64_t shared_bytes) {
  const int64_t registers =
      strategy == BlockStrategy::kLowRank ? kLowRankRegisters : kThreadRegisters;
  const int64_t by_threads = kRegisters / (registers * ((threads + 31) / 32 * 32));
  const int64_t by_memory = device.shared_per_multiprocessor / std::max<int64_t>(shared_bytes, 1);
  return std::max<int64_t>(1, std::min<int64_t>({by_threads, by_memory, kBlocksPerMultiprocessor}));
}

/// Cycles of the whole call: waves of blocks, each as slow as the dependent chain of one block or
/// as the work of all blocks that share a multiprocessor, whichever is more. A multiply-add is
/// `slower` than from shared memory.
inline double estimated_cycles(const TaskWork& work, const DeviceFacts& device, int64_t tasks,
                               double slower, int64_t per_block, int threads, int64_t in_flight) {
  const double group = static_cast<double>(per_block);
  const double busy = std::min(static_cast<double>(threads), group * work.width);
  const double macs = group * work.multiply_adds * slower;
  const double alone = work.phases * kPhaseCycles * slower + macs * kThreadCycles / busy;
  const int64_t groups = (tasks + per_block - 1) / per_block;
  const double waves = static_cast<double>((groups + device.multiprocessors * in_flight - 1) /
                                           (device.multiprocessors * in_flight));
  const int64_t together =
      std::min<int64_t>(in_flight, (groups + device.multiprocessors - 1) / device.multiprocessors);
  const double apart =
      work.apart_launches * kLaunchCycles + work.apart_multiply_adds * static_cast<double>(tasks) /
                                                (kMultiplyAddsPerCycle * device.multiprocessors);
  const double shared_out = static_cast<double>(together) * macs / kMultiplyAddsPerCycle;
  return apart + waves * std::max(alone, shared_out);
}

/// How much slower a multiply-add is than from shared memory.
inline double slowness(BlockStrategy strategy, bool in_shared) {
  return strategy == BlockStrategy::kResident ? 1 : in_shared ? kLowRankFactor : kStreamedFactor;
}

/// Chooses. `footprint(tasks_per_block, threads, strategy)` gives what a block needs and
/// `work(strategy)` a task's work. Resident where one task fits (or where it is demanded and
/// fits); otherwise low-rank or streamed, and cut as takes the fewest estimated cycles, ties to the
/// earlier strategy, fewer tasks and threads.
template <class Work, class NeedsOf>
inline Schedule choose_schedule(Work work, const DeviceFacts& device, int64_t tasks,
                                const ScheduleOverride& fixed, NeedsOf footprint) {
  const int64_t room = device.shared_per_block - kFrameBytes;
  Schedule best;
  for (BlockStrategy strategy :
       {BlockStrategy::kResident, BlockStrategy::kLowRank, BlockStrategy::kStreamed}) {
    if (fixed.strategy != BlockStrategy::kAuto && fixed.strategy != strategy) continue;
    const bool resident = strategy == BlockStrategy::kResident;
    const TaskWork one = work(strategy);
    for (int64_t group : kGroupChoices) {
      if (fixed.tasks_per_block ? group != kGroupChoices[0] : group > std::max<int64_t>(tasks, 1)) {
        continue;
      }
      if (fixed.tasks_per_block) group = fixed.tasks_per_block;
      for (int threads : kThreadChoices) {
        if (fixed.threads ? threads != kThreadChoices[0] : false) continue;
        if (fixed.threads) threads = fixed.threads;
        const Footprint needs = footprint(group, threads, strategy);
        const bool fits = needs.workspace_bytes + needs.staging_bytes <= room;
        const bool in_shared = fits && strategy != BlockStrategy::kStreamed;
        const int64_t global = needs.far_bytes + (in_shared ? 0 : needs.workspace_bytes);
        if (!needs.possible || (resident && !fits) || needs.staging_bytes > room) continue;
        if (global > kStreamedBudget && group > 1) continue;
        const int64_t shared = needs.staging_bytes + (in_shared ? needs.workspace_bytes : 0);
        const int64_t in_flight = blocks_in_flight(device, strategy, threads, shared + kFrameBytes);
        const double cycles = estimated_cycles(one, device, tasks, slowness(strategy, in_shared),
                                               group, threads, in_flight);
        if (best.threads && cycles >= best.cycles) continue;
        best.strategy = strategy;
        best.threads = threads;
        best.tasks_per_block = group;
        best.groups = (tasks + group - 1) / group;
        best.blocks = std::min(best.groups, device.multiprocessors * in_flight);
        if (global > 0) {
          best.blocks = std::min(best.blocks, std::max<int64_t>(1, kStreamedBudget / global));
        }
        best.in_shared = in_shared;
        best.workspace_bytes = needs.workspace_bytes;
        best.shared_bytes = shared;
        best.cycles = cycles;
      }
    }
    if (resident && best.threads) return best;
  }
  return best;
}

/// Counts of one task's work: `sweeps` passes over the layers with `support_rows` rows, and
/// `query_sweeps` with query_rows.
inline TaskWork task_work(const Request& r, double sweeps, double query_sweeps) {
  const Net& net = *r.problem.net;
  double weights = 0, widest = 1;
  for (int l = 0; l < net.depth; ++l) {
    weights += static_cast<double>(net.layers[l].in) * static_cast<double>(net.layers[l].out);
    widest = std::max(widest, static_cast<double>(net.layers[l].out));
  }
  const double rows = static_cast<double>(std::max(r.support_rows, r.query_rows));
  TaskWork work;
  work.multiply_adds = weights * (sweeps * static_cast<double>(r.support_rows) +
                                  query_sweeps * static_cast<double>(r.query_rows));
  work.width = std::max(1.0, rows * widest);
  work.phases = 2 * net.depth * (sweeps + query_sweeps) + 8;
  return work;
}

}  // namespace innerloop
