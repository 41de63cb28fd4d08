// A block of threads on the host, for block/phase.h: the threads of a phase run one after the
// other, forwards and backwards in turn, and the workspace's cells watch how they are used. What
// they refuse: reading what nothing wrote, touching what lies between arrays or what an
// asynchronous copy is about to bring, and two threads of one phase meeting in a cell of which at
// least one writes it. A copy arrives when its thread waits for it, and counts as that thread's
// write.
//
// The blocks of a cluster take turns, each until it reaches the cluster's barrier. What lies
// between two of these barriers is an epoch; in one epoch no block may write what another reads or
// writes.
#pragma once

#include <algorithm>
#include <cmath>
#include <condition_variable>
#include <cstdint>
#include <cstring>
#include <deque>
#include <exception>
#include <functional>
#include <limits>
#include <memory>
#include <mutex>
#include <stdexcept>
#include <string>
#include <thread>
#include <type_traits>
#include <utility>
#include <vector>

#include "core/plan.h"

namespace innerloop {

/// The phase and thread that the emulation is in, of the block that this thread of the host
/// emulates. Only one block runs at a time. No two blocks of a cluster share the number of a phase.
struct EmulatedTime {
  int64_t phase = 0;
  int thread = -1;  // -1: outside of spread, where every thread does the same
  int threads = 1;
  int block = 0;  // in the cluster
  int64_t epoch = 0;
};
inline thread_local EmulatedTime emulated_time;
inline int64_t latest_phase = 0, accesses = 0;

inline void begin_phase() { emulated_time.phase = ++latest_phase; }

/// A number of the workspace.
template <class Real>
class WatchedCell {
 public:
  WatchedCell() = default;
  WatchedCell(const WatchedCell& other) : WatchedCell() { *this = static_cast<Real>(other); }
  WatchedCell& operator=(const WatchedCell& other) { return *this = static_cast<Real>(other); }

  operator Real() const {
    const EmulatedTime& now = emulated_time;
    ++accesses;
    if (!is_array_) fail("reads between two arrays");
    if (is_expected_) fail("reads what a copy has not brought yet");
    if (write_phase_ < 0) fail("reads what nothing wrote");
    if (write_phase_ == now.phase && writer_ != now.thread) fail("reads what another writes");
    if (write_epoch_ == now.epoch && write_block_ != now.block) {
      fail("reads what another block writes");
    }
    reader_ = read_phase_ == now.phase && reader_ != now.thread ? kSeveral : now.thread;
    if (now.thread < 0) reader_ = kSeveral;
    read_phase_ = now.phase;
    read_block_ = read_epoch_ == now.epoch && read_block_ != now.block ? kSeveral : now.block;
    read_epoch_ = now.epoch;
    return value_;
  }
  WatchedCell& operator=(Real value) {
    const EmulatedTime& now = emulated_time;
    ++accesses;
    if (!is_array_) fail("writes between two arrays");
    if (is_expected_) fail("writes what a copy is about to bring");
    if (now.thread < 0) fail("writes outside of a phase");
    if (write_phase_ == now.phase && writer_ != now.thread) fail("writes what another writes");
    if (read_phase_ == now.phase && reader_ != now.thread) fail("writes what another reads");
    if (read_epoch_ == now.epoch && read_block_ != now.block) {
      fail("writes what another block reads");
    }
    if (write_phase_ >= 0 && write_block_ != now.block) fail("writes to another block");
    write_phase_ = now.phase;
    writer_ = now.thread;
    write_block_ = now.block;
    write_epoch_ = now.epoch;
    value_ = value;
    return *this;
  }
  WatchedCell& operator+=(Real value) { return *this = static_cast<Real>(*this) + value; }
  WatchedCell& operator-=(Real value) { return *this = static_cast<Real>(*this) - value; }
  WatchedCell& operator/=(Real value) { return *this = static_cast<Real>(*this) / value; }
  void open() { is_array_ = true; }
  /// A copy by the thread is on its way into this cell: nobody may touch it until it has arrived.
  void expect() {
    *this = Real();
    is_expected_ = true;
  }
  void arrive(Real value) {
    is_expected_ = false;
    *this = value;
  }

 private:
  static constexpr int kSeveral = -2;
  [[noreturn]] static void fail(const char* what) {
    throw std::logic_error("emulated block: thread " + std::to_string(emulated_time.thread) +
                           " of " + std::to_string(emulated_time.threads) + " in block " +
                           std::to_string(emulated_time.block) + " " + what + " in phase " +
                           std::to_string(emulated_time.phase));
  }

