// What all parts of the block engine know: types, the block, the call, the group of tasks that is
// worked on.
#pragma once

#include <cmath>

#include "block/product.h"
#include "block/scalar_math.h"
#include "core/plan.h"

namespace innerloop {

/// What an engine is told besides the call.
struct BlockOptions {
  int threads;
  bool stages;
  bool tf32;  // products of float32 may run on tensor cores
  bool far_sums;
  bool in_shared;  // the workspace
  bool has_staging;
  int64_t parameters;
  int64_t tile_rows;      // of a task, that pass at a time
  int cluster;            // blocks that share a group of tasks
  int64_t far_steps;      // whose parameters lie apart, in global memory
  int64_t exchange_rows;  // of a task, at most, that they send each other at a time
  int64_t exchange_size;  // numbers of a buffer for what they send
};

template <class BlockType, class RealType>
class BlockBase {
 public:
  using Block = BlockType;
  using Real = RealType;
  using Elem = typename Block::template Cell<Real>;
  using PerTask = Elem;
  using M = ScalarMath<Real, Elem>;
  using R = Rows<Elem>;
  using Out = Target<Elem>;
  struct WeightRef : Weight<Real, Elem> {
    Split split = Split::kNone;
  };
  using BiasRef = Bias<Real, Elem>;
  using Numbers = Source<Real, Elem>;
  using Product = BlockProduct<Real, Elem>;
  static constexpr bool kBuildsResults = true;  // in the workspace; copied out in whole rows
  static constexpr bool kFactors = Block::kFactors;
  static constexpr bool kCluster = Block::kCluster;
  static constexpr bool kOneProduct = true;  // other launches may multiply with the first weight

  struct SideData {
    R x;
    Elem* y;         // [tasks, rows, K] targets or [tasks, rows] class indices
    Elem* weight;    // [tasks, rows]: of the loss
    Elem* gradient;  // [tasks, rows]: weight times the task's weight
    Elem* losses;    // [tasks, rows]
  };

  IL_HD BlockBase(const Block& block, const Problem& problem, const Plan& plan,
                  const BlockOptions& options)
      : block_(block), problem_(problem), plan_(plan), options_(options) {}

  IL_HD static int64_t pad(int64_t n) { return n | 1; }
  IL_HD static int64_t turned(int64_t, int64_t) { return 0; }
  IL_HD int64_t per_task_reals() const { return plan_.copies; }
  IL_HD static PerTask* per_task(Elem* values) { return values; }
  IL_HD int64_t initial_size() const { return options_.stages ? plan_.initial : 0; }
  IL_HD static int64_t direction_size() { return 0; }
  IL_HD int64_t parameter_count() const { return options_.parameters; }

  IL_HD void select(int64_t first, int64_t count) {
    first_ = first;
    used_ = static_cast<int>(count);
  }
  /// sink: [plan.sink]; rate_sink: laid out as the rates.
  IL_HD void set_sinks(Elem* sink, Elem* rate_sink) {
    sink_ = sink;
    rate_sink_ = rate_sink;
  }
  /// Parameters after the first steps, where those lie apart: [far steps, plan.block].
  IL_HD void carve_far(Carver<Elem>& c) { far_blocks_ = c.take(options_.far_steps, plan_.block); }
  IL_HD int64_t far_steps() const { return options_.far_steps; }
  IL_HD Elem* far_block(int64_t index) const { return far_blocks_ + index * plan_.block; }

  /// Shared memory for operands on their way; null: they are read where they lie.
  IL_HD void set_staging(Elem* staging) { staging_ = staging; }

 protected:
  /// Sizes of one task's arrays fit 32 bits (block/operations.h); products of two of them may not.
  IL_HD static int extent(int64_t n) { return static_cast<int>(n); }
  IL_HD static Real not_a_number() { return static_cast<Real>(NAN); }
  IL_HD bool has_classes() const { return problem_.loss == LossKind::kCrossEntropy; }
  IL_HD int64_t outputs() const { return plan_.layers[plan_.depth - 1].out; }
  IL_HD int64_t target_columns() const { return has_classes() ? 1 : outputs(); }
  IL_HD static Numbers numbers(const BiasRef& b) { return {b.own, b.shared}; }
  IL_HD static Real factor(const PerTask* rate, int task) {
    return rate ? static_cast<Real>(rate[task]) : Real(1);
  }
  IL_HD static WeightRef empty_weight(const LayerPlan& p) {
    WeightRef w;
    w.out = p.out;
    w.in = p.in;
    w.split = p.split;
    return w;
  }
  /// Where this block's part of a leaf starts.
  IL_HD int64_t weight_start(const LayerPlan& p) const {
    return p.split == Split::kNone      ? 0
           : p.split == Split::kOutputs ? block_.rank() * p.out * p.leaf_in
                                        : block_.rank() * p.in;
  }
  IL_HD int64_t bias_start(const LayerPlan& p) const {
    return p.split == Split::kOutputs ? block_.rank() * p.out : 0;
  }
  /// Whether this block writes what all blocks of a cluster have alike.
  IL_HD bool speaks() const { return block_.rank() == 0; }
  IL_HD bool writes_weight(const LayerPlan& p) const { return p.split != Split::kNone || speaks(); }
  IL_HD bool writes_bias(const LayerPlan& p) const {
    return p.split == Split::kOutputs || speaks();
  }

  Block block_;
  const Problem& problem_;
  const Plan& plan_;
  const BlockOptions& options_;
  int64_t first_ = 0;
  int used_ = 0;
  Elem *sink_ = nullptr, *rate_sink_ = nullptr, *partial_ = nullptr;
  Elem *staging_ = nullptr, *far_blocks_ = nullptr;
};

}  // namespace innerloop
