// The launches beside the tasks' own: descriptions before them, sums over tasks after them.
#pragma once

#include "block/kernels.h"

namespace innerloop {

// Each launches on a stream of the current device and returns null, or what went wrong.

/// block/kernels.h.
template <class Real>
const char* launch_sum(const SumLaunch& launch, int64_t blocks, void* stream);

/// Parameters that carry a piece of a table: copied when the launch is made, so graphs may hold it.
struct TablePiece {
  char* to;
  int size;
  char bytes[kTablePiece];
};
const char* launch_store(const TablePiece& piece, void* stream);

}  // namespace innerloop
