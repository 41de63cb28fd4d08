// Matrix products of a block: every thread keeps a tile of the result in registers.
#pragma once

#include <cstdint>

#include "block/phase.h"

namespace innerloop {

/// Numbers to be read, in the block's workspace (`own`) or where the caller keeps them (`shared`).
template <class Real, class Cell>
struct Source {
  const Cell* own = nullptr;
  const Real* shared = nullptr;

  Source() = default;
  IL_HD Source(const Cell* own_numbers, const Real* shared_numbers)
      : own(own_numbers), shared(own_numbers ? nullptr : shared_numbers) {}
  IL_HD explicit operator bool() const { return own || shared; }
  IL_HD Real at(int64_t i) const { return own ? static_cast<Real>(own[i]) : shared[i]; }
  IL_HD Source from(int64_t i) const {
    return {own ? own + i : nullptr, shared ? shared + i : nullptr};
  }
};

/// Where both are plain memory one pointer does.
template <class Real>
struct Source<Real, Real> {
  const Real* p = nullptr;

  Source() = default;
  IL_HD Source(const Real* own, const Real* shared) : p(own ? own : shared) {}
  IL_HD explicit operator bool() const { return p != nullptr; }
  IL_HD Real at(int64_t i) const { return p[i]; }
  IL_HD Source from(int64_t i) const { return {p ? p + i : nullptr, nullptr}; }
};

/// C = C0 + factor (A B + A2 B2) for every task, C [m, n]. Element (i, k) of task t's A is
/// a.at(t * a_task + i * a_row + k * a_col), and so on; A2 and B2 lie like A and B. C0 and A2 B2
/// may be absent. factor = sign * rate[t], or sign.
template <class Real, class Cell>
struct BlockProduct {
  int64_t tasks = 1;
  int m = 0, n = 0, k = 0;
  const Cell *a = nullptr, *a2 = nullptr;
  Source<Real, Cell> b;
  const Cell* b2 = nullptr;
  Cell* c = nullptr;
  Source<Real, Cell> c0;
  const Cell* rate = nullptr;
  int64_t a_task = 0, b_task = 0, c_task = 0, c0_task = 0;
  int64_t a_row = 0, a_col = 0, b_row = 0, b_col = 0, c_row = 0, c0_row = 0;
  Real sign = 1;
};

/// The tile of rows i, i + rows, ... and columns j, j + cols, ...: neighbouring threads have
/// neighbouring columns, so that their reads lie together. Rows and columns beyond the last are
/// computed from the last and not stored.
template <int kRows, int kCols, class Real, class Cell>
class Tile {
 public:
  IL_HD Tile(const BlockProduct<Real, Cell>& x, int64_t task, int i, int rows, int j, int cols)
      : x_(x), task_(task), i_(i), rows_(rows), j_(j), cols_(cols) {
    IL_UNROLL
    for (int r = 0; r < kRows; ++r) {
      IL_UNROLL
      for (int c = 0; c < kCols; ++c) sum_[r][c] = 0;
    }
  }
  template <class B>
  IL_HD void add(const Cell* a, const B& b) {
    const Cell* row[kRows];
    B column[kCols];
    IL_UNROLL
    for (int r = 0; r < kRows; ++r) row[r] = a + task_ * x_.a_task + last(i(r), x_.m) * x_.a_row;
    IL_UNROLL
    for (int c = 0; c < kCols; ++c) {
      column[c] = b.from(task_ * x_.b_task + last(j(c), x_.n) * x_.b_col);
    }
    for (int k = 0; k < x_.k; ++k) {
      Real left[kRows], right[kCols];
      IL_UNROLL
      for (int r = 0; r < kRows; ++r) left[r] = row[r][k * x_.a_col];
      IL_UNROLL
      for (int c = 0; c < kCols; ++c) right[c] = column[c].at(k * x_.b_row);
      IL_UNROLL
      for (int r = 0; r < kRows; ++r) {
        IL_UNROLL
        for (int c = 0; c < kCols; ++c) sum_[r][c] += left[r] * right[c];
      }
    }
  }
  IL_HD void store() const {
    const Real factor = x_.rate ? x_.sign * static_cast<Real>(x_.rate[task_]) : x_.sign;
    const Source<Real, Cell> base = x_.c0.from(task_ * x_.c0_task);
    Cell* to = x_.c + task_ * x_.c_task;
    IL_UNROLL
    for (int r = 0; r < kRows; ++r) {
      IL_UNROLL
      for (int c = 0; c < kCols; ++c) {
        if (i(r) >= x_.m || j(c) >= x_.n) continue;
        const Real product = factor * sum_[r][c];
        to[i(r) * x_.c_row + j(c)] = base ? base.at(i(r) * x_.c0_row + j(c)) + product : product;
      }
    }
  }

 private:
  IL_HD static int64_t last(int index, int size) { return index < size ? index : size - 1; }
  IL_HD int i(int r) const { return i_ + r * rows_; }
  IL_HD int j(int c) const { return j_ + c * cols_; }

  const BlockProduct<Real, Cell>& x_;
  const int64_t task_;
  const int i_, rows_, j_, cols_;
  Real sum_[kRows][kCols];
};

template <int kRows, int kCols, class Block, class Real, class Cell>
IL_CALL void multiply_tiles(const Block& block, const BlockProduct<Real, Cell>& x) {
  const int rows = (x.m + kRows - 1) / kRows, cols = (x.n + kCols - 1) / kCols;
  block.spread(static_cast<int>(x.tasks) * rows, cols, [&](int row, int j) {
    const int task = row / rows;
    Tile<kRows, kCols, Real, Cell> tile(x, task, row - task * rows, rows, j, cols);
    tile.add(x.a, x.b);
    if (x.a2) tile.add(x.a2, Source<Real, Cell>(x.b2, nullptr));
    tile.store();
  });
}

/// A product without the barrier at its end. An element of C belongs to the same thread in all
/// products with equal tasks, m and n, which may follow one another without barriers.
/// Larger tiles read less; smaller ones leave fewer threads idle.
template <class Block, class Real, class Cell>
IL_HD void start_product(const Block& block, const BlockProduct<Real, Cell>& x) {
  if (x.tasks == 0 || x.m == 0 || x.n == 0) return;
  const int64_t results = x.tasks * x.m * x.n;
  if (results >= 12 * static_cast<int64_t>(block.threads())) {
    multiply_tiles<4, 4>(block, x);
  } else if (results >= 3 * static_cast<int64_t>(block.threads())) {
    multiply_tiles<2, 2>(block, x);
  } else {
    multiply_tiles<1, 1>(block, x);
  }
}

}  // namespace innerloop
