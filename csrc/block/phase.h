// What code written for a block of threads needs besides the core.
//
// A block B is bulk-synchronous. Between two barriers lies a phase; in it `spread` hands every item
// to one of the block's threads, in no particular order:
//   B::Cell<Real>           how the block's workspace holds a number
//   B::kFactors             whether the kernel has the low-rank strategy's products
//   B::kCluster             whether several blocks share a group of tasks (block_exchange.h)
//   int rank()              the block's place in its cluster, 0 without one
//   int threads()           the size of the block
//   spread(rows, cols, f)   f(row, col) for every item, each on one thread
//   barrier()               the end of a phase: what it wrote may be read from here on
//   once(f)                 f() on one thread, then a barrier
//   copy(to, from, near)    starts to copy a number from global memory to shared memory; a number
//                           that is `near`, in shared memory, is copied at once
//   commit_copies()         the copies started since the last one are a batch
//   wait_copies<n>()        until all but the n latest batches of the thread have arrived
//   B::PerThread<T>         a T of every thread, which stays from phase to phase: at(thread)
//   bool tf32()             whether tensor cores may be used (tensor_product.h), and then
//   spread_warps(items, f)  f(item, warp), each item by the 32 threads of a warp B::Warp together
//   B::PerWarp<T>           as PerThread, of every warp: at(warp)
// and, of a block in a cluster,
//   cluster_barrier()       a barrier of all threads of all its blocks
//   peer(p, rank)           where the block of that rank has what this block has at p, in shared
//                           memory, to be read
// Code outside `spread` and `once` runs on every thread and sees the same values there. Blocks:
// cuda/device_block.h on a GPU, tests/emulation/emulated_block.h on the host with checks.
#pragma once

#include "core/host_device.h"

#ifdef __CUDACC__
#define IL_UNROLL _Pragma("unroll")
#define IL_LOOP _Pragma("unroll 1")
#else
#define IL_UNROLL
#define IL_LOOP
#endif
