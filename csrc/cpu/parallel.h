// Threads to work on: those of the OpenMP runtime that torch brought into the process, else a small
// pool of our own (in a forked child, say, where a team's threads are gone). The caller of the pool
// always works itself and never waits for a worker that has not started. Nothing is linked.
#pragma once

#include <cstdint>

namespace innerloop {

/// Calls work(context, item, worker) once for every item < items, each on some thread; worker is
/// below `threads` and `items`, and no two calls with the same worker overlap. While another caller
/// has the threads, this one works alone.
void parallel_for(int64_t items, int threads, void (*work)(void*, int64_t, int), void* context);

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
