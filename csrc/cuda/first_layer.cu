// The first layer's products for all tasks at once (block/first_layer.h). CMake compiles this file
// once for each INNERLOOP_REAL.
#include <cuda_runtime.h>

#include "cuda/device_block.h"
#include "cuda/grid_launch.h"
#include "cuda/launch.h"

namespace innerloop {
namespace {

template <class Real>
__global__ void __launch_bounds__(kProductThreads, kProductBlocks)
    inputs_kernel(const __grid_constant__ FirstLayerLaunch launch) {
  extern __shared__ __align__(16) char dynamic[];
  multiply_inputs<DeviceBlock, Real>(DeviceBlock(launch.tf32), launch,
                                     reinterpret_cast<Real*>(dynamic), blockIdx.x);
}

template <class Real>
__global__ void __launch_bounds__(kProductThreads, kProductBlocks)
    cotangents_kernel(const __grid_constant__ FirstLayerLaunch launch) {
  extern __shared__ __align__(16) char dynamic[];
  multiply_cotangents<DeviceBlock, Real>(DeviceBlock(launch.tf32), launch,
                                         reinterpret_cast<Real*>(dynamic), blockIdx.x);
}

/// The staging memory is at most 48 KiB, which every kernel may take.
template <class Real>
LaunchSize size_of(int64_t blocks) {
  return {blocks, kProductThreads,
          static_cast<size_t>(product_staging_size<Real>()) * sizeof(Real)};
}

}  // namespace

template <class Real>
const char* launch_inputs(const FirstLayerLaunch& launch, int64_t blocks, void* stream) {
  static const KernelHandle kernel(reinterpret_cast<const void*>(&inputs_kernel<Real>));
  return kernel.launch(size_of<Real>(blocks), &launch, stream);
}

template <class Real>
const char* launch_cotangents(const FirstLayerLaunch& launch, int64_t blocks, void* stream) {
  static const KernelHandle kernel(reinterpret_cast<const void*>(&cotangents_kernel<Real>));
  return kernel.launch(size_of<Real>(blocks), &launch, stream);
}

template const char* launch_inputs<INNERLOOP_REAL>(const FirstLayerLaunch&, int64_t, void*);
template const char* launch_cotangents<INNERLOOP_REAL>(const FirstLayerLaunch&, int64_t, void*);

}  // namespace innerloop
