#include "cuda/launch.h"

#include "cuda/device.h"
#include "cuda/runtime_error.h"

namespace innerloop {

const char* KernelHandle::raise_shared_memory(int device) {
  const uint64_t bit = device < 64 ? uint64_t{1} << device : 0;
  if (raised_.load() & bit) return nullptr;
  DeviceFacts facts{};
  if (const char* error = device_facts(device, &facts)) return error;
  cudaFuncAttributes attributes{};
  cudaError_t error = cudaFuncGetAttributes(&attributes, function_);
  if (error == cudaSuccess) {
    const int most =
        static_cast<int>(facts.shared_per_block) - static_cast<int>(attributes.sharedSizeBytes);
    error = cudaFuncSetAttribute(function_, cudaFuncAttributeMaxDynamicSharedMemorySize, most);
  }
  if (error == cudaSuccess) raised_.fetch_or(bit);
  return taken(error);
}

const char* KernelHandle::launch(const LaunchSize& size, const void* argument, void* stream) const {
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(static_cast<unsigned>(size.blocks));
  config.blockDim = dim3(static_cast<unsigned>(size.threads));
  config.dynamicSmemBytes = size.shared_bytes;
  config.stream = static_cast<cudaStream_t>(stream);
  void* arguments[] = {const_cast<void*>(argument)};
  return taken(cudaLaunchKernelExC(&config, function_, arguments));
}

}  // namespace innerloop
