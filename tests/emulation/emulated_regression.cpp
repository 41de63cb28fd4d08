// The linear-regression study's kernels on emulated blocks. A kernel is a phase of the emulation,
// all its blocks together: between kernels lies the order of the stream. Threads of one number in
// several blocks count as one.
#include "bindings/arguments.h"
#include "cuda/regression.h"
#include "emulated_block.h"
#include "regression/device_trials.h"

namespace innerloop {

void define_emulated_regression(py::module_& m);

namespace {

/// What the next calls must use; 0: what is best on a GPU.
int fixed_threads = 0;
int64_t fixed_blocks = 0, kernels = 0;
constexpr int64_t kGuard = 4096;  // cells behind each memory that refuse to be touched

class EmulatedRegressionTarget {
 public:
  using Cell = WatchedCell<double>;

  int threads(int best) const { return fixed_threads ? fixed_threads : best; }
  int64_t blocks(int64_t best) const {
    return fixed_blocks && fixed_blocks < best ? fixed_blocks : best;
  }
  template <class Item>
  const char* launch(const RegressionLaunch<Cell>& launch, int threads) const {
    ++kernels;
    const EmulatedBlock block(threads);
    for (int64_t index = 0; index < launch.blocks; ++index) {
      std::vector<Cell> shared(static_cast<size_t>(launch.block_cells + kGuard));
      Cell* workspace = shared.data();
      if (launch.workspace) {  // cells of no array yet, which threads will lay out
        workspace = launch.workspace + index * launch.block_cells;
        for (int64_t i = 0; i < launch.block_cells; ++i) new (workspace + i) Cell;
      }
      run_items<Item>(block, launch, workspace, index);
    }
    block.barrier();
    return nullptr;
  }
};

}  // namespace

int64_t regression_scratch(const RegressionTrialsCall& call) {
  return with_regression(EmulatedRegressionTarget(), call,
                         [](auto operation) { return operation.scratch(); });
}

/// The caller's scratch memory is of the size that is counted here, of cells that watch their use.
const char* launch_regression(const RegressionTrialsCall& call, void*, double*) {
  using Cell = EmulatedRegressionTarget::Cell;
  std::vector<Cell> scratch(static_cast<size_t>(regression_scratch(call) + kGuard));
  return with_regression(EmulatedRegressionTarget(), call,
                         [&](auto operation) { return operation.run(scratch.data()); });
}

void define_emulated_regression(py::module_& m) {
  m.def("fix_regression_grid", [](int threads, int64_t blocks) {
    fixed_threads = threads;
    fixed_blocks = blocks;
  });
  m.def("regression_kernels", [] { return kernels; });
}

}  // namespace innerloop
