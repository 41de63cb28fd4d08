// The kernels of tasks and of sums over them: what a block of threads does in one launch. A block
// works on its share of the groups of tasks, one group after the other, and leaves its sum over
// them in a slot; another kernel adds the slots in a fixed order.
#pragma once

#include <new>

#include "block/block_engine.h"
#include "core/passes.h"
#include "core/unroll.h"

namespace innerloop {

/// Where the arrays that a call refers to lie in one table, in bytes.
struct TableLayout {
  int64_t layers = 0;
  int64_t params = 0, param_strides = 0;
  int64_t vector = 0, vector_strides = 0;
  int64_t grads = 0, grad_strides = 0;
  int64_t support_constants = 0, query_constants = 0;  // of the objectives
  int64_t bytes = 0;
};

constexpr int64_t kInlineTable =
    2816;                              // with the rest of a Launch below 4 KiB of kernel parameters
constexpr int64_t kTablePiece = 3072;  // what one small kernel writes of a longer table

/// Everything that a launch is told. Pointers inside `call` and `plan` are found in the table.
template <class Call>
struct Launch {
  Call call;
  Plan plan;
  TableLayout layout;
  BlockOptions options;
  int64_t groups, blocks;
  int64_t rate_size;  // of the rates' gradients, when they are summed over tasks
  bool sums;          // over tasks
  void* slots;        // [blocks, slot_size]
  int64_t slot_size;  // parameters and rate_size
  const char* table;  // null: the next field
  alignas(8) char inline_table[kInlineTable];

  IL_HD const char* table_data() const { return table ? table : inline_table; }
};

/// Points a call's arrays into the table.
inline IL_HD void point_leaves(Leaves* leaves, const char* table, int64_t data, int64_t strides) {
  leaves->data = reinterpret_cast<const void* const*>(table + data);
  leaves->task_stride = reinterpret_cast<const int64_t*>(table + strides);
}
inline IL_HD void point_side(Side* side, const char* table, int64_t constants) {
  side->objective.constants = reinterpret_cast<const double*>(table + constants);
}
template <class Call>
IL_HD Call point_common(Call call, const char* table, const TableLayout& at) {
  call.problem.net = nullptr;
  point_leaves(&call.problem.params, table, at.params, at.param_strides);
  return call;
}
inline IL_HD PredictCall pointed(const PredictCall& call, const char* t, const TableLayout& at) {
  return point_common(call, t, at);
}
inline IL_HD LossAndGradCall pointed(const LossAndGradCall& call, const char* t,
                                     const TableLayout& at) {
  LossAndGradCall result = point_common(call, t, at);
  point_side(&result.side, t, at.support_constants);
  return result;
}
inline IL_HD HvpCall pointed(const HvpCall& call, const char* t, const TableLayout& at) {
  HvpCall result = point_common(call, t, at);
  point_leaves(&result.vector, t, at.vector, at.vector_strides);
  point_side(&result.side, t, at.support_constants);
  return result;
}
inline IL_HD MetaGradCall pointed(const MetaGradCall& call, const char* t, const TableLayout& at) {
  MetaGradCall result = point_common(call, t, at);
  result.adapt = nullptr;  // the plan says what adapts
  point_side(&result.support, t, at.support_constants);
  point_side(&result.query, t, at.query_constants);
  if (!call.grads) return result;
  result.grads = reinterpret_cast<void* const*>(t + at.grads);
  result.grad_strides = reinterpret_cast<const int64_t*>(t + at.grad_strides);
  return result;
}
inline IL_HD Plan pointed(const Plan& plan, const char* table, const TableLayout& at) {
  Plan result = plan;
  result.layers = const_cast<LayerPlan*>(reinterpret_cast<const LayerPlan*>(table + at.layers));
  return result;
}

/// A pass with all it refers to, at one place that the whole block reads.
template <class Block, class Real, template <class> class Pass, class Call>
struct Frame {
  using Engine = BlockEngine<Block, Real>;
  using Elem = typename Engine::Elem;
  Call call;
  Plan plan;
  Engine engine;
  Pass<Engine> pass;
  int64_t cells;  // of the workspace

