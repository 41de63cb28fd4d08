#include "cuda/device.h"

#include <mutex>
#include <vector>

#include "cuda/runtime_error.h"

namespace innerloop {
namespace {

const char* query(int device, DeviceFacts* facts) {
  int shared = 0, all = 0;
  cudaError_t error =
      cudaDeviceGetAttribute(&facts->multiprocessors, cudaDevAttrMultiProcessorCount, device);
  if (error == cudaSuccess) {
    error = cudaDeviceGetAttribute(&shared, cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
  }
  if (error == cudaSuccess) {
    error = cudaDeviceGetAttribute(&all, cudaDevAttrMaxSharedMemoryPerMultiprocessor, device);
  }
  facts->shared_per_block = shared;
  facts->shared_per_multiprocessor = all;
  return taken(error);
}

}  // namespace

DeviceGuard::DeviceGuard(int device) {
  cudaError_t error = cudaGetDevice(&before_);
  if (error == cudaSuccess && before_ != device) {
    error = cudaSetDevice(device);
    changed_ = error == cudaSuccess;
  }
  error_ = taken(error);
}

DeviceGuard::~DeviceGuard() {
  if (changed_) taken(cudaSetDevice(before_));
}

const char* device_facts(int device, DeviceFacts* facts) {
  static std::mutex mutex;
  static std::vector<DeviceFacts> known;
  const std::lock_guard<std::mutex> lock(mutex);
  const size_t index = static_cast<size_t>(device);
  if (index >= known.size()) known.resize(index + 1);
  if (known[index].multiprocessors == 0) {
    if (const char* error = query(device, &known[index])) {
      known[index] = {};
      return error;
    }
  }
  *facts = known[index];
  return nullptr;
}

}  // namespace innerloop