  Real value_{};
  bool is_array_ = false, is_expected_ = false;
  int writer_ = -1, write_block_ = 0;
  mutable int reader_ = -1, read_block_ = 0;
  int64_t write_phase_ = -1, write_epoch_ = -1;
  mutable int64_t read_phase_ = -1, read_epoch_ = -1;
};

template <class Real>
struct Gap<WatchedCell<Real>> {
  static constexpr int64_t kElements = 5;
  static void open(WatchedCell<Real>* array, int64_t size) {
    for (int64_t i = 0; i < size; ++i) array[i].open();
  }
};

inline int64_t copies_started = 0;

/// Asynchronous copies that have not arrived, in the batches of their block.
class CopiesUnderWay {
 public:
  template <class Real>
  void start(WatchedCell<Real>* to, Real value) {
    to->expect();
    ++copies_started;
    const int thread = emulated_time.thread;
    started_.push_back([to, value, thread] {
      emulated_time.thread = thread;
      to->arrive(value);
      emulated_time.thread = -1;
    });
  }
  void commit() {
    batches_.push_back(std::move(started_));
    started_.clear();
  }
  void wait(size_t newer) {
    for (; batches_.size() > newer; batches_.pop_front()) {
      for (const auto& arrive : batches_.front()) arrive();
    }
  }

 private:
  using Batch = std::vector<std::function<void()>>;
  Batch started_;
  std::deque<Batch> batches_;
};

/// A warp of the emulated block, as block/tensor_product.h describes it: its lanes one after the
/// other, its instruction over all of them.
class EmulatedWarp {
 public:
  static constexpr int kSlots = 32;

  explicit EmulatedWarp(int index) : first_(index * kSlots) {}
  int index() const { return first_ / kSlots; }

  template <class F>
  void lanes(F&& f) const {
    const bool backwards = emulated_time.phase % 2;
    for (int i = 0; i < kSlots; ++i) {
      const int lane = backwards ? kSlots - 1 - i : i;
      emulated_time.thread = first_ + lane;
      f(lane, lane);
    }
  }
  /// The nearest number with 10 bits of mantissa, ties away from zero.
  static float rounded(float x) {
    if (!std::isfinite(x)) return x;
    uint32_t bits;
    std::memcpy(&bits, &x, sizeof bits);
    bits = (bits + 0x1000u) & ~0x1fffu;
    std::memcpy(&x, &bits, sizeof bits);
    return x;
  }
  void multiply_add(const float (&a)[32][4], const float (&b)[32][2], float (&c)[32][4]) const {
    ++instructions;
    float left[16][8], right[8][8];
    for (int lane = 0; lane < kSlots; ++lane) {
      const int group = lane / 4, place = lane % 4;
      left[group][place] = a[lane][0];
      left[group + 8][place] = a[lane][1];
      left[group][place + 4] = a[lane][2];
      left[group + 8][place + 4] = a[lane][3];
      right[place][group] = b[lane][0];
      right[place + 4][group] = b[lane][1];
    }
    for (int lane = 0; lane < kSlots; ++lane) {
      for (int r = 0; r < 4; ++r) {
        const int i = lane / 4 + r / 2 * 8, j = lane % 4 * 2 + r % 2;
        for (int k = 0; k < 8; ++k) c[lane][r] += left[i][k] * right[k][j];
      }
    }
  }
  static inline int64_t instructions = 0;

 private:
  int first_;
};

class EmulatedBlock {
 public:
  template <class Real>
  using Cell = WatchedCell<Real>;
  static constexpr bool kFactors = false, kCluster = false;
  template <class T>
  class PerThread {
   public:
    explicit PerThread(const EmulatedBlock& block) : values_(block.threads()) {}
    T& at(int thread) {
      if (thread != emulated_time.thread) throw std::logic_error("another thread's registers");
      return values_.at(static_cast<size_t>(thread));
    }

   private:
    std::vector<T> values_;
  };

  using Warp = EmulatedWarp;
  template <class T>
  class PerWarp {
   public:
    explicit PerWarp(const EmulatedBlock& block)
        : values_(block.threads() / EmulatedWarp::kSlots) {}
    T& at(const EmulatedWarp& warp) { return values_.at(static_cast<size_t>(warp.index())); }

   private:
    std::vector<T> values_;
  };

  explicit EmulatedBlock(int threads, bool tf32 = false) : threads_(threads), tf32_(tf32) {}

  bool tf32() const { return tf32_; }

