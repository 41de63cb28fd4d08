// The operations on a device: plan, schedule, lay out scratch memory, launch. Host code, written
// once for every target of launches; templates over the target T:
//   T(const BlockContext&)
//   const char* upload(void* to, const void* from, int64_t bytes)   at most kTablePiece bytes
//   const char* launch<Real, Pass>(const Launch<Call>&, const Schedule&)
//   const char* sum<Real>(const SumLaunch&, int64_t blocks)
// which return null or what went wrong. Nothing here allocates device memory or waits for the
// device.
#pragma once

#include <cstring>
#include <limits>
#include <vector>

#include "block/block_plan.h"
#include "block/schedule.h"
#include "block/schedule_cache.h"

namespace innerloop {

/// What an operation reports when no task fits a block.
inline constexpr const char* kDoesNotFit =
    "a task's parameters of every step, activations and sums do not fit the shared memory of one "
    "block, where the CUDA kernels keep them; use backend=\"torch\", or backend=\"auto\"";
inline constexpr const char* kTooLarge =
    "a task's parameters, rows or rates exceed 2^25, the limit of the CUDA kernels; use "
    "backend=\"torch\", or backend=\"auto\"";
inline constexpr const char* kHasNoLayer =
    "the CUDA kernels have linear layers and activations alone; use backend=\"batched\", or "
    "backend=\"auto\"";
inline constexpr const char* kCutDoesNotFit =
    "the demanded tasks_per_block and threads do not fit this call or the device's memory";

/// Where and how to run. `allocate` gives memory of the device (and is called once at most).
struct BlockContext {
  DeviceFacts facts;
  Cut fixed;
  int device = 0;
  void* stream = nullptr;
  void* (*allocate)(void* owner, int64_t bytes) = nullptr;
  void* owner = nullptr;
  bool allow_tf32 = false;       // float32 products may round their operands to tf32
  bool only_schedules = false;   // the call's addresses are not real: stop before launching
  Schedule* schedule = nullptr;  // receives what was chosen, if not null
};

/// The operations of one dtype. They return null, or what went wrong.
struct BlockKernels {
  const char* (*predict)(const PredictCall&, const BlockContext&);
  const char* (*loss_and_grad)(const LossAndGradCall&, const BlockContext&);
  const char* (*hvp)(const HvpCall&, const BlockContext&);
  const char* (*metric)(const HvpCall&, const BlockContext&);
  const char* (*meta_grad)(const MetaGradCall&, const BlockContext&);
};

/// The arrays of a call, in one piece.
class Table {
 public:
  template <class T>
  int64_t add(const T* data, int64_t count) {
    const size_t at = bytes_.size(), size = static_cast<size_t>(count) * sizeof(T);
    bytes_.resize(at + (size + 7) / 8 * 8);
    if (size > 0) std::memcpy(bytes_.data() + at, data, size);
    return static_cast<int64_t>(at);
  }
  void add_leaves(const Leaves& leaves, int count, int64_t* data, int64_t* strides) {
    *data = add(leaves.data, count);
    *strides = add(leaves.task_stride, count);
  }
  int64_t size() const { return static_cast<int64_t>(bytes_.size()); }
  const char* data() const { return bytes_.data(); }

