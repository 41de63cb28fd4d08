// The linear-regression study's trials on CUDA. Compiled without contraction like
// cpu/regression.cpp, with the same correctly rounded operations in the same order: a GPU gives the
// CPU's bits.
//
// Of a dimension that is known, a block's workspace lies in static shared memory and needs no
// opting in; of others in scratch memory.
#include <cuda_runtime.h>

#include "cuda/device_block.h"
#include "cuda/launch.h"
#include "cuda/regression.h"
#include "regression/device_trials.h"

namespace innerloop {
namespace {

/// A block whose size the compiler knows, and so where each number of its workspace lies.
template <int kThreads>
struct SizedBlock : DeviceBlock {
  IL_HD SizedBlock() : DeviceBlock() {}
  IL_HD int threads() const { return kThreads; }
};

template <class Item>
__global__ void __launch_bounds__(Item::kThreads, 1)
    regression_kernel(const __grid_constant__ RegressionLaunch<double> launch) {
  if constexpr (Item::kSize > 0) {
    __shared__ double workspace[Item::kSize * Item::kThreads];
    run_items<Item>(SizedBlock<Item::kThreads>(), launch, workspace, blockIdx.x);
  } else {
    run_items<Item>(DeviceBlock(), launch, launch.workspace + blockIdx.x * launch.block_cells,
                    blockIdx.x);
  }
}

/// Launches on a stream of the current device.
class CudaRegressionTarget {
 public:
  using Cell = double;

  explicit CudaRegressionTarget(void* stream) : stream_(stream) {}

  int threads(int best) const { return best; }
  int64_t blocks(int64_t best) const { return best; }
  template <class Item>
  const char* launch(const RegressionLaunch<double>& launch, int threads) const {
    static const KernelHandle kernel(reinterpret_cast<const void*>(&regression_kernel<Item>));
    return kernel.launch({launch.blocks, threads}, &launch, stream_);
  }

 private:
  void* stream_;
};

}  // namespace

int64_t regression_scratch(const RegressionTrialsCall& call) {
  return with_regression(CudaRegressionTarget(nullptr), call,
                         [](auto operation) { return operation.scratch(); });
}

const char* launch_regression(const RegressionTrialsCall& call, void* stream, double* scratch) {
  return with_regression(CudaRegressionTarget(stream), call,
                         [=](auto operation) { return operation.run(scratch); });
}

}  // namespace innerloop