  int rank() const { return 0; }
  int threads() const { return threads_; }
  void barrier() const { begin_phase(); }
  template <class F>
  void spread(int rows, int cols, F&& f) const {
    const int64_t items = rows > 0 && cols > 0 ? static_cast<int64_t>(rows) * cols : 0;
    const bool backwards = emulated_time.phase % 2;
    emulated_time.threads = threads_;
    for (int i = 0; i < threads_; ++i) {
      emulated_time.thread = backwards ? threads_ - 1 - i : i;
      for (int64_t item = emulated_time.thread; item < items; item += threads_) {
        f(static_cast<int>(item / cols), static_cast<int>(item % cols));
      }
    }
    emulated_time.thread = -1;
  }
  template <class F>
  void spread_warps(int items, F&& f) const {
    const int warps = threads_ / EmulatedWarp::kSlots;
    emulated_time.threads = threads_;
    for (int w = 0; w < warps; ++w) {
      const int warp = emulated_time.phase % 2 ? warps - 1 - w : w;
      for (int item = warp; item < items; item += warps) f(item, EmulatedWarp(warp));
    }
    emulated_time.thread = -1;
  }
  template <class F>
  void once(F&& f) const {
    emulated_time.thread = 0;
    f();
    emulated_time.thread = -1;
    barrier();
  }
  template <class Real>
  void copy(WatchedCell<Real>* to, const WatchedCell<Real>* from, bool near) const {
    copy_number(to, static_cast<Real>(*from), near);
  }
  template <class Real>
  void copy(WatchedCell<Real>* to, const Real* from, bool near) const {
    copy_number(to, *from, near);
  }
  void commit_copies() const { copies_->commit(); }
  template <int kNewer>
  void wait_copies() const {
    copies_->wait(kNewer);
  }

 private:
  template <class Real>
  void copy_number(WatchedCell<Real>* to, Real value, bool near) const {
    if (near) {
      *to = value;
    } else {
      copies_->start(to, value);
    }
  }

  int threads_;
  bool tf32_;
  std::shared_ptr<CopiesUnderWay> copies_ = std::make_shared<CopiesUnderWay>();
};

/// The same for kernels of the low-rank strategy.
struct EmulatedFactorBlock : EmulatedBlock {
  using EmulatedBlock::EmulatedBlock;
  static constexpr bool kFactors = true;
};

/// The blocks of one cluster on threads of the host, of which one at a time runs.
class EmulatedCluster {
 public:
  explicit EmulatedCluster(int size) : size_(size) {}

  /// work(rank) for every block; rethrows the first block's failure.
  template <class F>
  void run(F&& work) {
    std::vector<std::thread> blocks;
    for (int rank = 0; rank < size_; ++rank) {
      blocks.emplace_back([&, rank] {
        emulated_time.block = rank;
        try {
          wait_for_turn(rank);
          begin_phase();
          work(rank);
          finished_ = std::min(finished_, emulated_time.epoch);
        } catch (...) {
          const std::lock_guard<std::mutex> lock(mutex_);
          if (!failure_) failure_ = std::current_exception();
        }
        pass_turn(rank);
      });
    }
    for (std::thread& block : blocks) block.join();
    if (failure_) std::rethrow_exception(failure_);
  }
  /// In the order of ranks all others reach their next barrier before the caller goes on.
  void barrier(int rank) {
    refuse_to_wait_alone();
    pass_turn(rank);
    wait_for_turn(rank);
    refuse_to_wait_alone();
    ++emulated_time.epoch;
    begin_phase();
  }

 private:
  void refuse_to_wait_alone() const {
    if (finished_ <= emulated_time.epoch) {
      throw std::logic_error("emulated cluster: a block waits for one that has ended");
    }
  }
  void pass_turn(int rank) {
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      turn_ = (rank + 1) % size_;
    }
    changed_.notify_all();
  }
  void wait_for_turn(int rank) {
    std::unique_lock<std::mutex> lock(mutex_);
    changed_.wait(lock, [&] { return turn_ == rank || failure_; });
    if (failure_) throw std::logic_error("emulated cluster: another block failed");
  }

  const int size_;
  int turn_ = 0;
  int64_t finished_ = std::numeric_limits<int64_t>::max();  // the epoch in which a block ended
  std::exception_ptr failure_;
  std::mutex mutex_;
  std::condition_variable changed_;
};

/// A block of a cluster. `workspaces[rank]` is where that block's workspace starts.
class EmulatedClusterBlock : public EmulatedBlock {
 public:
  static constexpr bool kCluster = true;

  EmulatedClusterBlock(int threads, bool tf32, EmulatedCluster* cluster, int rank,
                       std::vector<const void*> workspaces)
      : EmulatedBlock(threads, tf32),
        cluster_(cluster),
        rank_(rank),
        workspaces_(std::move(workspaces)) {}

  int rank() const { return rank_; }
  void cluster_barrier() const { cluster_->barrier(rank_); }
  template <class Real>
  const WatchedCell<Real>* peer(const WatchedCell<Real>* p, int rank) const {
    const auto start = [&](int r) {
      return static_cast<const WatchedCell<Real>*>(workspaces_.at(r));
    };
    return start(rank) + (p - start(rank_));
  }

 private:
  EmulatedCluster* cluster_;
  int rank_;
  std::vector<const void*> workspaces_;
};

}  // namespace innerloop
