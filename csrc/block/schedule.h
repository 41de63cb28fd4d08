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
/// per-task weights are kept as factors, in shared memory if they fit; cluster: several blocks
/// share a group of tasks and its workspace, each with a part of every layer in its shared memory
/// (block/block_exchange.h); tiled: rows pass in tiles through blocks that keep all parameters in
/// shared memory, and a cluster may share the tiles of a group (block/tiled_unroll.h). Sums over
/// tasks of low-rank and cluster lie apart in global memory.
enum class BlockStrategy : int {
  kAuto = 0,
  kResident = 1,
  kStreamed = 2,
  kLowRank = 3,
  kCluster = 4,
  kTiled = 5
};

struct DeviceFacts {
  int multiprocessors;
  int64_t shared_per_block;           // the most that a block may ask for
  int64_t shared_per_multiprocessor;  // of all blocks together
  int most_in_cluster;                // blocks; 1: the device has no clusters
};

/// A way to cut an operation into blocks.
struct Cut {
  BlockStrategy strategy = BlockStrategy::kAuto;
  int cluster = 0;  // blocks that share a group of tasks
  int64_t tasks_per_block = 0;
  int threads = 0;
};

/// What the caller fixes; kAuto, 0 and nothing leave the choice to the model.
struct FixedParts : Cut {
  std::optional<bool> one_product;  // where it is possible
};

/// What was chosen; no threads: nothing fits.
struct Schedule : Cut {
  int64_t groups = 0, blocks = 0;  // blocks, or clusters
  int64_t tile_rows = 0;           // rows of a task that pass at a time; 0: all
  int64_t far_steps = 0;           // whose parameters lie apart, in global memory
  bool in_shared = false;          // the workspace; else in global memory
  bool one_product = false;        // of the first weight with the rows of all tasks
  int64_t workspace_bytes = 0;     // of one block, without sums that lie apart
  int64_t shared_bytes = 0;        // of one block, asked for at the launch
  int64_t scratch_bytes = 0;       // in global memory, of the whole call
  double cycles = 0;               // the model's estimate
};

/// What the model knows of one task's work.
struct TaskWork {
  double multiply_adds;  // in products
  double width;          // results of a typical product: threads that find work
  double phases;         // barriers
  double exchanges;      // between the blocks of a cluster
  double exchanged;      // numbers that a block then reads from others, at most
  double apart_multiply_adds = 0, apart_launches = 0;  // in launches of all multiprocessors
};

/// What a block of a strategy needs, or that the strategy cannot run the call.
struct Footprint {
  bool possible = false;
  int64_t workspace_bytes = 0;
  int64_t far_bytes = 0;      // sums that lie apart, in global memory
  int64_t staging_bytes = 0;  // shared memory for operands on their way
  int64_t tiles = 1;          // in which the rows of a task pass
  int64_t far_steps = 0;      // whose parameters lie in global memory
  int64_t steps = 1;
};

constexpr int kMostInCluster = 8;  // blocks, on every device that has clusters
constexpr int kClusterChoices[] = {1, 2, 3, 4, 6, 8};
constexpr int64_t kTileChoices[] = {128, 64, 32, 16, 8};  // rows of a task
constexpr int64_t kExchangeRows = 32;  // of a task, between the blocks of a cluster
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
constexpr double kExchangeCycles = 400;       // a barrier of a cluster and the way to another block
constexpr double kRemoteCycles = 0.25;        // of a multiprocessor for a number from another
constexpr double kLaunchCycles = 4000;        // until a launch that waits for another one works
constexpr int64_t kRegisters = 65536;         // of a multiprocessor
constexpr int64_t kThreadRegisters = 200;     // of a kernel, rounded up: docs/cuda-resources.md
constexpr int64_t kMoreRegisters = 240;       // of the other strategies' kernels
constexpr int64_t kBlocksPerMultiprocessor = 16;

/// Blocks that one multiprocessor holds at a time.
inline int64_t blocks_in_flight(const DeviceFacts& device, BlockStrategy strategy, int threads,
                                int64_t shared_bytes) {
  const bool needs_more =
      strategy != BlockStrategy::kResident && strategy != BlockStrategy::kStreamed;
  const int64_t registers = needs_more ? kMoreRegisters : kThreadRegisters;
  const int64_t by_threads = kRegisters / (registers * ((threads + 31) / 32 * 32));
  const int64_t by_memory = device.shared_per_multiprocessor / std::max<int64_t>(shared_bytes, 1);
  return std::max<int64_t>(1, std::min<int64_t>({by_threads, by_memory, kBlocksPerMultiprocessor}));
}

