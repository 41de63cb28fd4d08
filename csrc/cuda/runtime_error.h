// How a failure of the CUDA runtime becomes a text.
#pragma once

#include <cuda_runtime_api.h>

namespace innerloop {

/// Null for success, otherwise the runtime's text. The runtime also keeps a failure for whoever
/// asks next for the last one, and a later launch that went well would take it for its own: it is
/// forgotten here. (One that spoiled the context stays and is reported by every later call.)
inline const char* taken(cudaError_t error) {
  if (error == cudaSuccess) return nullptr;
  static_cast<void>(cudaGetLastError());
  return cudaGetErrorString(error);
}

}  // namespace innerloop
