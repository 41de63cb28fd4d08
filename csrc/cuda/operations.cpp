// The operations on CUDA: what block/operations.h plans, launched. Compiled without nvcc.
#include "block/operations.h"

#include <cstring>

#include "cuda/device.h"
#include "cuda/grid_launch.h"
#include "cuda/task_launch.h"

namespace innerloop {
namespace {

/// Launches on the context's stream. The context's device is current.
class CudaTarget {
 public:
  explicit CudaTarget(const BlockContext& context)
      : device_(context.device), stream_(context.stream) {}

  const char* upload(void* to, const void* from, int64_t bytes) {
    TablePiece piece{static_cast<char*>(to), static_cast<int>(bytes), {}};
    std::memcpy(piece.bytes, from, static_cast<size_t>(bytes));
    return launch_store(piece, stream_);
  }
  template <class Real, template <class> class Pass, class Call>
  const char* launch(const Launch<Call>& launch, const Schedule& schedule) {
    return launch_tasks<Real, Pass, Call>(launch, schedule, device_, stream_);
  }
  template <class Real>
  const char* sum(const SumLaunch& launch, int64_t blocks) {
    return launch_sum<Real>(launch, blocks, stream_);
  }

 private:
  int device_;
  void* stream_;
};

}  // namespace

const BlockKernels& block_kernels(bool is_float64) {
  static constexpr BlockKernels kFloat32 = BlockOperations<CudaTarget, float>::kTable;
  static constexpr BlockKernels kFloat64 = BlockOperations<CudaTarget, double>::kTable;
  return is_float64 ? kFloat64 : kFloat32;
}

}  // namespace innerloop
