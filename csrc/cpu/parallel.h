// Threads to work on: a small pool of our own, and those of torch. The caller of the pool always
// works itself and never waits for a worker that has not started: when other processes hold the
// cores, a call degrades to one thread instead of stalling. Safe after fork; nothing is linked.
#pragma once

#include <cstdint>

namespace innerloop {

/// Calls work(context, item, worker) once for every item < items, each on some thread; worker is
/// below `threads` and `items`, and no two calls with the same worker overlap. While another caller
/// has the threads, this one works alone.
void parallel_for(int64_t items, int threads, void (*work)(void*, int64_t, int), void* context);

/// The same for calls between torch's own parallel operations, on the threads of its OpenMP runtime
/// if it has one with GNU's interface. After each of these operations they look for more to do for
/// milliseconds, and a pool would have half of every core; but they all meet at the end.
void parallel_beside_torch(int64_t items, int threads, void (*work)(void*, int64_t, int),
                           void* context);

/// A block of 64-byte-aligned memory kept between calls.
class Workspace {
 public:
  explicit Workspace(int64_t bytes);
  ~Workspace();
  Workspace(const Workspace&) = delete;
  Workspace& operator=(const Workspace&) = delete;
  void* data() const { return data_; }  // null: out of memory

 private:
  void* data_ = nullptr;
  int64_t bytes_ = 0;
};

/// Bytes of the last workspace that this thread asked for in vain; 0: more than an address holds.
int64_t& refused_bytes();

/// Bytes that idle workspaces hold, and freeing them.
int64_t workspace_bytes();
void release_workspaces();

}  // namespace innerloop
