// What all parts of the block engine know: types, the block, the call, the group of tasks that is
// worked on.
#pragma once

#include <cmath>

#include "block/product.h"
#include "block/scalar_math.h"
#include "core/objectives/all.h"
#include "core/plan.h"

namespace innerloop {

/// What an engine is told besides the call.
struct BlockOptions {
  int threads;
  bool tf32;  // products of float32 may run on tensor cores
  int64_t parameters;
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
  using WeightRef = Weight<Real, Elem>;
  using BiasRef = Bias<Real, Elem>;
  using Numbers = Source<Real, Elem>;
  using Product = BlockProduct<Real, Elem>;
  static constexpr bool kBuildsResults = true;  // in the workspace; copied out in whole rows
  static constexpr bool kTakesParts = false;

  struct SideData {
    R x;
    Elem* y;         // [tasks, rows, columns of the targets]
    Elem* weight;    // [tasks, rows]: of the loss
    Elem* gradient;  // [tasks, rows]: weight times the task's weight
    Elem* losses;    // [tasks, rows]
    Objective objective;
    TargetLayout targets;
  };

  IL_HD BlockBase(const Block& block, const Problem& problem, const Plan& plan,
                  const BlockOptions& options)
      : block_(block), problem_(problem), plan_(plan), options_(options) {}

  IL_HD static constexpr bool supports(LayerKind kind) { return kind == LayerKind::kAffine; }
  IL_HD static int64_t pad(int64_t n) { return n | 1; }
  IL_HD static int64_t turned(int64_t, int64_t) { return 0; }
  IL_HD int64_t per_task_reals() const { return plan_.copies; }
  IL_HD static PerTask* per_task(Elem* values) { return values; }
  IL_HD int64_t initial_size() const { return plan_.initial; }
  IL_HD static int64_t direction_size() { return 0; }
  IL_HD int64_t parameter_count() const { return options_.parameters; }

  IL_HD int64_t first() const { return first_; }
  IL_HD void select(int64_t first, int64_t count) {
    first_ = first;
    used_ = static_cast<int>(count);
  }
  /// sink: [plan.sink]; rate_sink: laid out as the rates.
  IL_HD void set_sinks(Elem* sink, Elem* rate_sink) {
    sink_ = sink;
    rate_sink_ = rate_sink;
  }

 protected:
  /// Sizes of one task's arrays fit 32 bits (block/operations.h); products of two of them may not.
  IL_HD static int extent(int64_t n) { return static_cast<int>(n); }
  IL_HD static Real not_a_number() { return static_cast<Real>(NAN); }
  IL_HD int64_t outputs() const { return plan_.layers[plan_.depth - 1].out; }
  IL_HD int64_t free_size() const {
    return plan_.entries > plan_.depth ? plan_.layers[plan_.depth].out : 0;
  }
  IL_HD static Numbers numbers(const BiasRef& b) { return {b.own, b.shared}; }
  IL_HD static Real factor(const PerTask* rate, int task) {
    return rate ? static_cast<Real>(rate[task]) : Real(1);
  }
  IL_HD static WeightRef empty_weight(const LayerPlan& p) {
    WeightRef w;
    w.out = p.out;
    w.in = p.in;
    return w;
  }
  Block block_;
  const Problem& problem_;
  const Plan& plan_;
  const BlockOptions& options_;
  int64_t first_ = 0;
  int used_ = 0;
  Elem *sink_ = nullptr, *rate_sink_ = nullptr, *partial_ = nullptr;
  Elem* r_free_ = nullptr;  // a direction in the free leaf [tasks, F]
};

}  // namespace innerloop
