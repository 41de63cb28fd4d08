// Runs one operation over all tasks: picks the engine, cuts tasks into groups and groups into
// slots, gives each worker its workspace, and sums the slots in a fixed order. Groups, slots and
// therefore every bit of the result depend on shapes alone, never on the number of threads.
#pragma once

#include <type_traits>

#include "core/fill_plan.h"
#include "core/passes.h"
#include "core/request.h"
#include "core/unroll.h"
#include "cpu/lane_engine.h"
#include "cpu/parallel.h"
#include "cpu/row_engine.h"

namespace innerloop {
namespace INNERLOOP_LEVEL {

constexpr int64_t kMaxSlots = 64;
constexpr int64_t kSlotBudgetBytes = int64_t{64} << 20;
constexpr int64_t kLaneBudgetBytes = int64_t{6} << 20;  // beyond, lanes fall out of the caches
constexpr int64_t kStackedRows = 32;                    // rows that make a shared product efficient
constexpr int64_t kMaxStackedTasks = 8;

constexpr int64_t kPartBytes = int64_t{768} << 10;  // that a pass leaves for the next one
constexpr int64_t kFewestPartRows = 128;  // below, products cost more than near caches give

/// Rows of a side that are passed at once, 0 for all: cut where a task has many rows of a narrow
/// network, so that what a pass leaves for the next one stays in the second-level cache.
template <class E>
inline int64_t part_rows(const Plan& plan, const Request& r) {
  const bool cuts = r.allows_parts && plan.copies == 1 && !plan.implicit_first &&
                    (plan.lowest == 0 || plan.lowest == plan.depth);
  if (!E::kTakesParts || !cuts) return 0;
  const int64_t row = plan.tape_row + plan.scratch_row + plan.layers[0].in;
  const int64_t rows = kPartBytes / (row * static_cast<int64_t>(sizeof(typename E::Elem)));
  const int64_t part = rows / E::kWidth * E::kWidth;
  const bool pays = larger(r.support_rows, r.query_rows) >= 2 * part;
  return part >= kFewestPartRows && pays ? part : 0;
}

/// Whether lanes pay for inputs: a layer with one output meets an input so few times that moving it
/// would cost more than that. Rows out of use may hold anything, and are not read in place.
template <class E>
inline bool pays_in_place(const Plan& plan, const Request& r) {
  constexpr int64_t kFewSteps = 1;
  const Layer& first = r.problem.net->first();
  return E::kReadsInPlace && first.kind == LayerKind::kAffine && first.out == 1 &&
         first.in >= E::kWidth && r.steps <= kFewSteps && !r.ignores_rows && !plan.implicit_first;
}

template <class E>
inline void make_plan(Plan& plan, const Request& r, int64_t copies) {
  using M = VectorMath<typename E::Real>;
  plan.copies = copies;
  plan.implicit_first = first_pays_implicit<E>(r);
  plan.turns_weights = r.support_rows > RowEngine<typename E::Real>::kFewRows;
  fill_plan<E>(plan, *r.problem.net, r.steps > 0 ? r.adapt : nullptr, r.problem.params.task_stride,
               needs_z<M>, is_curved<M>);
  plan.part_rows = part_rows<E>(plan, r);
  plan.reads_in_place = pays_in_place<E>(plan, r);
}

/// Tasks that the row engine stacks: enough rows for an efficient shared product, yet enough groups
/// for many threads.
inline int64_t stacked_tasks(const Request& r) {
  const int64_t rows = larger(r.support_rows > 0 ? r.support_rows : r.query_rows, 1);
  const int64_t wanted = smaller((kStackedRows + rows - 1) / rows, kMaxStackedTasks);
  return larger(1, smaller(wanted, r.problem.tasks / 8));
}

/// Lanes of tasks are faster when they are mostly full and when what one inner step touches stays
/// near the core: parameters, their update, lambda, the sum over tasks, and the activations.
template <class Real>
inline bool prefers_lanes(const Request& r, Plan& plan, Strategy strategy) {
  if (strategy != Strategy::kAuto) return strategy == Strategy::kLanes;
  if (r.problem.tasks * 8 < Simd<Real>::kLanes * 5) return false;
  make_plan<LaneEngine<Real>>(plan, r, 1);
  const double rows = static_cast<double>(r.support_rows + r.query_rows);
  const double row = static_cast<double>(plan.tape_row + r.problem.net->first().in);
  const double vectors = static_cast<double>(plan.block) * (r.wants_grad ? 4 : 2) + row * rows;
  return vectors * INNERLOOP_VECTOR_BYTES <= static_cast<double>(kLaneBudgetBytes);
}

/// Runs `Pass` (built per worker) over all groups.
template <class E, class Pass, class Call>
class Runner {
 public:
  using Real = typename E::Real;
  using Elem = typename E::Elem;

