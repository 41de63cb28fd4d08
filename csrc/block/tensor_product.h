// Matrix products of a block on tensor cores, where the caller allows tf32 and the product is large
// enough.
//
// A warp computes 16 rows and 8 or 16 columns of a result with the 16 x 8 x 8 instruction. Which
// lane holds which elements is the instruction's (PTX ISA, "Matrix Fragments for mma.m16n8k8 with
// .tf32"): with group = lane / 4 and place = lane % 4,
//   a[0..3]  A(group, place), A(group + 8, place), A(group, place + 4), A(group + 8, place + 4)
//   b[0..1]  B(place, group), B(place + 4, group)
//   c[0..3]  C(group, 2 place), C(group, 2 place + 1), and the same of row group + 8
// Operands are rounded to tf32 (10 bits of mantissa, ties away from zero), sums are float32. Rows
// and columns beyond the last are computed from the last and not stored; beyond the last k lie
// zeros.
//
// A block's warp W, beside what phase.h says: `W::kSlots` lanes live in one execution (1 on a GPU,
// where each lane is a thread; 32 on the host), `lanes(f)` is f(lane, slot) for these, `rounded`
// the conversion, and `multiply_add(a, b, c)` the instruction over all slots.
#pragma once

#include <type_traits>

#include "block/product.h"

namespace innerloop {

constexpr int kTensorRows = 16, kTensorColumns = 8, kTensorDepth = 8;

/// The sums of one warp's tile, as its lanes hold them.
template <int kColumns, class Warp>
struct TensorSums {
  static constexpr int kSlots = Warp::kSlots;
  float at[kColumns][kSlots][4];

  IL_HD void clear() {
    IL_UNROLL
    for (int n = 0; n < kColumns; ++n) {
      IL_UNROLL
      for (int s = 0; s < kSlots; ++s) {
        IL_UNROLL
        for (int r = 0; r < 4; ++r) at[n][s][r] = 0;
      }
    }
  }
  /// f(row, column, sum) for every result, on the lane that holds it.
  template <class F>
  IL_HD void each(const Warp& warp, F f) const {
    warp.lanes([&](int lane, int slot) {
      IL_UNROLL
      for (int n = 0; n < kColumns; ++n) {
        IL_UNROLL
        for (int r = 0; r < 4; ++r) {
          f(lane / 4 + r / 2 * 8, n * kTensorColumns + lane % 4 * 2 + r % 2, at[n][slot][r]);
        }
      }
    });
  }
};

/// One warp's part of a product: rows i.. and columns j.. of task `task`.
template <int kColumns, class Warp, class Cell>
class TensorTile {
 public:
  using Product = BlockProduct<float, Cell>;
  using Sums = TensorSums<kColumns, Warp>;
  static constexpr int kSlots = Warp::kSlots;

  IL_HD TensorTile(const Warp& warp, const Product& x, int64_t task, int i, int j, Sums& sums)
      : warp_(warp), x_(x), task_(task), i_(i), j_(j), sums_(sums) {}
  /// Adds A B.
  template <class B>
  IL_HD void add(const Cell* a, const B& b) {
    for (int k = 0; k < x_.k; k += kTensorDepth) {
      float left[kSlots][4], right[kColumns][kSlots][2];
      warp_.lanes([&](int lane, int slot) {
        const int group = lane / 4, place = k + lane % 4;
        IL_UNROLL
        for (int r = 0; r < 4; ++r) {
          const int at = place + r / 2 * 4;
          const int64_t row = last(i_ + group + r % 2 * 8, x_.m);
          const float value =
              at < x_.k ? static_cast<float>(a[task_ * x_.a_task + row * x_.a_row + at * x_.a_col])
                        : 0.0f;
          left[slot][r] = Warp::rounded(value);
        }
        IL_UNROLL
        for (int n = 0; n < kColumns; ++n) {
          const int64_t column = last(j_ + n * kTensorColumns + group, x_.n);
          IL_UNROLL
          for (int r = 0; r < 2; ++r) {
            const int at = place + r * 4;
            const float value =
                at < x_.k ? b.at(task_ * x_.b_task + column * x_.b_col + at * x_.b_row) : 0.0f;
            right[n][slot][r] = Warp::rounded(value);
          }
        }
      });
      IL_UNROLL
      for (int n = 0; n < kColumns; ++n) warp_.multiply_add(left, right[n], sums_.at[n]);
    }
  }
  IL_HD void store() const {
    const float factor = x_.rate ? x_.sign * static_cast<float>(x_.rate[task_]) : x_.sign;
    const Source<float, Cell> base = x_.c0.from(task_ * x_.c0_task);
    Cell* to = x_.c + task_ * x_.c_task;
    sums_.each(warp_, [&](int row, int column, float sum) {
      const int i = i_ + row, j = j_ + column;
      if (i >= x_.m || j >= x_.n) return;
      const float product = factor * sum;
      to[i * x_.c_row + j] = base ? base.at(i * x_.c0_row + j) + product : product;
    });
  }

 private:
  IL_HD static int64_t last(int index, int size) { return index < size ? index : size - 1; }

  const Warp& warp_;
  const Product& x_;
  const int64_t task_;
  const int i_, j_;
  Sums& sums_;
};

template <int kColumns, class Block, class Cell>
IL_CALL void multiply_warp_tiles(const Block& block, const BlockProduct<float, Cell>& x) {
  constexpr int kWide = kColumns * kTensorColumns;
  const int rows = (x.m + kTensorRows - 1) / kTensorRows, cols = (x.n + kWide - 1) / kWide;
  block.spread_warps(static_cast<int>(x.tasks) * rows * cols, [&](int item, const auto& warp) {
    using Warp = std::decay_t<decltype(warp)>;
    TensorSums<kColumns, Warp> sums;
    sums.clear();
    const int task = item / (rows * cols), tile = item % (rows * cols);
    TensorTile<kColumns, Warp, Cell> c(warp, x, task, tile / cols * kTensorRows,
                                       tile % cols * kWide, sums);
    c.add(x.a, x.b);
    if (x.a2) c.add(x.a2, Source<float, Cell>(x.b2, nullptr));
    c.store();
  });
  block.barrier();
}

/// Whether a product fills enough of the instruction to be worth its rounding.
template <class Block>
IL_HD bool suits_tensor_cores(const Block& block, int64_t m, int64_t n, int64_t k) {
  return block.tf32() && block.threads() % 32 == 0 && m >= kTensorRows / 2 && n >= kTensorColumns &&
         k >= kTensorDepth;
}

/// The product, if it suits tensor cores: whether it does.
template <class Block, class Real, class Cell>
IL_HD bool multiply_on_tensor_cores(const Block& block, const BlockProduct<Real, Cell>& x) {
  if constexpr (std::is_same_v<Real, float>) {
    if (!suits_tensor_cores(block, x.m, x.n, x.k)) return false;
    if (x.n > kTensorColumns) {
      multiply_warp_tiles<2>(block, x);
    } else {
      multiply_warp_tiles<1>(block, x);
    }
    return true;
  } else {
    return false;
  }
}

}  // namespace innerloop
