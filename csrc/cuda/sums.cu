// The sums over blocks, and descriptions that are too long for kernel parameters.
#include <cuda_runtime.h>

#include "cuda/device_block.h"
#include "cuda/grid_launch.h"
#include "cuda/launch.h"

namespace innerloop {
namespace {

template <class Real>
__global__ void __launch_bounds__(kSumColumns* kSumLanes)
    sum_kernel(const __grid_constant__ SumLaunch launch) {
  __shared__ Real partial[kSumColumns * kSumLanes];
  sum_slots<DeviceBlock, Real>(DeviceBlock{}, launch, partial, blockIdx.x);
}

__global__ void store_kernel(const __grid_constant__ TablePiece piece) {
  for (int i = static_cast<int>(threadIdx.x); i < piece.size; i += static_cast<int>(blockDim.x)) {
    piece.to[i] = piece.bytes[i];
  }
}

}  // namespace

template <class Real>
const char* launch_sum(const SumLaunch& launch, int64_t blocks, void* stream) {
  static const KernelHandle kernel(reinterpret_cast<const void*>(&sum_kernel<Real>));
  return kernel.launch({blocks, kSumColumns * kSumLanes}, &launch, stream);
}

const char* launch_store(const TablePiece& piece, void* stream) {
  static const KernelHandle kernel(reinterpret_cast<const void*>(&store_kernel));
  return kernel.launch({1, 128}, &piece, stream);
}

template const char* launch_sum<float>(const SumLaunch&, int64_t, void*);
template const char* launch_sum<double>(const SumLaunch&, int64_t, void*);

}  // namespace innerloop
