// The tasks' kernel of one operation and precision: one block for a group of tasks at a time
// (block/kernels.h). CMake compiles this file once for each of its launches (task_launch.h), named
// by INNERLOOP_REAL, INNERLOOP_PASS and INNERLOOP_CALL.
//
// The frame lies in static shared memory, the workspace in dynamic shared memory. At most
// kMaxThreads threads; block/schedule.h keeps to that and to the shared memory that the device
// allows.
#include <cuda_runtime.h>

#include "cuda/device_block.h"
#include "cuda/launch.h"
#include "cuda/task_launch.h"

namespace innerloop {
namespace {

template <class Real, template <class> class Pass, class Call>
__global__ void __launch_bounds__(kMaxThreads, 1)
    task_kernel(const __grid_constant__ Launch<Call> launch) {
  using F = Frame<DeviceBlock, Real, Pass, Call>;
  extern __shared__ __align__(16) char dynamic[];
  __shared__ __align__(16) char frame[sizeof(F)];
  static_assert(sizeof(F) + 1024 <= kFrameBytes, "schedules count on a frame of this size");
  static_assert(sizeof(Launch<Call>) <= 4096, "kernel parameters are limited to 4 KiB");
  run_tasks<DeviceBlock, Real, Pass, Call>(DeviceBlock(launch.options.tf32), launch,
                                           reinterpret_cast<F*>(frame),
                                           reinterpret_cast<Real*>(dynamic), blockIdx.x);
}

}  // namespace

template <class Real, template <class> class Pass, class Call>
const char* launch_tasks(const Launch<Call>& launch, const Schedule& schedule, int device,
                         void* stream) {
  static KernelHandle kernel(reinterpret_cast<const void*>(&task_kernel<Real, Pass, Call>));
  if (const char* error = kernel.raise_shared_memory(device)) return error;
  LaunchSize size{launch.blocks, schedule.threads};
  size.shared_bytes = static_cast<size_t>(schedule.workspace_bytes);
  return kernel.launch(size, &launch, stream);
}

template const char* launch_tasks<INNERLOOP_REAL, INNERLOOP_PASS, INNERLOOP_CALL>(
    const Launch<INNERLOOP_CALL>&, const Schedule&, int, void*);

}  // namespace innerloop
