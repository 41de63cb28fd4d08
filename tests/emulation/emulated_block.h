// A block of threads on the host, for block/phase.h: the threads of a phase run one after the
// other, forwards and backwards in turn, and the workspace's cells watch how they are used. What
// they refuse: reading what nothing wrote, touching what lies between arrays, and two threads of
// one phase meeting in a cell of which at least one writes it.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <stdexcept>
#include <string>

#include "core/plan.h"

namespace innerloop {

/// The phase and thread that the emulation is in.
struct EmulatedTime {
  int64_t phase = 0;
  int thread = -1;  // -1: outside of spread, where every thread does the same
  int threads = 1;
};
inline thread_local EmulatedTime emulated_time;
inline int64_t accesses = 0;

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
    if (write_phase_ < 0) fail("reads what nothing wrote");
    if (write_phase_ == now.phase && writer_ != now.thread) fail("reads what another writes");
    reader_ = read_phase_ == now.phase && reader_ != now.thread ? kSeveral : now.thread;
    if (now.thread < 0) reader_ = kSeveral;
    read_phase_ = now.phase;
    return value_;
  }
  WatchedCell& operator=(Real value) {
    const EmulatedTime& now = emulated_time;
    ++accesses;
    if (!is_array_) fail("writes between two arrays");
    if (now.thread < 0) fail("writes outside of a phase");
    if (write_phase_ == now.phase && writer_ != now.thread) fail("writes what another writes");
    if (read_phase_ == now.phase && reader_ != now.thread) fail("writes what another reads");
    write_phase_ = now.phase;
    writer_ = now.thread;
    value_ = value;
    return *this;
  }
  WatchedCell& operator+=(Real value) { return *this = static_cast<Real>(*this) + value; }
  WatchedCell& operator-=(Real value) { return *this = static_cast<Real>(*this) - value; }
  WatchedCell& operator/=(Real value) { return *this = static_cast<Real>(*this) / value; }
  void open() { is_array_ = true; }

 private:
  static constexpr int kSeveral = -2;
  [[noreturn]] static void fail(const char* what) {
    throw std::logic_error("emulated block: thread " + std::to_string(emulated_time.thread) +
                           " of " + std::to_string(emulated_time.threads) + " " + what +
                           " in phase " + std::to_string(emulated_time.phase));
  }

  Real value_{};
  bool is_array_ = false;
  int writer_ = -1;
  mutable int reader_ = -1;
  int64_t write_phase_ = -1;
  mutable int64_t read_phase_ = -1;
};

template <class Real>
struct Gap<WatchedCell<Real>> {
  static constexpr int64_t kElements = 5;
  static void open(WatchedCell<Real>* array, int64_t size) {
    for (int64_t i = 0; i < size; ++i) array[i].open();
  }
};

/// A warp of the emulated block, as block/tensor_product.h describes it: its lanes one after the
/// other, its instruction over all of them.
class EmulatedWarp {
 public:
  static constexpr int kSlots = 32;

  explicit EmulatedWarp(int index) : first_(index * kSlots) {}

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
  using Warp = EmulatedWarp;

  explicit EmulatedBlock(int threads, bool tf32 = false) : threads_(threads), tf32_(tf32) {}

  bool tf32() const { return tf32_; }

  int threads() const { return threads_; }
  void barrier() const { ++emulated_time.phase; }
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

 private:
  int threads_;
  bool tf32_;
};

}  // namespace innerloop
