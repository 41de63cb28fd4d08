// The study's trials on a GPU.
//
//   SumChunk   an item is a chunk of a trial's tasks: draws them and sums their systems
//   AddChunks  an item is a number of a trial's systems: adds the chunks' sums in order
//   Estimate   an item is an estimator of a trial: solves, and writes its excess risks
//
// Each is a kernel, and each item belongs to one thread, so that threads of a kernel share nothing
// and the stream's order is all that kernels need. Items of neighbouring threads belong to
// neighbouring trials: what they read and write of the sums lies side by side.
#pragma once

#include "block/phase.h"
#include "regression/estimates.h"
#include "regression/one_lane.h"

namespace innerloop {

/// What a kernel is told.
template <class Cell>
struct RegressionLaunch {
  RegressionTrialsCall call;
  int64_t chunks;
  Cell* chunk_sums;  // [kSystems * shape.system(), chunks, trials]
  Cell* totals;      // [kSystems * shape.system(), trials]: chunk_sums if there is one chunk
  Cell* workspace;   // of all blocks, where it does not lie in shared memory
  int64_t blocks, block_cells;  // of a grid, and what a block has of the workspace
};

/// Static shared memory that a block may use on every GPU.
constexpr int64_t kSharedBytes = 48 * 1024;

/// The largest block of 32, 64 or 128 threads, each with `size` numbers, that shared memory holds.
constexpr int threads_of(int64_t size) {
  int threads = 128;
  while (threads > 32 && threads * size * int64_t{sizeof(double)} > kSharedBytes) threads /= 2;
  return threads;
}

/// A Worker of the dimension kP as the kernels need it: kSize numbers of shared memory a thread if
/// the dimension is known, in which case blocks have kThreads threads.
template <template <class, int> class Worker, int kP>
struct WorkerSize {
  static constexpr int64_t kSize =
      kP ? Worker<OneLane<double>, kP>::size(RegressionShape<kP>{kP, kP}) : 0;
  static constexpr int kThreads = kP ? threads_of(kSize) : 64;
  static_assert(kSize * kThreads * int64_t{sizeof(double)} <= kSharedBytes,
                "the dimension is too large for shared memory");
};

template <class Cell, int kP>
struct SumChunk : WorkerSize<ChunkSums, kP> {
  using L = OneLane<Cell>;
  using Shape = RegressionShape<kP>;

  static int64_t size(const Shape& shape) { return ChunkSums<L, kP>::size(shape); }
  IL_INLINE static int64_t items(const RegressionLaunch<Cell>& launch) {
    return launch.chunks * launch.call.trials;
  }
  IL_INLINE static void run(const RegressionLaunch<Cell>& launch, Strided<Cell> workspace,
                            int64_t item) {
    const RegressionTrialsCall& call = launch.call;
    const Shape shape{call.law.dimension, call.law.samples};
    const int64_t trial = call.first_trial + item % call.trials;
    ChunkSums<L, kP> chunk(shape, call.law, workspace);
    chunk.run(Philox<L>(call.law.key), L::counting(static_cast<uint64_t>(trial)),
              item / call.trials, call.tasks);
    const Strided<Cell> out{launch.chunk_sums + item, items(launch)};
    for (int64_t i = 0; i < kSystems * shape.system(); ++i) out[i] = chunk.sums[i];
  }
};

template <class Cell>
struct AddChunks {
  static constexpr int64_t kSize = 0;
  static constexpr int kThreads = 128;

  IL_INLINE static int64_t items(const RegressionLaunch<Cell>& launch) {
    const RegressionShape<0> shape{launch.call.law.dimension, launch.call.law.samples};
    return kSystems * shape.system() * launch.call.trials;
  }
  IL_INLINE static void run(const RegressionLaunch<Cell>& launch, Strided<Cell>, int64_t item) {
    const int64_t trials = launch.call.trials, entry = item / trials;
    const Strided<Cell> sums{launch.chunk_sums + entry * launch.chunks * trials + item % trials,
                             trials};
    double total = 0;
    for (int64_t chunk = 0; chunk < launch.chunks; ++chunk) total += sums[chunk];
    launch.totals[item] = total;
  }
};

template <class Cell, int kP>
struct Estimate : WorkerSize<Estimates, kP> {
  using L = OneLane<Cell>;
  using Shape = RegressionShape<kP>;

