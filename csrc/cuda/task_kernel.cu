// The tasks' kernel of one operation, strategy and precision: one block for a group of tasks at a
// time (block/kernels.h). CMake compiles this file once for each of its launches (task_launch.h),
// named by INNERLOOP_KIND, INNERLOOP_REAL, INNERLOOP_PASS and INNERLOOP_CALL.
//
// The frame lies in static shared memory, the workspace in dynamic shared memory (resident,
// cluster, low-rank where it fits) or in the caller's scratch memory (streamed), as sums over tasks
// of the low-rank and cluster strategies. At most kMaxThreads threads; block/schedule.h keeps to
// that and to the shared memory that the device allows. Kernels for clusters are empty for
// architectures without them, where nothing launches them.
#include <cuda_runtime.h>

#include <type_traits>

#include "cuda/device_block.h"
#include "cuda/launch.h"
#include "cuda/task_launch.h"

namespace innerloop {
namespace {

template <class Block, class Real, template <class> class Pass, class Call>
__device__ __forceinline__ void run_block(const Launch<Call>& launch) {
  using F = Frame<Block, Real, Pass, Call>;
  extern __shared__ __align__(16) char dynamic[];
  __shared__ __align__(16) char frame[sizeof(F)];
  static_assert(sizeof(F) + 1024 <= kFrameBytes, "schedules count on a frame of this size");
  static_assert(sizeof(Launch<Call>) <= 4096, "kernel parameters are limited to 4 KiB");
  BlockMemory<Real> memory;
  Real* shared = reinterpret_cast<Real*>(dynamic);
  if (launch.options.has_staging) {
    memory.staging = shared;
    shared += launch.staging_size;
  }
  memory.workspace = launch.workspace
                         ? static_cast<Real*>(launch.workspace) + blockIdx.x * launch.workspace_size
                         : shared;
  if (launch.far) memory.far = static_cast<Real*>(launch.far) + blockIdx.x * launch.far_size;
  const unsigned index = blockIdx.x / static_cast<unsigned>(launch.options.cluster);
  run_tasks<Block, Real, Pass, Call>(Block(launch.options.tf32), launch,
                                     reinterpret_cast<F*>(frame), memory, index);
}

template <class Block, class Real, template <class> class Pass, class Call>
__global__ void __launch_bounds__(kMaxThreads, 1)
    task_kernel(const __grid_constant__ Launch<Call> launch) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 900
  if constexpr (!Block::kCluster) run_block<Block, Real, Pass, Call>(launch);
#else
  run_block<Block, Real, Pass, Call>(launch);
#endif
}

template <BlockKind kKind>
using BlockOf =
    std::conditional_t<kKind == BlockKind::kFactors, FactorBlock,
                       std::conditional_t<kKind == BlockKind::kCluster, ClusterBlock, DeviceBlock>>;

}  // namespace

template <BlockKind kKind, class Real, template <class> class Pass, class Call>
const char* launch_tasks(const Launch<Call>& launch, const Schedule& schedule, int device,
                         void* stream) {
  static KernelHandle kernel(
      reinterpret_cast<const void*>(&task_kernel<BlockOf<kKind>, Real, Pass, Call>));
  if (const char* error = kernel.raise_shared_memory(device)) return error;
  LaunchSize size{launch.blocks * schedule.cluster, schedule.threads};
  size.shared_bytes = static_cast<size_t>(schedule.shared_bytes);
  size.cluster = kKind == BlockKind::kCluster ? schedule.cluster : 0;
  return kernel.launch(size, &launch, stream);
}

template const char* launch_tasks<BlockKind::INNERLOOP_KIND, INNERLOOP_REAL, INNERLOOP_PASS,
                                  INNERLOOP_CALL>(const Launch<INNERLOOP_CALL>&, const Schedule&,
                                                  int, void*);

}  // namespace innerloop
