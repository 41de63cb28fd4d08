// Launches of kernels that live in objects of their own. Host code, compiled without nvcc, so that
// a build compiles every kernel on another core and tests see the launches over a stand-in runtime.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>

namespace innerloop {

/// The size of a launch: blocks of threads, with bytes of dynamic shared memory each.
struct LaunchSize {
  int64_t blocks;
  int threads;
  size_t shared_bytes = 0;
};

/// One kernel of this library, which takes one argument.
class KernelHandle {
 public:
  explicit KernelHandle(const void* function) : function_(function) {}

  /// Lets launches on the current device, `device`, ask for all the shared memory that it can give
  /// a block. Done once for each device, since a later launch may be part of a graph. Returns null,
  /// or what went wrong.
  const char* raise_shared_memory(int device);
  /// Launches on a stream of the current device. Returns null, or what went wrong.
  const char* launch(const LaunchSize& size, const void* argument, void* stream) const;

 private:
  const void* function_;
  std::atomic<uint64_t> raised_{0};  // a bit for each of the first 64 devices
};

}  // namespace innerloop
