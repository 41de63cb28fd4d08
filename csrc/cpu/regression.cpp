// The meta linear-regression experiment of one instruction level. CMake compiles this file once per
// level like kernels.h, but without fused multiply-adds: every level gives the same bits.
#include "core/regression.h"

#include "cpu/lanes.h"
#include "cpu/parallel.h"
#include "regression/estimates.h"

namespace innerloop {
namespace INNERLOOP_LEVEL {
namespace {

using V = Lanes::V;
constexpr int64_t kLanes = Lanes::kLanes;
constexpr int64_t kBlock = 16;  // trials that one work item takes: a multiple of every kLanes

/// Calls Worker(call, philox, memory).run(first trial, trials) for all trials.
template <class Worker, class Call>
Status run(const Call& call) {
  const typename Worker::Shape shape{call.law.dimension, call.law.samples};
  const int64_t items = (call.trials + kBlock - 1) / kBlock;
  const int64_t size = Worker::size(shape) * static_cast<int64_t>(sizeof(V));
  const int workers = static_cast<int>(smaller(larger(call.threads, 1), larger(items, 1)));
  Workspace memory(workers * size);
  if (!memory.data()) return Status::kOutOfMemory;
  struct Context {
    const Call& call;
    Philox<Lanes> philox;
    char* base;
    int64_t size;
  } context{call, Philox<Lanes>(call.law.key), static_cast<char*>(memory.data()), size};
  parallel_for(
      items, workers,
      [](void* pointer, int64_t item, int worker) {
        Context& c = *static_cast<Context*>(pointer);
        Worker lanes(c.call, c.philox, reinterpret_cast<V*>(c.base + worker * c.size));
        const int64_t last = smaller(c.call.trials, (item + 1) * kBlock);
        for (int64_t first = item * kBlock; first < last; first += kLanes) {
          lanes.run(first, smaller(kLanes, last - first));
        }
      },
      &context);
  return Status::kOk;
}

/// Works on trials, kLanes at a time.
template <int kP>
class TrialLanes {
 public:
  using Shape = RegressionShape<kP>;
  static int64_t size(const Shape& s) {
    return kSystems * s.system() + ChunkSums<Lanes, kP>::size(s) + Estimates<Lanes, kP>::size(s);
  }

  TrialLanes(const RegressionTrialsCall& call, const Philox<Lanes>& philox, V* memory)
      : call_(call),
        philox_(philox),
        shape_{call.law.dimension, call.law.samples},
        total_(memory),
        chunk_(shape_, call.law, memory += kSystems * shape_.system()),
        estimates_(call, memory + ChunkSums<Lanes, kP>::size(shape_)) {}

  /// Trials first .. first + kLanes - 1 of the call, of which `used` are wanted.
  void run(int64_t first, int64_t used) {
    const int64_t size = kSystems * shape_.system();
    const auto trial = Lanes::counting(static_cast<uint64_t>(call_.first_trial + first));
    for (int64_t i = 0; i < size; ++i) total_[i] = V{};
    for (int64_t chunk = 0; chunk < chunks_of(call_.tasks); ++chunk) {
      chunk_.run(philox_, trial, chunk, call_.tasks);
      for (int64_t i = 0; i < size; ++i) total_[i] += chunk_.sums[i];
    }
    for (int64_t e = 0; e <= call_.rates; ++e) estimates_.run(total_, first, used, e);
  }

 private:
  const RegressionTrialsCall& call_;
  const Philox<Lanes>& philox_;
  Shape shape_;
  V* total_;
  ChunkSums<Lanes, kP> chunk_;
  Estimates<Lanes, kP> estimates_;
};

/// Writes out the tasks instead of using them.
class TaskWriter {
 public:
  using Shape = RegressionShape<0>;
  static int64_t size(const Shape& s) { return TaskLanes<Lanes, 0>::size(s) + s.p() * s.p(); }

  TaskWriter(const RegressionTasksCall& call, const Philox<Lanes>& philox, V* memory)
      : call_(call),
        philox_(philox),
        shape_{call.law.dimension, call.law.samples},
        task_(shape_, call.law, memory),
        covariance_(memory + TaskLanes<Lanes, 0>::size(shape_)) {}

  void run(int64_t first, int64_t used) {
    const int64_t p = shape_.p();
    const auto trial = Lanes::counting(static_cast<uint64_t>(call_.first_trial + first));
    for (int64_t t = 0; t < call_.tasks; ++t) {
      task_.draw(philox_, trial, t);
      task_.covariance(covariance_);
      for (int64_t lane = 0; lane < used; ++lane) {
        const int64_t row = (first + lane) * call_.tasks + t;
        put(call_.theta, row, 1, 0, p, task_.theta, lane);
        put(call_.variance, row, 1, 0, 1, task_.theta + p, lane);
        put(call_.covariance, row, 1, 0, p * p, covariance_, lane);
        for (int side = 0; side < 2; ++side) {
          put(call_.gram, row, 2, side, p * p, task_.gram[side], lane);
          put(call_.moment, row, 2, side, p, task_.moment[side], lane);
        }
      }
    }
  }

 private:
  static void put(double* out, int64_t row, int64_t sides, int64_t side, int64_t count,
                  const V* from, int64_t lane) {
    for (int64_t i = 0; i < count; ++i) out[(row * sides + side) * count + i] = from[i][lane];
  }

  const RegressionTasksCall& call_;
  const Philox<Lanes>& philox_;
  Shape shape_;
  TaskLanes<Lanes, 0> task_;
  V* covariance_;
};

Status trials(const RegressionTrialsCall& call) {
  switch (call.law.dimension) {
    case 1:
      return run<TrialLanes<1>>(call);
    case 2:
      return run<TrialLanes<2>>(call);
    case 3:
      return run<TrialLanes<3>>(call);
    case 4:
      return run<TrialLanes<4>>(call);
    default:
      return run<TrialLanes<0>>(call);
  }
}

Status tasks(const RegressionTasksCall& call) { return run<TaskWriter>(call); }

Status random_words(const RandomWordsCall& call) {
  const Philox<Lanes> philox(call.key);
  for (int64_t i = 0; i < call.count; ++i) {
    Lanes::U word[4];
    for (int k = 0; k < 4; ++k) word[k] = Lanes::words(call.counters[4 * i + k]);
    philox.scramble(word);
    for (int k = 0; k < 4; ++k) call.words[4 * i + k] = static_cast<uint32_t>(word[k][i % kLanes]);
  }
  return Status::kOk;
}

}  // namespace

extern const RegressionKernels kRegression;
const RegressionKernels kRegression = {trials, tasks, random_words};

}  // namespace INNERLOOP_LEVEL
}  // namespace innerloop