  Runner(const Call& call, const Request& request, const Plan& plan)
      : call_(call), request_(request), plan_(plan) {}

  Status run() {
    const Problem& problem = request_.problem;
    group_ = kIsRow ? plan_.copies : E::kWidth;
    groups_ = (problem.tasks + group_ - 1) / group_;
    const bool sums = request_.wants_grad;
    slots_ = smaller(groups_, kMaxSlots);
    const int64_t slot_reals = sums ? round_up(plan_.sink + request_.rate_grad_size, 16) : 0;
    if (slot_reals) {
      const int64_t fit = kSlotBudgetBytes / (slot_reals * static_cast<int64_t>(sizeof(Real)));
      slots_ = smaller(slots_, larger(fit, 8));
    }
    slot_reals_ = slot_reals;
    const int workers = static_cast<int>(smaller(larger(problem.threads, 1), larger(slots_, 1)));
    if (!lay_out(workers)) {
      refused_bytes() = 0;
      return Status::kOutOfMemory;
    }
    Workspace memory(total_bytes_);
    if (!memory.data()) return Status::kOutOfMemory;
    base_ = static_cast<char*>(memory.data());
    prepare();
    parallel_for(
        slots_, workers,
        [](void* self, int64_t slot, int worker) {
          static_cast<Runner*>(self)->run_slot(slot, worker);
        },
        this);
    if (sums) sum_slots();
    return static_cast<Status>(status_);
  }

 private:
  static constexpr bool kIsRow = sizeof(Elem) == sizeof(Real);

  int64_t sink_size() const { return request_.wants_grad ? plan_.sink : 0; }
  static int64_t aligned(int64_t bytes) { return round_up(bytes, 64); }

  /// [prepared leaves][slots][worker 0: lane sums, workspace][worker 1] ...
  bool lay_out(int workers) {
    E engine(request_.problem, plan_, typename E::Shared{});
    Pass pass(engine, plan_, call_);
    Carver<Elem> c(nullptr);
    c.take(kIsRow ? 0 : sink_size());
    pass.carve(c);
    const int64_t elem = sizeof(Elem), real = sizeof(Real);
    Carver<char> total(nullptr);
    if constexpr (kIsRow) {
      total.take(aligned(plan_.entries * static_cast<int64_t>(sizeof(PreparedLeaf<Real>))));
      total.take(aligned(prepared_size<Real>(plan_)), real);
    }
    slots_at_ = total.used();
    total.take(slots_, slot_reals_ * real);
    workers_at_ = aligned(total.used());
    worker_bytes_ = c.fits() ? aligned(c.used() * elem) + 64 : 0;
    total.take(workers, worker_bytes_);
    total_bytes_ = total.used() + 128;
    return c.fits() && total.fits();
  }

  void prepare() {
    if constexpr (kIsRow) {
      auto* leaves = reinterpret_cast<PreparedLeaf<Real>*>(base_);
      const int64_t used =
          aligned(plan_.entries * static_cast<int64_t>(sizeof(PreparedLeaf<Real>)));
      for (int l = 0; l < plan_.entries; ++l) leaves[l] = PreparedLeaf<Real>{};
      prepare_leaves<Real>(request_.problem, plan_, leaves, reinterpret_cast<Real*>(base_ + used));
      shared_ = leaves;
    }
  }

  Real* slot(int64_t index) const {
    return reinterpret_cast<Real*>(base_ + slots_at_) + index * slot_reals_;
  }

