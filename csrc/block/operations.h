// The operations on a device: plan, schedule, lay out scratch memory, launch. Host code, written
// once for every target of launches; templates over the target T:
//   T(const BlockContext&)
//   const char* upload(void* to, const void* from, int64_t bytes)   at most kTablePiece bytes
//   const char* launch<kKind, Real, Pass>(const Launch<Call>&, const Schedule&)
//   const char* multiply_inputs<Real>(const FirstLayerLaunch&, int64_t blocks)
//   const char* multiply_cotangents<Real>(const FirstLayerLaunch&, int64_t blocks)
//   const char* sum<Real>(const SumLaunch&, int64_t blocks)
// which return null or what went wrong. Nothing here allocates device memory or waits for the
// device.
#pragma once

#include <cassert>
#include <cstring>
#include <limits>
#include <type_traits>
#include <vector>

#include "block/block_plan.h"
#include "block/first_layer.h"
#include "block/low_rank.h"
#include "block/schedule.h"
#include "block/schedule_cache.h"
#include "block/tiled_unroll.h"

namespace innerloop {

/// What a kernel's blocks can do besides: keep weights as factors, or work in clusters.
enum class BlockKind { kPlain, kFactors, kCluster };

/// Where and how to run. `allocate` gives memory of the device (and is called once at most).
struct BlockContext {
  DeviceFacts facts;
  FixedParts fixed;
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
inline void add_arrays(Table&, TableLayout&, const LossAndGradCall&) {}
inline void add_arrays(Table& table, TableLayout& at, const HvpCall& call) {
  table.add_leaves(call.vector, call.problem.net->leaves, &at.vector, &at.vector_strides);
}
inline void add_arrays(Table& table, TableLayout& at, const MetaGradCall& call) {
  if (!call.grads) return;
  at.grads = table.add(call.grads, call.problem.net->leaves);
  at.grad_strides = table.add(call.grad_strides, call.problem.net->leaves);
}

inline void* rate_output(const MetaGradCall& call) { return call.out_rate_grad; }
template <class Call>
inline void* rate_output(const Call&) {
  return nullptr;
}

inline void* first_gradient(const MetaGradCall& call) {
  return call.grads[call.problem.net->first().weight_leaf];
}
template <class Call>
inline void* first_gradient(const Call&) {
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
        implicit_(first_pays_implicit<BlockEngine<CountingBlock, Real>>(request)),
        work_(task_work(request, sweeps, query_sweeps, implicit_)),
        tiled_work_(tiled_work(request, sweeps, query_sweeps)) {}

  const char* run() {
    const Net& net = *call_.problem.net;
    if (!fits_block(request_, net.parameters)) {
      return "a task's parameters, rows or rates exceed 2^25, the limit of the CUDA kernels; use "
             "backend=\"torch\"";
    }
    layers_.resize(static_cast<size_t>(net.depth));
    plan_.layers = layers_.data();
    sums_ = request_.wants_grad;
    one_product_ = takes_one_product();
    schedule_ = known_or_chosen();
    if (!schedule_.threads) {
      return "the demanded strategy, tasks_per_block and threads do not fit this call or the "
             "device's memory";
    }
    prepare();
    if (context_.schedule) *context_.schedule = schedule_;
    if (context_.only_schedules || call_.problem.tasks + sums_ == 0) return nullptr;
    return launch();
  }

 private:
  static constexpr bool kUnrolls = std::is_same_v<Call, MetaGradCall>;
  static constexpr int64_t aligned(int64_t bytes) { return (bytes + 255) / 256 * 256; }

  BlockOptions options(const Cut& cut) const {
    const bool cluster = cut.strategy == BlockStrategy::kCluster;
    const bool stages =
        cut.strategy == BlockStrategy::kResident || cut.strategy == BlockStrategy::kTiled;
    BlockOptions o{};
    o.threads = cut.threads;
    o.stages = stages;
    o.tf32 = context_.allow_tf32;
    o.far_sums = cluster || cut.strategy == BlockStrategy::kLowRank;
    o.in_shared = stages || cluster;
    o.has_staging = !o.in_shared;
    o.parameters = call_.problem.net->parameters;
    o.cluster = cut.cluster;
    if (cluster) {
      const int64_t rows = std::max({request_.support_rows, request_.query_rows, int64_t{1}});
      // a part of the rows is an array of its own only if there is one task
      o.exchange_rows = cut.tasks_per_block > 1 ? rows : std::min(rows, kExchangeRows);
      o.exchange_size = cut.tasks_per_block * o.exchange_rows * exchanged_columns();
    }
    return o;
  }
  /// The longest row that the blocks of a cluster exchange.
  int64_t exchanged_columns() const {
    const Net& net = *call_.problem.net;
    int64_t widest = net.last().out;
    for (int l = 1; l < net.depth; ++l) widest = std::max(widest, net.layers[l].in);
    return BlockEngine<CountingBlock, Real>::pad(widest);
  }
  /// A cut's options, and what its workspace takes; tiles have as many rows as fit, and a cluster
  /// keeps the parameters of as many steps.
  WorkspaceSize fit(const Cut& cut, BlockOptions* o) const {
    *o = options(cut);
    if constexpr (kUnrolls) {
      if (cut.strategy == BlockStrategy::kTiled) return fit_tiles(o);
      if (cut.strategy == BlockStrategy::kCluster) return fit_steps(o);
    }
    return workspace_size<Real, Pass>(call_, request_, plan_, *o);
  }
  bool fits(const WorkspaceSize& size) const {
    const int64_t room = context_.facts.shared_per_block - kFrameBytes;
    return size.near * static_cast<int64_t>(sizeof(Real)) <= room;
  }
  WorkspaceSize fit_steps(BlockOptions* o) const {
    const bool can_spare = request_.wants_grad && plan_.lowest < plan_.depth;
    for (int64_t spared = 0;; ++spared) {
      o->far_steps = spared;
      const WorkspaceSize size = workspace_size<Real, Pass>(call_, request_, plan_, *o);
      if (fits(size) || !can_spare || spared + 1 >= request_.steps) return size;
    }
  }
  WorkspaceSize fit_tiles(BlockOptions* o) const {
    WorkspaceSize size{};
    for (int64_t rows : kTileChoices) {
      o->tile_rows = o->exchange_rows = rows;
      size = workspace_size<Real, TiledUnroll>(call_, request_, plan_, *o);
      const bool is_wasteful =
          rows > kTileChoices[std::size(kTileChoices) - 1] && rows / 2 >= most_rows();
      if (!is_wasteful && fits(size)) break;
    }
    return size;
  }
  int64_t most_rows() const { return std::max(request_.support_rows, request_.query_rows); }
  /// Whether the kernel of a strategy can run the call, whatever its sizes.
  bool allows(BlockStrategy strategy) const {
    if (strategy != BlockStrategy::kCluster && strategy != BlockStrategy::kTiled) return true;
    if constexpr (kUnrolls) return !call_.rates.elementwise;
    return false;
  }
  Factors factors(BlockStrategy strategy) const {
    if (strategy != BlockStrategy::kLowRank) return Factors::kNone;
    return context_.fixed.strategy == strategy ? Factors::kAll : Factors::kWherePaying;
  }
  bool takes_one_product() const {
    if (!implicit_ || call_.problem.tasks == 0) return false;
    return context_.fixed.one_product.value_or(pays_one_product(request_, sizeof(Real)));
  }
  bool make_plan(const Cut& cut) {
    return make_block_plan<Real>(plan_, request_, cut, factors(cut.strategy), one_product_);
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
    const auto footprint = [&](const Cut& cut) {
      constexpr int64_t kReal = sizeof(Real);
      if (!allows(cut.strategy) || !make_plan(cut)) return Footprint{};
      const bool implicit = plan_.implicit_first && plan_.first_adapts;
      if (cut.strategy == BlockStrategy::kLowRank && !implicit && !plan_.factored) {
        return Footprint{};
      }
      BlockOptions o;
      const WorkspaceSize size = fit(cut, &o);
      Footprint f{true, size.near * kReal, size.far * kReal,
                  o.has_staging ? staging_size<Real>(cut.threads) * kReal : 0};
      f.steps = std::max<int64_t>(1, request_.steps);
      f.far_steps = o.far_steps;
      if (o.tile_rows > 0) {
        f.tiles = std::max<int64_t>(1, (most_rows() + o.tile_rows - 1) / o.tile_rows);
      }
      return f;
    };
    const auto work = [&](BlockStrategy strategy) {
      if (strategy == BlockStrategy::kTiled) return tiled_work_;
      const TaskWork work = with_factors(work_, request_, factors(strategy), implicit_);
      return one_product_ ? with_one_product(work, request_) : work;
    };
    return choose_schedule(work, context_.facts, call_.problem.tasks, context_.fixed, footprint);
  }

  /// Table, launch and the layout of scratch memory.
  void prepare() {
    make_plan(schedule_);
    schedule_.one_product = one_product_ = plan_.one_product;
    Launch<Call>& l = launch_;
    l.call = call_;
    l.plan = plan_;
    const WorkspaceSize size = fit(schedule_, &l.options);
    assert(schedule_.workspace_bytes == size.near * static_cast<int64_t>(sizeof(Real)));
    l.options.in_shared = schedule_.in_shared;
    schedule_.tile_rows = l.options.tile_rows;
    l.staging_size = l.options.has_staging ? staging_size<Real>(schedule_.threads) : 0;
    l.groups = schedule_.groups;
    l.blocks = schedule_.blocks;
    l.sums = sums_;
    l.rate_size = sums_ ? request_.rate_grad_size : 0;
    l.workspace_size = schedule_.in_shared ? 0 : size.near;
    l.far_size = size.far;
    l.layout.layers = table_.add(plan_.layers, plan_.depth);
    table_.add_leaves(call_.problem.params, plan_.leaves, &l.layout.params,
                      &l.layout.param_strides);
    add_arrays(table_, l.layout, call_);
    l.layout.bytes = table_.size();

    l.slot_size = l.options.parameters - plan_.apart + l.rate_size;
    if constexpr (kUnrolls) first_ = first_layer();
    const int64_t real = sizeof(Real);
    slots_ = reserve(sums_ ? l.blocks * l.slot_size * real : 0);
    workspaces_ = reserve(l.blocks * l.workspace_size * real);
    far_ = reserve(l.blocks * schedule_.cluster * l.far_size * real);
    first_rows_ = reserve(one_product_ ? first_rows_bytes(request_, real) : 0);
    parts_ = reserve(first_.parts > 1 ? first_.parts * plan_.apart * real : 0);
    piece_of_table_ = reserve(table_.size() > kInlineTable ? table_.size() : 0);
  }
  /// What follows the pieces of scratch memory that are reserved already.
  Scratch reserve(int64_t bytes) {
    const Scratch piece{schedule_.scratch_bytes, bytes};
    schedule_.scratch_bytes += aligned(bytes);
    return piece;
  }
  /// What the launches before and after the tasks' own are told, but for their rows.
  FirstLayerLaunch first_layer() const {
    FirstLayerLaunch f{};
    if (!one_product_) return f;
    const Layer& first = call_.problem.net->first();
    f.support = call_.support;
    f.query = call_.query;
    f.tasks = call_.problem.tasks;
    f.in = first.in;
    f.out = first.out;
    f.last = f.tasks * (f.support.rows + f.query.rows);
    f.tf32 = context_.allow_tf32;
    f.weight = call_.problem.params.data[first.weight_leaf];
    if (sums_) {
      f.parts = gradient_parts<Real>(f.out, f.in, f.last, context_.facts.multiprocessors);
    }
    return f;
  }

  const char* launch() {
    char* scratch = nullptr;
    if (schedule_.scratch_bytes > 0) {
      scratch = static_cast<char*>(context_.allocate(context_.owner, schedule_.scratch_bytes));
    }
    T target(context_);
    Launch<Call>& l = launch_;
    l.slots = slots_.at(scratch);
    l.workspace = workspaces_.at(scratch);
    l.far = far_.at(scratch);
    l.first_rows = first_rows_.at(scratch);
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
      const char* error = multiply_inputs(target);
      if (!error) error = launch_tasks(target);
      if (!error) error = multiply_cotangents(target, scratch);
      if (error) return error;
    }
    return sums_ ? sum(target) : nullptr;
  }