/// Groups of tasks that the device works on at a time.
inline int64_t groups_in_flight(const DeviceFacts& device, const Cut& cut, int64_t in_flight) {
  return std::max<int64_t>(1, device.multiprocessors * in_flight / cut.cluster);
}

/// Cycles of the whole call: waves of groups, each as slow as the dependent chain of one group or
/// as the work of all blocks that share a multiprocessor, whichever is more. A multiply-add is
/// `slower` than from shared memory.
inline double estimated_cycles(const TaskWork& work, const DeviceFacts& device, int64_t tasks,
                               const Cut& cut, double slower, int64_t tiles, int64_t in_flight) {
  const double group = static_cast<double>(cut.tasks_per_block);
  const double cluster = static_cast<double>(cut.cluster);
  const bool tiled = cut.strategy == BlockStrategy::kTiled;
  const double width = group * work.width / (tiled ? static_cast<double>(tiles) : cluster);
  const double busy = std::min(static_cast<double>(cut.threads), width);
  const double rounds = static_cast<double>((tiles + cut.cluster - 1) / cut.cluster);
  const double macs = group * work.multiply_adds * slower / cluster;
  const double sent = work.exchanges * kExchangeCycles + group * work.exchanged * kRemoteCycles;
  const double alone = rounds * work.phases * kPhaseCycles * slower + macs * kThreadCycles / busy +
                       (cut.cluster > 1 ? sent : 0);
  const int64_t groups = (tasks + cut.tasks_per_block - 1) / cut.tasks_per_block;
  const int64_t at_once = groups_in_flight(device, cut, in_flight);
  const double waves = static_cast<double>((groups + at_once - 1) / at_once);
  const int64_t blocks = groups * cut.cluster;
  const int64_t together =
      std::min<int64_t>(in_flight, (blocks + device.multiprocessors - 1) / device.multiprocessors);
  const double apart =
      work.apart_launches * kLaunchCycles + work.apart_multiply_adds * static_cast<double>(tasks) /
                                                (kMultiplyAddsPerCycle * device.multiprocessors);
  const double shared_out = static_cast<double>(together) * macs / kMultiplyAddsPerCycle;
  return apart + waves * std::max(alone, shared_out);
}

/// How much slower a multiply-add is than from shared memory.
inline double slowness(BlockStrategy strategy, bool in_shared) {
  return strategy == BlockStrategy::kLowRank && in_shared ? kLowRankFactor
         : in_shared                                      ? 1
                                                          : kStreamedFactor;
}

/// f(cut) for every way that the caller leaves open, few tasks and threads first.
template <class F>
inline void each_cut(BlockStrategy strategy, const DeviceFacts& device, int64_t tasks,
                     const Cut& fixed, F f) {
  const auto choices = [](auto& all, auto fixed_one, auto allows, auto g) {
    for (const auto one : all) {
      if (!fixed_one && allows(one)) g(one);
    }
    if (fixed_one) g(fixed_one);
  };
  const bool tiled = strategy == BlockStrategy::kTiled, split = strategy == BlockStrategy::kCluster;
  const auto is_shared = [&](int cluster) {
    return (tiled || split == (cluster > 1)) && cluster <= device.most_in_cluster;
  };
  const int fixed_cluster = tiled || split ? fixed.cluster : 0;
  if (fixed_cluster > device.most_in_cluster) return;
  const auto has_tasks = [&](int64_t group) { return group <= std::max<int64_t>(tasks, 1); };
  choices(kClusterChoices, fixed_cluster, is_shared, [&](int cluster) {
    choices(kGroupChoices, fixed.tasks_per_block, has_tasks, [&](int64_t group) {
      choices(
          kThreadChoices, fixed.threads, [](int) { return true; },
          [&](int threads) { f(Cut{strategy, cluster, group, threads}); });
    });
  });
}

