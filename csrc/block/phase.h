// What code written for a block of threads needs besides the core.
//
// A block B is bulk-synchronous. Between two barriers lies a phase; in it `spread` hands every item
// to one of the block's threads, in no particular order:
//   B::Cell<Real>           how the block's workspace holds a number
//   int threads()           the size of the block
//   spread(rows, cols, f)   f(row, col) for every item, each on one thread
//   barrier()               the end of a phase: what it wrote may be read from here on
//   once(f)                 f() on one thread, then a barrier
//   bool tf32()             whether tensor cores may be used (tensor_product.h), and then
//   spread_warps(items, f)  f(item, warp), each item by the 32 threads of a warp B::Warp together
// Code outside `spread` and `once` runs on every thread and sees the same values there. Blocks:
// cuda/device_block.h on a GPU, tests/emulation/emulated_block.h on the host with checks.
#pragma once

#include "core/host_device.h"

#ifdef __CUDACC__
#define IL_UNROLL _Pragma("unroll")
#else
#define IL_UNROLL
#endif