  /// X W^T: of the support only if there are steps.
  const char* multiply_inputs(T& target) {
    if (!one_product_) return nullptr;
    first_.rows = launch_.first_rows;
    first_.first = request_.steps > 0 ? 0 : first_.tasks * first_.support.rows;
    const int64_t blocks = product_tiles<Real>(first_.last - first_.first, first_.out);
    return blocks > 0 ? target.template multiply_inputs<Real>(first_, blocks) : nullptr;
  }
  /// D^T X: of the support only if its cotangents count.
  const char* multiply_cotangents(T& target, char* scratch) {
    if (!one_product_ || !sums_) return nullptr;
    const bool moves = request_.steps > 0 && plan_.lowest < plan_.depth;
    first_.first = moves && request_.order == 2 ? 0 : first_.tasks * first_.support.rows;
    first_.gradient = first_.parts > 1 ? parts_.at(scratch) : first_gradient(call_);
    const int64_t blocks = first_.parts * product_tiles<Real>(first_.out, first_.in);
    return target.template multiply_cotangents<Real>(first_, blocks);
  }

  const char* launch_tasks(T& target) {
    if constexpr (kUnrolls) {
      if (schedule_.strategy == BlockStrategy::kLowRank) {
        return target.template launch<BlockKind::kFactors, Real, Pass>(launch_, schedule_);
      }
      if (schedule_.strategy == BlockStrategy::kCluster) {
        return target.template launch<BlockKind::kCluster, Real, Pass>(launch_, schedule_);
      }
      if (schedule_.strategy == BlockStrategy::kTiled) {
        return schedule_.cluster > 1
                   ? target.template launch<BlockKind::kCluster, Real, TiledUnroll>(launch_,
                                                                                    schedule_)
                   : target.template launch<BlockKind::kPlain, Real, TiledUnroll>(launch_,
                                                                                  schedule_);
      }
    }
    return target.template launch<BlockKind::kPlain, Real, Pass>(launch_, schedule_);
  }

