// Worker threads and workspaces kept between calls.
#include "cpu/parallel.h"

#include <dlfcn.h>
#include <pthread.h>
#include <stdlib.h>
#if defined(__linux__)
#include <sys/mman.h>
#endif

#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstddef>
#include <mutex>
#include <new>
#include <thread>
#include <vector>

namespace innerloop {
namespace {

inline void relax() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

/// Workers look for the next job this long before they sleep: longer than the gap between two
/// calls of a training loop, short enough not to be noticed.
constexpr auto kSpin = std::chrono::microseconds(200);

class Pool {
 public:
  /// Workers join a job by raising `active_` while the job is open; the caller closes it and waits
  /// for those that joined. state_: bit 0 open, the other bits count jobs.
  void run(int64_t items, int threads, void (*work)(void*, int64_t, int), void* context) {
    grow(threads - 1);
    work_ = work;
    context_ = context;
    items_ = items;
    limit_ = threads;
    next_item_.store(0, std::memory_order_relaxed);
    next_worker_.store(1, std::memory_order_relaxed);
    state_.fetch_add(1, std::memory_order_seq_cst);  // open
    if (sleeping_.load(std::memory_order_seq_cst) > 0) {
      std::lock_guard<std::mutex> lock(mutex_);
      wake_.notify_all();
    }
    drain(0);
    state_.fetch_add(1, std::memory_order_seq_cst);  // closed
    while (active_.load(std::memory_order_seq_cst) > 0) relax();
  }

 private:
  void drain(int worker) {
    for (;;) {
      const int64_t item = next_item_.fetch_add(1, std::memory_order_relaxed);
      if (item >= items_) return;
      work_(context_, item, worker);
    }
  }
  void grow(int count) {
    while (started_ < count) {
      try {
        std::thread(&Pool::serve, this).detach();
      } catch (const std::exception&) {
        return;  // fewer workers, same results
      }
      ++started_;
    }
  }
  void serve() {
    uint64_t seen = 0;
    for (;;) {
      uint64_t state = wait_for_job(seen);
      active_.fetch_add(1, std::memory_order_seq_cst);
      state = state_.load(std::memory_order_seq_cst);
      if (state & 1) {
        const int worker = next_worker_.fetch_add(1, std::memory_order_relaxed);
        if (worker < limit_) drain(worker);
      }
      active_.fetch_sub(1, std::memory_order_release);
      seen = (state & 1) ? state : state - 1;  // the job that is over for this worker
    }
  }
  uint64_t wait_for_job(uint64_t seen) {
    const auto until = std::chrono::steady_clock::now() + kSpin;
    for (int i = 1;; ++i) {
      const uint64_t state = state_.load(std::memory_order_acquire);
      if ((state & 1) && state != seen) return state;
      relax();
      if (i % 64 == 0 && std::chrono::steady_clock::now() > until) break;
    }
    std::unique_lock<std::mutex> lock(mutex_);
    sleeping_.fetch_add(1, std::memory_order_seq_cst);
    uint64_t state;
    wake_.wait(lock, [&] {
      state = state_.load(std::memory_order_seq_cst);
      return (state & 1) && state != seen;
    });
    sleeping_.fetch_sub(1, std::memory_order_relaxed);
    return state;
  }

  std::atomic<uint64_t> state_{0};
  std::atomic<int> active_{0}, sleeping_{0}, next_worker_{1};
  std::atomic<int64_t> next_item_{0};
  void (*work_)(void*, int64_t, int) = nullptr;
  void* context_ = nullptr;
  int64_t items_ = 0;
  int limit_ = 0, started_ = 0;
  std::mutex mutex_;
  std::condition_variable wake_;
};

/// GOMP_parallel(function, its data, threads, flags): of GNU's OpenMP, and of those that stand in
/// for it.
using Team = void (*)(void (*)(void*), void*, unsigned, unsigned);

/// The threads of the OpenMP runtime in the process, which are torch's. Null: there is none.
Team find_team() { return reinterpret_cast<Team>(dlsym(RTLD_DEFAULT, "GOMP_parallel")); }

/// One job of a team, whose members call it each.
struct Shared {
  int64_t items;
  void (*work)(void*, int64_t, int);
  void* context;
  std::atomic<int64_t> next_item{0};
  std::atomic<int> next_worker{0};

