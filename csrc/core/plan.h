// Where everything lives while a group of tasks is worked on: which weights are stored, which stay
// implicit, and the offsets of every array. Computed once per call from shapes alone.
#pragma once

#include <cstdint>

#include "core/kernels.h"

namespace innerloop {

/// A matrix per task. Task i of the group starts rows * ld elements after task i - 1.
template <class Elem>
struct Rows {
  Elem* p;
  int64_t rows, cols, ld;
};

/// A layer's weight [out, in] for every task of the group: one copy each (`own`), or one for all.
/// `turned` holds the transpose in whatever order the back end multiplies by. A diagonal weight is
/// one row of its diagonal; empty, it is the identity.
template <class Real, class Elem>
struct Weight {
  const Elem* own = nullptr;
  const Elem* own_turned = nullptr;
  const Real* shared = nullptr;
  const Real* shared_turned = nullptr;
  int64_t out = 0, in = 0, ld = 0;
  int64_t task_stride = 0, turned_stride = 0;
  bool diagonal = false;
  IL_HD explicit operator bool() const { return own || shared; }
};

/// A bias [out], like Weight.
template <class Real, class Elem>
struct Bias {
  const Elem* own = nullptr;
  const Real* shared = nullptr;
  int64_t out = 0, task_stride = 0;
  IL_HD explicit operator bool() const { return own || shared; }
};

/// Where a per-task [out, in] or [out] result goes.
template <class Elem>
struct Target {
  Elem* p = nullptr;
  int64_t ld = 0, task_stride = 0;
};

struct LayerPlan {
  int64_t in, out;
  int64_t ld_in, ld_out;  // padded as the back end likes
  LayerKind kind;
  Activation activation;
  double slope, constant;
  int weight_leaf, bias_leaf;
  int64_t weight_offset, bias_offset;
  bool diagonal;  // the weight
  bool adapts_weight, adapts_bias;
  bool weight_per_task, bias_per_task;  // initial leaf differs between tasks
  bool stores_z, stores_a;
  // offsets in elements: per row of a tape, per row of the R-pass scratch, in a parameter block
  int64_t z, h, a, delta;
  int64_t rz, rh, rdelta;
  int64_t map, r_map;  // what the layer's kind keeps, of a tape and of the scratch
  int64_t w, w_turned, b;
  int64_t sink_w, sink_b;        // in the accumulator of gradients summed over tasks
  int64_t initial_w, initial_b;  // in the copy of the initial leaves, where an engine makes one

  IL_HD int64_t weight_rows() const { return diagonal ? 1 : out; }
  IL_HD int64_t weight_cols() const { return diagonal ? out : in; }
  IL_HD int64_t weight_ld() const { return diagonal ? ld_out : ld_in; }
  IL_HD int64_t weight_size() const { return weight_rows() * weight_ld(); }
};

/// The entries of `layers` are the layers and, after them, the free leaf if there is one: a bias
/// without a weight, whose delta the objective writes.
/// `implicit_first`: the first layer's per-task weights are never built; products with them use
/// X W0^T and the Gram matrices X_s X_s^T, X_q X_s^T, because its input never changes.
struct Plan {
  LayerPlan* layers = nullptr;
  int depth = 0, leaves = 0;
  int entries = 0;
  int lowest = 0;  // first layer whose outputs move; depth if there is none
  bool implicit_first = false;
  bool first_adapts = false;    // the first weight adapts
  bool turns_weights = false;   // parameter blocks carry transposed copies
  bool reads_in_place = false;  // products take the inputs where the caller has them
  bool has_per_task_leaf = false;
  int64_t copies = 1;     // task copies in one array (1: an element is a vector over tasks)
  int64_t part_rows = 0;  // of a side that are passed at once; 0: all
  int64_t tape_row = 0, scratch_row = 0, block = 0, sink = 0, initial = 0;
};

/// Rows of a side that are passed at once, so that what a pass leaves for the next one stays near.
struct Part {
  int64_t first = 0, rows = 0;
};

/// The most rows of a part, and f(part) for each part of a side, in order.
IL_HD inline int64_t rows_at_once(const Plan& plan, int64_t rows) {
  return plan.part_rows > 0 && plan.part_rows < rows ? plan.part_rows : rows;
}
template <class E, class F>
IL_HD inline void each_part(const Plan& plan, int64_t rows, F&& f) {
  if constexpr (E::kTakesParts) {
    const int64_t most = rows_at_once(plan, rows);
    for (int64_t first = 0; first == 0 || first < rows; first += most) {
      f(Part{first, most < rows - first ? most : rows - first});
      if (most == 0) return;
    }
  } else {
    f(Part{0, rows});
  }
}

/// Elements left unused after every array: none, except between arrays whose elements check how
/// they are used, and which are told what lies in an array.
template <class Elem>
struct Gap {
  static constexpr int64_t kElements = 0;
  IL_HD static void open(Elem*, int64_t) {}
};

/// Hands out consecutive pieces of one allocation. With a null base it only counts; a total that
/// does not fit an address is reported by `used` as the largest integer.
template <class Elem>
class Carver {
 public:
  IL_HD explicit Carver(Elem* base) : base_(base) {}
  IL_HD Elem* take(int64_t count, int64_t each = 1) {
    int64_t size = 0;
    if (!multiply(count, each, &size) || size > kLimit - used_) {
      used_ = kLimit;
      return nullptr;
    }
    Elem* p = base_ && size > 0 ? base_ + used_ : nullptr;
    if (p) Gap<Elem>::open(p, size);
    used_ += size + Gap<Elem>::kElements;
    return p;
  }
  IL_HD int64_t used() const { return used_; }
  IL_HD bool fits() const { return used_ < kLimit; }

 private:
  static constexpr int64_t kLimit = int64_t{1} << 48;
  /// Whether the product of two sizes is one. Device code lays out what the host counted before.
  IL_HD static bool multiply(int64_t a, int64_t b, int64_t* product) {
#ifdef __CUDA_ARCH__
    *product = a * b;
    return true;
#else
    return a >= 0 && b >= 0 && !__builtin_mul_overflow(a, b, product);
#endif
  }
  Elem* base_;
  int64_t used_ = 0;
};

}  // namespace innerloop