 private:
  std::vector<char> bytes_;
};

inline void add_arrays(Table&, TableLayout&, const PredictCall&) {}
inline int64_t add_constants(Table& table, const Side& side) {
  return table.add(side.objective.constants, side.objective.constant_count);
}
inline void add_arrays(Table& table, TableLayout& at, const LossAndGradCall& call) {
  at.support_constants = add_constants(table, call.side);
}
inline void add_arrays(Table& table, TableLayout& at, const HvpCall& call) {
  at.support_constants = add_constants(table, call.side);
  table.add_leaves(call.vector, call.problem.net->leaves, &at.vector, &at.vector_strides);
}
inline void add_arrays(Table& table, TableLayout& at, const MetaGradCall& call) {
  at.support_constants = add_constants(table, call.support);
  at.query_constants = add_constants(table, call.query);
  if (!call.grads) return;
  at.grads = table.add(call.grads, call.problem.net->leaves);
  at.grad_strides = table.add(call.grad_strides, call.problem.net->leaves);
}

inline void* rate_output(const MetaGradCall& call) { return call.out_rate_grad; }
template <class Call>
inline void* rate_output(const Call&) {
  return nullptr;
}

/// A piece of scratch memory, at a multiple of 256 bytes.
struct Scratch {
  int64_t offset = 0, bytes = 0;
  char* at(char* memory) const { return bytes > 0 ? memory + offset : nullptr; }
};

/// Every size that block code keeps in 32 bits, for any group.
inline bool fits_block(const Request& r, int64_t parameters) {
  constexpr int64_t kMost = std::numeric_limits<int>::max() / 64;
  return r.support_rows <= kMost && r.query_rows <= kMost && parameters <= kMost &&
         r.rate_grad_size <= kMost;
}

/// One operation from its call to its launches.
template <class T, class Real, template <class> class Pass, class Call>
class Operation {
 public:
  /// `sweeps` and `query_sweeps`: products with every weight, in units of one forward pass.
  Operation(const Call& call, const Request& request, double sweeps, double query_sweeps,
            const BlockContext& context)
      : call_(call),
        request_(request),
        context_(context),
        work_(task_work(request, sweeps, query_sweeps,
                        first_pays_implicit<BlockEngine<CountingBlock, Real>>(request))) {}

  const char* run() {
    const Net& net = *call_.problem.net;
    if (!supports<BlockEngine<CountingBlock, Real>>(net)) return kHasNoLayer;
    if (!fits_block(request_, net.parameters)) return kTooLarge;
    layers_.resize(static_cast<size_t>(net.depth + 1));
    plan_.layers = layers_.data();
    sums_ = request_.wants_grad;
    schedule_ = known_or_chosen();
    if (!schedule_.threads) {
      const Cut& fixed = context_.fixed;
      return fixed.tasks_per_block || fixed.threads ? kCutDoesNotFit : kDoesNotFit;
    }
    prepare();
    if (context_.schedule) *context_.schedule = schedule_;
    if (context_.only_schedules || call_.problem.tasks + sums_ == 0) return nullptr;
    return launch();
  }

 private:
  static constexpr int64_t aligned(int64_t bytes) { return (bytes + 255) / 256 * 256; }

  BlockOptions options(const Cut& cut) const {
    return {cut.threads, context_.allow_tf32, call_.problem.net->parameters};
  }
  Schedule known_or_chosen() {
    static ScheduleCache cache;
    CallKey key(request_, context_.facts, context_.fixed);
    key.add_call(call_);
    Schedule schedule;
    if (cache.find(key, &schedule)) return schedule;
    schedule = choose();
    cache.add(key, schedule);
    return schedule;
  }
  Schedule choose() {
    const auto workspace_bytes = [&](const Cut& cut) {
      make_block_plan<Real>(plan_, request_, cut.tasks_per_block);
      return workspace_size<Real, Pass>(call_, request_, plan_, options(cut)) *
             static_cast<int64_t>(sizeof(Real));
    };
    return choose_schedule(work_, context_.facts, call_.problem.tasks, context_.fixed,
                           workspace_bytes);
  }

  /// Table, launch and the layout of scratch memory.
  void prepare() {
    make_block_plan<Real>(plan_, request_, schedule_.tasks_per_block);
    Launch<Call>& l = launch_;
    l.call = call_;
    l.plan = plan_;
    l.options = options(schedule_);
    l.groups = schedule_.groups;
    l.blocks = schedule_.blocks;
    l.sums = sums_;
    l.rate_size = sums_ ? request_.rate_grad_size : 0;
    l.slot_size = l.options.parameters + l.rate_size;
    l.layout.layers = table_.add(plan_.layers, plan_.entries);
    table_.add_leaves(call_.problem.params, plan_.leaves, &l.layout.params,
                      &l.layout.param_strides);
    add_arrays(table_, l.layout, call_);
    l.layout.bytes = table_.size();
    slots_ = reserve(sums_ ? l.blocks * l.slot_size * static_cast<int64_t>(sizeof(Real)) : 0);
    piece_of_table_ = reserve(table_.size() > kInlineTable ? table_.size() : 0);
  }
  /// What follows the pieces of scratch memory that are reserved already.
  Scratch reserve(int64_t bytes) {
    const Scratch piece{schedule_.scratch_bytes, bytes};
    schedule_.scratch_bytes += aligned(bytes);
    return piece;
  }
  const char* launch() {
    char* scratch = nullptr;
    if (schedule_.scratch_bytes > 0) {
      scratch = static_cast<char*>(context_.allocate(context_.owner, schedule_.scratch_bytes));
    }
    T target(context_);
    Launch<Call>& l = launch_;
    l.slots = slots_.at(scratch);
    l.table = nullptr;
    if (char* to = piece_of_table_.at(scratch)) {
      for (int64_t at = 0; at < table_.size(); at += kTablePiece) {
        const int64_t size = std::min(kTablePiece, table_.size() - at);
        if (const char* error = target.upload(to + at, table_.data() + at, size)) return error;
      }
      l.table = to;
    } else {
      std::memcpy(l.inline_table, table_.data(), static_cast<size_t>(table_.size()));
    }
    if (l.blocks > 0) {
      const char* error = target.template launch<Real, Pass>(l, schedule_);
      if (error) return error;
    }
    return sums_ ? sum(target) : nullptr;
  }