  static void member(void* self) { static_cast<Shared*>(self)->drain(); }
  /// Members that find nothing to do count for no worker: there are no more of these than items.
  void drain() {
    int64_t item = next_item.fetch_add(1, std::memory_order_relaxed);
    if (item >= items) return;
    const int worker = next_worker.fetch_add(1, std::memory_order_relaxed);
    for (; item < items; item = next_item.fetch_add(1, std::memory_order_relaxed)) {
      work(context, item, worker);
    }
  }
};

struct Globals {
  std::mutex busy;  // one caller at a time
  Pool* pool = new Pool;
  Team team = nullptr;
  bool may_have_team = true;  // and it has not been looked for
  std::mutex memory;
  // Blocks that nobody has, oldest first. All blocks together hold at most one and a half times of
  // what was in use at one time since release_workspaces().
  std::vector<std::pair<void*, int64_t>> idle;
  int64_t idle_bytes = 0, used_bytes = 0, most_bytes = 0;
};

// Never destroyed: workers may outlive static destruction. After fork the child starts afresh, for
// its copies of the threads do not exist and its locks may be held by nobody.
Globals* g = new Globals;
void after_fork() {
  g = new Globals;
  g->may_have_team = false;  // it would wait for its threads
}
const int kForkHandler = pthread_atfork(nullptr, nullptr, after_fork);

void* allocate(int64_t bytes) {
  void* p = nullptr;
  constexpr int64_t kHuge = int64_t{1} << 21;
  const size_t alignment = bytes >= kHuge ? kHuge : 64;
  if (posix_memalign(&p, alignment, static_cast<size_t>(bytes)) != 0) return nullptr;
#if defined(__linux__)
  if (bytes >= kHuge) madvise(p, static_cast<size_t>(bytes), MADV_HUGEPAGE);
#endif
  return p;
}

/// Calls run() if there is work for several threads and no other caller has them, else works alone.
template <class Run>
void unless_alone(int64_t items, int threads, void (*work)(void*, int64_t, int), void* context,
                  Run run) {
  if (threads > 1 && items > 1) {
    std::unique_lock<std::mutex> lock(g->busy, std::try_to_lock);
    if (lock.owns_lock()) {
      run();
      return;
    }
  }
  for (int64_t item = 0; item < items; ++item) work(context, item, 0);
}

}  // namespace

void parallel_for(int64_t items, int threads, void (*work)(void*, int64_t, int), void* context) {
  unless_alone(items, threads, work, context, [&] {
    g->pool->run(items, static_cast<int>(std::min<int64_t>(threads, items)), work, context);
  });
}

void parallel_beside_torch(int64_t items, int threads, void (*work)(void*, int64_t, int),
                           void* context) {
  unless_alone(items, threads, work, context, [&] {
    if (g->may_have_team) g->team = find_team();
    g->may_have_team = false;
    if (g->team) {  // whole, as torch calls it: one that changes its size starts threads anew
      Shared job{items, work, context};
      g->team(Shared::member, &job, static_cast<unsigned>(threads), 0);
    } else {
      g->pool->run(items, static_cast<int>(std::min<int64_t>(threads, items)), work, context);
    }
  });
}

/// A block that is much larger is left to the calls that need it: fresh pages cost more than a
/// pass.
static int64_t most_that_fits(int64_t bytes) {
  constexpr int64_t kSmall = int64_t{64} << 10;
  return std::max(kSmall, bytes > INT64_MAX / 4 ? INT64_MAX : 4 * bytes);
}

Workspace::Workspace(int64_t bytes) {
  std::vector<void*> dropped;
  {
    std::lock_guard<std::mutex> lock(g->memory);
    auto& idle = g->idle;
    auto best = idle.end();
    for (auto at = idle.begin(); at != idle.end(); ++at) {
      if (at->second < bytes || at->second > most_that_fits(bytes)) continue;
      if (best == idle.end() || at->second < best->second) best = at;
    }
    if (best != idle.end()) {
      data_ = best->first;
      bytes_ = best->second;
      idle.erase(best);
      g->idle_bytes -= bytes_;
      g->used_bytes += bytes_;
      return;
    }
    // sizes do not pile up
    const int64_t most = std::max(g->most_bytes, g->used_bytes + bytes);
    size_t count = 0;
    for (; count < idle.size() && g->used_bytes + bytes + g->idle_bytes > most + most / 2;
         ++count) {
      dropped.push_back(idle[count].first);
      g->idle_bytes -= idle[count].second;
    }
    idle.erase(idle.begin(), idle.begin() + static_cast<std::ptrdiff_t>(count));
  }
  for (void* block : dropped) free(block);
  data_ = allocate(bytes);
  if (!data_) {
    refused_bytes() = bytes;
    return;
  }
  bytes_ = bytes;
  std::lock_guard<std::mutex> lock(g->memory);
  g->used_bytes += bytes;
  g->most_bytes = std::max(g->most_bytes, g->used_bytes);
}

Workspace::~Workspace() {
  if (!data_) return;
  std::lock_guard<std::mutex> lock(g->memory);
  g->idle.emplace_back(data_, bytes_);
  g->idle_bytes += bytes_;
  g->used_bytes -= bytes_;
}

int64_t& refused_bytes() {
  thread_local int64_t bytes = 0;
  return bytes;
}

int64_t workspace_bytes() {
  std::lock_guard<std::mutex> lock(g->memory);
  return g->idle_bytes;
}

void release_workspaces() {
  std::lock_guard<std::mutex> lock(g->memory);
  for (auto& block : g->idle) free(block.first);
  g->idle.clear();
  g->idle_bytes = 0;
  g->most_bytes = g->used_bytes;
}

}  // namespace innerloop