  const char* sum(T& target) {
    SumLaunch s{};
    s.slots = {launch_.slots, launch_.blocks, launch_.slot_size};
    s.apart = {first_.gradient, first_.parts, plan_.apart};
    s.start = first_.parts > 1 ? 0 : plan_.apart;
    s.parameters = launch_.options.parameters;
    s.rate_size = launch_.rate_size;
    s.depth = plan_.depth;
    s.leaves = plan_.leaves;
    s.rates = rate_output(call_);
    s.layout = launch_.layout;
    s.table = launch_.table;
    if (!s.table) std::memcpy(s.inline_table, launch_.inline_table, sizeof s.inline_table);
    const int64_t columns = s.parameters + s.rate_size - s.start;
    return target.template sum<Real>(s, (columns + kSumColumns - 1) / kSumColumns);
  }

  const Call& call_;
  const Request& request_;
  const BlockContext& context_;
  const bool implicit_;  // the first layer
  const TaskWork work_, tiled_work_;
  std::vector<LayerPlan> layers_;
  Plan plan_;
  Schedule schedule_;
  Table table_;
  Launch<Call> launch_{};
  FirstLayerLaunch first_{};
  bool sums_ = false, one_product_ = false;
  Scratch slots_, workspaces_, far_, first_rows_, parts_, piece_of_table_;
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
  static const char* meta_grad(const MetaGradCall& call, const BlockContext& context) {
    Request r{call.problem};
    r.adapt = call.adapt;
    r.steps = call.steps;
    r.order = call.order;
    r.support_rows = call.support.rows;
    r.query_rows = call.query.rows;
    r.wants_grad = call.grads != nullptr;
    r.allows_implicit = call.adapted == nullptr && !call.rates.elementwise;
    r.rate_grad_size = call.out_rate_grad && call.rates.task_stride == 0 ? call.rate_grad_size : 0;
    const double steps = static_cast<double>(call.steps);
    const double back = !r.wants_grad ? 0 : call.order == 2 ? 6 : 1;
    return run<Unroll>(call, r, (3 + back) * steps,
                       r.wants_grad    ? 3
                       : call.out_loss ? 1
                                       : 0,
                       context);
  }
  static constexpr BlockKernels kTable = {predict, loss_and_grad, hvp, meta_grad};

 private:
  template <template <class> class Pass, class Call>
  static const char* run(const Call& call, const Request& request, double sweeps,
                         double query_sweeps, const BlockContext& context) {
    return Operation<T, Real, Pass, Call>(call, request, sweeps, query_sweeps, context).run();
  }
};

}  // namespace innerloop