  const char* sum(T& target) {
    SumLaunch s{};
    s.slots = launch_.slots;
    s.count = launch_.blocks;
    s.parameters = launch_.options.parameters;
    s.rate_size = launch_.rate_size;
    s.entries = plan_.entries;
    s.leaves = plan_.leaves;
    s.rates = rate_output(call_);
    s.layout = launch_.layout;
    s.table = launch_.table;
    if (!s.table) std::memcpy(s.inline_table, launch_.inline_table, sizeof s.inline_table);
    const int64_t columns = s.parameters + s.rate_size;
    return target.template sum<Real>(s, (columns + kSumColumns - 1) / kSumColumns);
  }

  const Call& call_;
  const Request& request_;
  const BlockContext& context_;
  const TaskWork work_;
  std::vector<LayerPlan> layers_;
  Plan plan_;
  Schedule schedule_;
  Table table_;
  Launch<Call> launch_{};
  bool sums_ = false;
  Scratch slots_, piece_of_table_;
};

/// The table of operations of a target and a dtype.
template <class T, class Real>
struct BlockOperations {
  static const char* predict(const PredictCall& call, const BlockContext& context) {
    Request r{call.problem};
    r.query_rows = call.rows;
    return run<PredictPass>(call, r, 0, 1, context);
  }
  static const char* loss_and_grad(const LossAndGradCall& call, const BlockContext& context) {
    Request r{call.problem};
    r.support_rows = call.side.rows;
    return run<LossPass>(call, r, call.out_grad ? 3 : 1, 0, context);
  }
  static const char* hvp(const HvpCall& call, const BlockContext& context) {
    Request r{call.problem};
    r.support_rows = call.side.rows;
    r.steps = 1;
    return run<HvpPass>(call, r, 8, 0, context);
  }
  static const char* metric(const HvpCall& call, const BlockContext& context) {
    Request r{call.problem};
    r.support_rows = call.side.rows;
    r.steps = 1;
    return run<MetricPass>(call, r, 5, 0, context);
  }
  static const char* meta_grad(const MetaGradCall& call, const BlockContext& context) {
    Request r{call.problem};
    r.adapt = call.adapt;
    r.steps = call.steps;
    r.order = call.order;
    r.support_rows = call.support.rows;
    r.query_rows = call.query.rows;
    r.wants_grad = call.grads != nullptr;
    r.allows_implicit =
        call.adapted == nullptr && !call.rates.elementwise && call.solver.is_plain();
    r.rate_grad_size = call.out_rate_grad && call.rates.task_stride == 0 ? call.rate_grad_size : 0;
    const double steps = static_cast<double>(call.steps);
    const double back = !r.wants_grad ? 0 : call.order == 2 ? 6 : 1;
    return run<Unroll>(call, r, (3 + back) * steps,
                       r.wants_grad    ? 3
                       : call.out_loss ? 1
                                       : 0,
                       context);
  }
  static constexpr BlockKernels kTable = {predict, loss_and_grad, hvp, metric, meta_grad};

 private:
  template <template <class> class Pass, class Call>
  static const char* run(const Call& call, const Request& request, double sweeps,
                         double query_sweeps, const BlockContext& context) {
    return Operation<T, Real, Pass, Call>(call, request, sweeps, query_sweeps, context).run();
  }
};

}  // namespace innerloop