  void run_slot(int64_t index, int worker) {
    Elem* memory = reinterpret_cast<Elem*>(base_ + workers_at_ + worker * worker_bytes_);
    E engine = make_engine();
    Pass pass(engine, plan_, call_);
    Carver<Elem> c(memory);
    Elem* sink = c.take(kIsRow ? 0 : sink_size());
    pass.carve(c);
    if (sink_size()) {
      if constexpr (kIsRow) sink = slot(index);
      std::memset(static_cast<void*>(sink), 0, sink_size() * sizeof(Elem));
      Real* rates = slot(index) + plan_.sink;
      std::memset(rates, 0, request_.rate_grad_size * sizeof(Real));
      engine.set_sinks(sink, rates);
    }
    const int64_t tasks = request_.problem.tasks;
    const int64_t last = groups_ * (index + 1) / slots_;
    for (int64_t i = groups_ * index / slots_; i < last; ++i) {
      engine.select(i * group_, smaller(group_, tasks - i * group_));
      pass.run();
    }
    if constexpr (!kIsRow) E::finish_sink(slot(index), sink, sink_size());
    if (engine.status() != Status::kOk) {
      __atomic_store_n(&status_, static_cast<int>(engine.status()), __ATOMIC_RELAXED);
    }
  }

  E make_engine() const {
    if constexpr (kIsRow) {
      return E(request_.problem, plan_, shared_);
    } else {
      return E(request_.problem, plan_, typename E::Shared{});
    }
  }

  /// Sums over slots, in order, into the leaves that all tasks share.
  void sum_slots() {
    constexpr int64_t kSerial = 1 << 16;
    chunks_ = plan_.sink * slots_ > kSerial ? 4 * larger(request_.problem.threads, 1) : 1;
    parallel_for(
        chunks_, request_.problem.threads,
        [](void* self, int64_t chunk, int) { static_cast<Runner*>(self)->sum_chunk(chunk); }, this);
  }
  void sum_chunk(int64_t chunk) {
    const auto& call = call_;
    if constexpr (std::is_same_v<Call, MetaGradCall>) {
      for (int l = 0; l < plan_.entries; ++l) {
        const LayerPlan& p = plan_.layers[l];
        if (p.weight_leaf >= 0 && !p.weight_per_task) {
          Real* out = static_cast<Real*>(call.grads[p.weight_leaf]);
          const int64_t rows = p.weight_rows(), cols = p.weight_cols();
          const int64_t last = rows * (chunk + 1) / chunks_;
          for (int64_t i = rows * chunk / chunks_; i < last; ++i) {
            sum_row(out + i * cols, p.sink_w + i * p.weight_ld(), cols);
          }
        }
        if (chunk == 0 && p.bias_leaf >= 0 && !p.bias_per_task) {
          sum_row(static_cast<Real*>(call.grads[p.bias_leaf]), p.sink_b, p.out);
        }
      }
      if (chunk == 0 && call.out_rate_grad && call.rates.task_stride == 0) {
        sum_row(static_cast<Real*>(call.out_rate_grad), plan_.sink, call.rate_grad_size);
      }
    }
  }
  void sum_row(Real* out, int64_t offset, int64_t n) const {
    using S = Simd<Real>;
    int64_t j = 0;
    for (; j + S::kLanes <= n; j += S::kLanes) {
      typename S::V total{};
      for (int64_t s = 0; s < slots_; ++s) total += S::load(slot(s) + offset + j);
      S::store(out + j, total);
    }
    for (; j < n; ++j) {
      Real total = 0;
      for (int64_t s = 0; s < slots_; ++s) total += slot(s)[offset + j];
      out[j] = total;
    }
  }

  const Call& call_;
  const Request& request_;
  const Plan& plan_;
  int64_t group_ = 1, groups_ = 0, slots_ = 0, slot_reals_ = 0, chunks_ = 1;
  int64_t slots_at_ = 0, workers_at_ = 0, worker_bytes_ = 0, total_bytes_ = 0;
  char* base_ = nullptr;
  const PreparedLeaf<Real>* shared_ = nullptr;
  int status_ = 0;
};

}  // namespace INNERLOOP_LEVEL
}  // namespace innerloop
