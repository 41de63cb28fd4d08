// The host side of csrc/cuda over a stand-in for the CUDA runtime, in which any function can be
// made to fail: what failed must be said once, and later calls must not hear of it again.
#include <cstdio>
#include <cstring>
#include <string>

#include "cuda/device.h"
#include "cuda/launch.h"
#include "cuda/runtime_error.h"

namespace {

std::string failing;  // the function that fails
cudaError_t last = cudaSuccess;
int asked = 0;  // calls of the function that fails

cudaError_t outcome(const char* name) {
  if (failing != name) return cudaSuccess;
  ++asked;
  return last = cudaErrorInvalidValue;
}

}  // namespace

// ---- the runtime -------------------------------------------------------------------------------
extern "C" {
cudaError_t cudaGetLastError() {
  const cudaError_t found = last;
  last = cudaSuccess;
  return found;
}
const char* cudaGetErrorString(cudaError_t) { return "failed as it was told to"; }
cudaError_t cudaGetDevice(int* device) {
  *device = 0;
  return outcome("cudaGetDevice");
}
cudaError_t cudaSetDevice(int) { return outcome("cudaSetDevice"); }
cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr, int) {
  *value = 1 << 16;
  return outcome("cudaDeviceGetAttribute");
}
cudaError_t cudaFuncGetAttributes(cudaFuncAttributes*, const void*) {
  return outcome("cudaFuncGetAttributes");
}
cudaError_t cudaFuncSetAttribute(const void*, cudaFuncAttribute, int) {
  return outcome("cudaFuncSetAttribute");
}
cudaError_t cudaLaunchKernelExC(const cudaLaunchConfig_t*, const void*, void**) {
  return outcome("cudaLaunchKernelExC");
}
}

namespace {

using namespace innerloop;

/// Everything that a call of the module does on the host. `device` was not asked about before.
const char* call(KernelHandle& kernel, int device) {
  const DeviceGuard guard(device);
  if (guard.error()) return guard.error();
  DeviceFacts facts{};
  if (const char* error = device_facts(device, &facts)) return error;
  if (const char* error = kernel.raise_shared_memory(device)) return error;
  const int argument = 0;
  return kernel.launch({1, 32}, &argument, nullptr);
}

/// What is wrong after `name` failed once, or null.
const char* check(const char* name, int device) {
  KernelHandle kernel(&last);
  failing = name;
  asked = 0;
  const char* error = call(kernel, device);
  failing.clear();
  if (!asked) return "was not called";
  if (!error) return "failed and nobody said so";
  if (last != cudaSuccess) return "left its error to whoever asks next";
  if (call(kernel, device)) return "failed once and still does";
  return nullptr;
}

}  // namespace

int main() {
  int wrong = 0, device = 1;
  for (const char* name :
       {"cudaGetDevice", "cudaSetDevice", "cudaDeviceGetAttribute", "cudaFuncGetAttributes",
        "cudaFuncSetAttribute", "cudaLaunchKernelExC"}) {
    if (const char* what = check(name, device++)) {
      std::printf("%s %s\n", name, what);
      ++wrong;
    }
  }
  return wrong;
}