  IL_HD Frame(const Block& block, const Launch<Call>& launch, Elem* workspace)
      : call(pointed(launch.call, launch.table_data(), launch.layout)),
        plan(pointed(launch.plan, launch.table_data(), launch.layout)),
        engine(block, call.problem, plan, launch.options),
        pass(engine, plan, call) {
    Carver<Elem> carver(workspace);
    lay_out(carver, engine, pass, launch.sums ? plan.sink : 0, launch.rate_size);
    cells = carver.used();
  }
  /// The workspace: sums over tasks, then what the pass needs.
  IL_HD static void lay_out(Carver<Elem>& carver, Engine& engine, Pass<Engine>& pass, int64_t sink,
                            int64_t rates) {
    Elem* sums = carver.take(sink);
    engine.set_sinks(sums, carver.take(rates));
    pass.carve(carver);
  }
};

template <class Engine, class Call>
IL_HD void start_group(const Engine&, const Call&) {}
template <class Engine>
IL_HD void start_group(const Engine& engine, const MetaGradCall& call) {
  engine.clear_rates(call);
}

/// Block `index` of the launch. Phases: one thread lays out the frame; then, group after group, the
/// phases of the pass; at the end the block's sums go to its slot.
template <class Block, class Real, template <class> class Pass, class Call>
IL_HD void run_tasks(const Block& block, const Launch<Call>& launch,
                     Frame<Block, Real, Pass, Call>* frame,
                     typename Block::template Cell<Real>* workspace, int64_t index) {
  using F = Frame<Block, Real, Pass, Call>;
  block.once([&] { new (frame) F(block, launch, workspace); });
  const int64_t tasks = launch.call.problem.tasks, group = launch.plan.copies;
  if (launch.sums) frame->engine.clear_sinks(launch.rate_size);
  const int64_t last = launch.groups * (index + 1) / launch.blocks;
  for (int64_t i = launch.groups * index / launch.blocks; i < last; ++i) {
    const int64_t left = tasks - i * group;
    block.once([&] { frame->engine.select(i * group, left < group ? left : group); });
    start_group(frame->engine, frame->call);
    frame->pass.run();
  }
  if (launch.sums) {
    Real* slot = static_cast<Real*>(launch.slots) + index * launch.slot_size;
    frame->engine.export_sinks(slot, launch.rate_size);
  }
}

/// Adds the blocks' slots [count, parameters + rate_size] into the leaves and rates that all tasks
/// share. The sums are numbered in the flat [P] order, rates last.
struct SumLaunch {
  const void* slots;
  int64_t count;
  int64_t parameters;  // numbers of the leaves; the rates follow
  int64_t rate_size;
  int entries, leaves;
  void* rates;
  TableLayout layout;
  const char* table;
  alignas(8) char inline_table[kInlineTable];

  IL_HD const char* table_data() const { return table ? table : inline_table; }
};

constexpr int kSumColumns = 32, kSumLanes = 8;  // a block of the sum: columns, and threads of each

/// The flat position where each leaf starts, in the order of the table's leaves.
IL_HD inline int64_t leaf_start(const LayerPlan* layers, int entries, int leaf) {
  for (int l = 0; l < entries; ++l) {
    if (layers[l].weight_leaf == leaf) return layers[l].weight_offset;
    if (layers[l].bias_leaf == leaf) return layers[l].bias_offset;
  }
  return 0;
}

/// Every kSumLanes-th slot's share of number `at`, in ascending order.
template <class Real>
IL_HD inline Real sum_lane(const SumLaunch& launch, int64_t at, int lane) {
  const Real* from = static_cast<const Real*>(launch.slots) + at;
  const int64_t size = launch.parameters + launch.rate_size;
  Real total = 0;
  for (int64_t s = lane; s < launch.count; s += kSumLanes) total += from[s * size];
  return total;
}

/// Block `index` adds kSumColumns numbers over all slots: kSumLanes threads a number, then these
/// sums in order. partial: [kSumLanes, kSumColumns].
template <class Block, class Real>
IL_HD void sum_slots(const Block& block, const SumLaunch& launch,
                     typename Block::template Cell<Real>* partial, int64_t index) {
  const int64_t first = index * kSumColumns;
  const int64_t left = launch.parameters + launch.rate_size - first;
  const int columns = static_cast<int>(left < kSumColumns ? left : kSumColumns);
  block.spread(kSumLanes, columns, [&](int lane, int column) {
    partial[lane * kSumColumns + column] = sum_lane<Real>(launch, first + column, lane);
  });
  block.barrier();
  const char* table = launch.table_data();
  const auto* layers = reinterpret_cast<const LayerPlan*>(table + launch.layout.layers);
  const auto* grads = reinterpret_cast<void* const*>(table + launch.layout.grads);
  const auto* strides = reinterpret_cast<const int64_t*>(table + launch.layout.grad_strides);
  block.spread(1, columns, [&](int, int column) {
    Real total = 0;
    for (int lane = 0; lane < kSumLanes; ++lane) total += partial[lane * kSumColumns + column];
    const int64_t at = first + column;
    if (at >= launch.parameters) {
      static_cast<Real*>(launch.rates)[at - launch.parameters] = total;
      return;
    }
    int leaf = launch.leaves - 1;
    while (leaf > 0 && leaf_start(layers, launch.entries, leaf) > at) --leaf;
    if (strides[leaf] == 0) {
      static_cast<Real*>(grads[leaf])[at - leaf_start(layers, launch.entries, leaf)] = total;
    }
  });
  block.barrier();
}

}  // namespace innerloop
