// What bindings and launches ask of a device. tests/emulation answers it for the host.
#pragma once

#include "block/operations.h"

namespace innerloop {

/// Makes the device current while it lives.
class DeviceGuard {
 public:
  explicit DeviceGuard(int device);
  ~DeviceGuard();
  DeviceGuard(const DeviceGuard&) = delete;
  /// Null, or why the device cannot be used.
  const char* error() const { return error_; }

 private:
  int before_ = 0;
  bool changed_ = false;
  const char* error_ = nullptr;
};

/// Fills in a device's facts, which are asked for once. Returns null, or what went wrong.
const char* device_facts(int device, DeviceFacts* facts);

/// The operations of a dtype.
const BlockKernels& block_kernels(bool is_float64);

}  // namespace innerloop