/// The schedule that a cut gives; without threads if it does not fit.
inline Schedule cut_schedule(const Cut& cut, const TaskWork& work, const DeviceFacts& device,
                             int64_t tasks, const Footprint& needs) {
  const int64_t room = device.shared_per_block - kFrameBytes;
  const bool fits = needs.workspace_bytes + needs.staging_bytes <= room;
  const bool in_shared = fits && cut.strategy != BlockStrategy::kStreamed;
  const bool must_fit =
      cut.strategy != BlockStrategy::kStreamed && cut.strategy != BlockStrategy::kLowRank;
  const int64_t global = needs.far_bytes + (in_shared ? 0 : needs.workspace_bytes);
  Schedule s;
  if (!needs.possible || (must_fit && !fits) || needs.staging_bytes > room) return s;
  if (global > kStreamedBudget && cut.tasks_per_block > 1) return s;
  static_cast<Cut&>(s) = cut;
  s.in_shared = in_shared;
  s.workspace_bytes = needs.workspace_bytes;
  s.shared_bytes = needs.staging_bytes + (in_shared ? needs.workspace_bytes : 0);
  const int64_t in_flight =
      blocks_in_flight(device, cut.strategy, cut.threads, s.shared_bytes + kFrameBytes);
  s.groups = (tasks + cut.tasks_per_block - 1) / cut.tasks_per_block;
  s.blocks = std::min(s.groups, groups_in_flight(device, cut, in_flight));
  if (global > 0) {
    s.blocks = std::min(s.blocks, std::max<int64_t>(1, kStreamedBudget / (global * cut.cluster)));
  }
  s.far_steps = needs.far_steps;
  const double far = static_cast<double>(needs.far_steps) / static_cast<double>(needs.steps);
  const double slower = slowness(cut.strategy, in_shared) + far * (kStreamedFactor - 1);
  s.cycles = estimated_cycles(work, device, tasks, cut, slower, needs.tiles, in_flight);
  return s;
}

/// Chooses. `footprint(cut)` gives what a block needs and `work(strategy)` a task's work. Resident
/// where one task fits (or where it is demanded and fits); otherwise what takes the fewest
/// estimated cycles, ties to the earlier strategy, smaller clusters, fewer tasks and threads.
template <class Work, class NeedsOf>
inline Schedule choose_schedule(Work work, const DeviceFacts& device, int64_t tasks,
                                const Cut& fixed, NeedsOf footprint) {
  Schedule best;
  for (BlockStrategy strategy :
       {BlockStrategy::kResident, BlockStrategy::kLowRank, BlockStrategy::kCluster,
        BlockStrategy::kTiled, BlockStrategy::kStreamed}) {
    if (fixed.strategy != BlockStrategy::kAuto && fixed.strategy != strategy) continue;
    const TaskWork one = work(strategy);
    each_cut(strategy, device, tasks, fixed, [&](const Cut& cut) {
      const Schedule s = cut_schedule(cut, one, device, tasks, footprint(cut));
      if (s.threads && (!best.threads || s.cycles < best.cycles)) best = s;
    });
    if (strategy == BlockStrategy::kResident && best.threads) return best;
  }
  return best;
}

/// Multiply-adds of one product of a task's rows with the initial first weight.
inline double first_product_work(const Request& r) {
  const Layer& first = r.problem.net->first();
  const double rows = static_cast<double>((r.steps > 0 ? r.support_rows : 0) + r.query_rows);
  return rows * static_cast<double>(first.in) * static_cast<double>(first.out);
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
    if (l > 0) work.exchanged += passed * in;
  }
  if (implicit) {
    const double in = static_cast<double>(net.first().in);
    work.multiply_adds += (support + query) * support * in;
    work.multiply_adds += (r.wants_grad ? 2 : 1) * first_product_work(r);
  }
  work.width = std::max(1.0, std::max(support, query) * widest);
  work.phases = 2 * net.depth * (sweeps + query_sweeps) + 8;
  const auto parts = [](int64_t rows) {
    return static_cast<double>((rows + kExchangeRows - 1) / kExchangeRows);
  };
  work.exchanges = std::max(1, net.depth - 1) *
                   (sweeps * parts(r.support_rows) + query_sweeps * parts(r.query_rows));
  return work;
}

/// The same for rows that pass in tiles: back through a step, activations are computed again. The
/// blocks of a cluster add up their gradients.
inline TaskWork tiled_work(const Request& r, double sweeps, double query_sweeps) {
  const double steps = static_cast<double>(r.steps);
  const bool again = r.wants_grad && r.order == 2;
  TaskWork work = task_work(r, sweeps + (again ? 3 * steps : 0), query_sweeps, false);
  work.exchanges = (again ? 2 : 1) * steps + 1;
  work.exchanged = work.exchanges * static_cast<double>(r.problem.net->parameters);
  return work;
}

}  // namespace innerloop