  static int64_t size(const Shape& shape) { return Estimates<L, kP>::size(shape); }
  IL_INLINE static int64_t items(const RegressionLaunch<Cell>& launch) {
    return (1 + launch.call.rates) * launch.call.trials;
  }
  IL_INLINE static void run(const RegressionLaunch<Cell>& launch, Strided<Cell> workspace,
                            int64_t item) {
    const int64_t trials = launch.call.trials, trial = item % trials;
    Estimates<L, kP>(launch.call, workspace)
        .run(Strided<Cell>{launch.totals + trial, trials}, trial, 1, item / trials);
  }
};

/// A block's share of the items. `workspace` holds the arrays of all its threads.
template <class Item, class Block, class Cell>
IL_INLINE void run_items(const Block& block, const RegressionLaunch<Cell>& launch, Cell* workspace,
                         int64_t block_index) {
  const int64_t items = Item::items(launch);
  const int threads = block.threads();
  IL_ROLLED
  for (int64_t first = block_index * threads; first < items; first += launch.blocks * threads) {
    block.spread(1, threads, [&](int, int thread) {
      if (first + thread >= items) return;
      Item::run(launch, Strided<Cell>{workspace + thread, threads}, first + thread);
    });
  }
}

/// Where a call's sums and workspaces lie, and its launches. `Target` launches:
///   Cell                         how memory holds a number
///   threads(n), blocks(n)        the size of a block and of a grid for which n is best
///   launch<Item>(launch, threads)   null, or what went wrong
template <class Target, int kP>
class RegressionOperation {
 public:
  using Cell = typename Target::Cell;

  RegressionOperation(const Target& target, const RegressionTrialsCall& call)
      : target_(target), shape_{call.law.dimension, call.law.samples} {
    launch_.call = call;
    launch_.chunks = chunks_of(call.tasks);
    sum_ = grid<SumChunk<Cell, kP>>();
    add_ = grid_of(AddChunks<Cell>::items(launch_), target.threads(AddChunks<Cell>::kThreads));
    solve_ = grid<Estimate<Cell, kP>>();
  }

  /// The cells of scratch memory that a call needs; 2^48 if they are too many to count.
  int64_t scratch() {
    Carver<Cell> carver(nullptr);
    lay_out(carver);
    return carver.used();
  }
  const char* run(Cell* scratch) {
    if (launch_.call.trials == 0) return nullptr;
    Carver<Cell> carver(scratch);
    lay_out(carver);
    const char* error = launch<SumChunk<Cell, kP>>(sum_);
    if (!error && launch_.chunks > 1) error = launch<AddChunks<Cell>>(add_);
    return error ? error : launch<Estimate<Cell, kP>>(solve_);
  }

 private:
  struct Grid {
    int64_t blocks, block_cells;
    int threads;
  };
  static constexpr int64_t kMostBlocks = int64_t{1} << 30;
  /// Of a general dimension: as many as keep a large GPU busy, with a workspace of 1 GiB in all.
  static constexpr int64_t kGeneralBlocks = 512, kGeneralCells = int64_t{1} << 27;

  Grid grid_of(int64_t items, int threads, int64_t size = 0, int64_t most = kMostBlocks) const {
    const int64_t blocks = (items + threads - 1) / threads;
    return {target_.blocks(blocks < most ? blocks : most), threads * size, threads};
  }
  template <class Item>
  Grid grid() const {
    const int64_t items = Item::items(launch_), size = Item::size(shape_);
    int threads = target_.threads(Item::kThreads);
    if constexpr (kP > 0) {
      return grid_of(items, threads, size);
    } else {
      while (threads > 1 && threads * size > kGeneralCells) threads /= 2;
      const int64_t fitting = kGeneralCells / (threads * size);
      const int64_t most = fitting < kGeneralBlocks ? fitting : kGeneralBlocks;
      return grid_of(items, threads, size, most < 1 ? 1 : most);
    }
  }

  void lay_out(Carver<Cell>& carver) {
    const int64_t numbers = kSystems * shape_.system(), trials = launch_.call.trials;
    launch_.chunk_sums = carver.take(numbers, launch_.chunks * trials);
    launch_.totals = launch_.chunks > 1 ? carver.take(numbers, trials) : launch_.chunk_sums;
    if (kP > 0) return;  // the workspace lies in shared memory
    const int64_t for_sums = sum_.blocks * sum_.block_cells;
    const int64_t for_solving = solve_.blocks * solve_.block_cells;
    launch_.workspace = carver.take(for_sums > for_solving ? for_sums : for_solving);
  }
  template <class Item>
  const char* launch(const Grid& grid) {
    launch_.blocks = grid.blocks;
    launch_.block_cells = grid.block_cells;
    return target_.template launch<Item>(launch_, grid.threads);
  }

  const Target& target_;
  RegressionShape<kP> shape_;
  RegressionLaunch<Cell> launch_{};
  Grid sum_, add_, solve_;
};

/// Calls f(an operation of the call's dimension).
template <class Target, class F>
auto with_regression(const Target& target, const RegressionTrialsCall& call, F&& f) {
  switch (call.law.dimension) {
    case 1:
      return f(RegressionOperation<Target, 1>(target, call));
    case 2:
      return f(RegressionOperation<Target, 2>(target, call));
    case 3:
      return f(RegressionOperation<Target, 3>(target, call));
    case 4:
      return f(RegressionOperation<Target, 4>(target, call));
    default:
      return f(RegressionOperation<Target, 0>(target, call));
  }
}

}  // namespace innerloop
