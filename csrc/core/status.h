// What a native call reports instead of throwing: kernels never see Python or exceptions.
#pragma once

namespace innerloop {

enum class Status : int {
  kOk = 0,
  kOutOfMemory,
  kBadLabel,  // a class index outside [0, K)
  kBadCount,  // a row count outside [0, N]
};

}  // namespace innerloop
