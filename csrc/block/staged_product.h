// Matrix products of a block with operands in global memory: slabs of both operands come through
// shared memory by asynchronous copies, the next slab while the block multiplies the last one.
//
// C is cut into tiles, and the block works on one tile at a time; a thread keeps 4 x 4 of its sums
// (2 x 2 in float64) in registers from slab to slab. Where each array lies: two buffers in the
// staging memory, each with a slab of A [kSlab, tile rows] and one of B [kSlab, tile columns], rows
// padded. Phases: copy slab 0; for each slab: start copying the next one, wait for this one,
// barrier, multiply, barrier; at the end store, barrier.
#pragma once

#include "block/product.h"

namespace innerloop {

template <class Real>
constexpr int kSlab = 64 / static_cast<int>(sizeof(Real));  // columns of A, rows of B

/// The part of C that a block of threads holds in registers, kRows x kCols a thread.
template <class Real>
struct StagedTile {
  static constexpr int kRows = 16 / static_cast<int>(sizeof(Real)), kCols = kRows;
  int thread_rows, thread_cols;

  IL_HD StagedTile(int threads, int64_t m)
      : thread_rows(m > 8 * kRows   ? 16
                    : m > 4 * kRows ? 8
                                    : 4) {
    thread_cols = threads / thread_rows;
  }
  IL_HD int rows() const { return kRows * thread_rows; }
  IL_HD int cols() const { return kCols * thread_cols; }
};

/// Numbers of staging memory that a block needs, whatever it multiplies.
template <class Real>
IL_HD inline int64_t staging_size(int threads, int pad = 1) {
  int most = 0;
  for (int m = 1; m <= 64; m *= 2) {  // meets every shape of a tile
    const StagedTile<Real> tile(threads, m);
    if (tile.rows() + tile.cols() > most) most = tile.rows() + tile.cols();
  }
  return 2 * kSlab<Real> * static_cast<int64_t>(most + 2 * pad);
}

/// The tile that a block works on, and slabs of both operands in two buffers. kPad: numbers between
/// two rows of a slab, so that threads that read or write together meet different banks.
template <class Block, class Real, class Cell, int kPad>
class StagedSlabs {
 public:
  IL_HD StagedSlabs(const Block& block, int64_t m, Cell* staging)
      : tile(block.threads(), m), block_(block), staging_(staging) {}

  /// f(to, i, k) for every number of a slab that is `width` wide. Neighbouring threads take
  /// neighbouring numbers of the operand: in direction k, or in direction i.
  template <class F>
  IL_HD void fill(Cell* to, int width, bool along_k, F f) const {
    block_.spread(along_k ? width : kSlab<Real>, along_k ? kSlab<Real> : width, [&](int p, int q) {
      const int i = along_k ? p : q, k = along_k ? q : p;
      f(to + k * (width + kPad) + i, i, k);
    });
  }

  const StagedTile<Real> tile;

 protected:
  /// One slab after the other: copy(slab, left, right) starts its copies, multiply(left, right)
  /// adds its part.
  template <class Copy, class Multiply>
  IL_HD void run_slabs(int slabs, Copy copy, Multiply multiply) const {
    if (slabs > 0) start(0, copy);
    for (int slab = 0; slab < slabs; ++slab) {
      if (slab + 1 < slabs) {
        start(slab + 1, copy);
        block_.template wait_copies<1>();
      } else {
        block_.template wait_copies<0>();
      }
      block_.barrier();
      multiply(left(slab), right(slab));
      block_.barrier();
    }
  }
  IL_HD int left_ld() const { return tile.rows() + kPad; }
  IL_HD int right_ld() const { return tile.cols() + kPad; }

  const Block& block_;

 private:
  IL_HD Cell* left(int slab) const { return staging_ + slab % 2 * buffer_size(); }
  IL_HD Cell* right(int slab) const { return left(slab) + kSlab<Real> * left_ld(); }
  IL_HD int64_t buffer_size() const { return kSlab<Real> * (left_ld() + right_ld()); }

  template <class Copy>
  IL_HD void start(int slab, Copy copy) const {
    copy(slab, left(slab), right(slab));
    block_.commit_copies();
  }

  Cell* const staging_;
};

/// A tile whose sums the threads keep.
template <class Block, class Real, class Cell>
class StagedSums : public StagedSlabs<Block, Real, Cell, 1> {
 public:
  using Slabs = StagedSlabs<Block, Real, Cell, 1>;
  using Slabs::tile;

  IL_HD StagedSums(const Block& block, int64_t m, Cell* staging)
      : Slabs(block, m, staging), sums_(block) {}

  /// The sums over all slabs. copy(slab, left, right) starts the copies of one slab, A to left
  /// [kSlab, tile rows] and B to right [kSlab, tile columns], by `fill`; store(i, j, sum) takes a
  /// result of the tile.
  template <class Copy, class Store>
  IL_HD void run(int slabs, Copy copy, Store store) {
    each_thread([&](Sums& sums, int, int) {
      IL_UNROLL
      for (int r = 0; r < kRows; ++r) {
        IL_UNROLL
        for (int c = 0; c < kCols; ++c) sums.at[r][c] = 0;
      }
    });
    this->run_slabs(slabs, copy, [&](const Cell* a, const Cell* b) { multiply(a, b); });
    each_thread([&](const Sums& sums, int row, int col) {
      IL_UNROLL
      for (int r = 0; r < kRows; ++r) {
        IL_UNROLL
        for (int c = 0; c < kCols; ++c) {
          store(row + r * tile.thread_rows, col + c * tile.thread_cols, sums.at[r][c]);
        }
      }
    });
    block_.barrier();
  }

 private:
  using Slabs::block_;
  static constexpr int kRows = StagedTile<Real>::kRows, kCols = StagedTile<Real>::kCols;
  struct Sums {
    Real at[kRows][kCols];
  };

  IL_HD void multiply(const Cell* a, const Cell* b) {
    const int a_ld = this->left_ld(), b_ld = this->right_ld();
    each_thread([&](Sums& sums, int row, int col) {
      IL_LOOP
      for (int k = 0; k < kSlab<Real>; ++k) {
        Real from_a[kRows], from_b[kCols];
        IL_UNROLL
        for (int r = 0; r < kRows; ++r) from_a[r] = a[k * a_ld + row + r * tile.thread_rows];
        IL_UNROLL
        for (int c = 0; c < kCols; ++c) from_b[c] = b[k * b_ld + col + c * tile.thread_cols];
        IL_UNROLL
        for (int r = 0; r < kRows; ++r) {
          IL_UNROLL
          for (int c = 0; c < kCols; ++c) sums.at[r][c] += from_a[r] * from_b[c];
        }
      }
    });
  }

  /// f(sums, row, col) on every thread that has a part of the tile: the same one in all phases.
  template <class F>
  IL_HD void each_thread(F f) {
    block_.spread(tile.thread_rows, tile.thread_cols,
                  [&](int row, int col) { f(sums_.at(row * tile.thread_cols + col), row, col); });
  }

  typename Block::template PerThread<Sums> sums_;
};

template <class Block, class Real, class Cell>
class StagedProduct {
 public:
  /// near: workspace cells lie in shared memory, so that they are copied by the threads.
  IL_HD StagedProduct(const Block& block, const BlockProduct<Real, Cell>& x, Cell* staging,
                      bool near)
      : block_(block),
        x_(x),
        near_(near),
        slabs_((x.k + kSlab<Real> - 1) / kSlab<Real>),
        sums_(block, x.m, staging) {}

  IL_HD void run() {
    const int rows = sums_.tile.rows(), cols = sums_.tile.cols();
    for (int64_t task = 0; task < x_.tasks; ++task) {
      for (int i = 0; i < x_.m; i += rows) {
        for (int j = 0; j < x_.n; j += cols) run_tile(task, i, j);
      }
    }
  }

 private:
  IL_HD void run_tile(int64_t task, int i0, int j0) {
    const Real factor = x_.rate ? x_.sign * static_cast<Real>(x_.rate[task]) : x_.sign;
    const Source<Real, Cell> base = x_.c0.from(task * x_.c0_task);
    Cell* to = x_.c + task * x_.c_task;
    sums_.run(
        x_.a2 ? 2 * slabs_ : slabs_,
        [&](int slab, Cell* left, Cell* right) { copy(task, i0, j0, slab, left, right); },
        [&](int row, int col, Real sum) {
          const int i = i0 + row, j = j0 + col;
          if (i >= x_.m || j >= x_.n) return;
          const Real product = factor * sum;
          to[i * x_.c_row + j] = base ? base.at(i * x_.c0_row + j) + product : product;
        });
  }

  /// Starts the copies of one slab; what lies beyond the operands is zero.
  IL_HD void copy(int64_t task, int i0, int j0, int slab, Cell* left, Cell* right) const {
    const bool second = slab >= slabs_;
    const int k0 = (second ? slab - slabs_ : slab) * kSlab<Real>;
    const Cell* a = (second ? x_.a2 : x_.a) + task * x_.a_task;
    const auto b = (second ? Source<Real, Cell>(x_.b2, nullptr) : x_.b).from(task * x_.b_task);
    sums_.fill(left, sums_.tile.rows(), x_.a_col == 1, [&](Cell* to, int i, int k) {
      if (i0 + i >= x_.m || k0 + k >= x_.k) {
        *to = Real(0);
      } else {
        block_.copy(to, a + (i0 + i) * x_.a_row + (k0 + k) * x_.a_col, near_);
      }
    });
    sums_.fill(right, sums_.tile.cols(), x_.b_col != 1, [&](Cell* to, int j, int k) {
      if (j0 + j >= x_.n || k0 + k >= x_.k) {
        *to = Real(0);
      } else {
        b.copy(block_, to, (k0 + k) * x_.b_row + (j0 + j) * x_.b_col, near_);
      }
    });
  }

  const Block& block_;
  const BlockProduct<Real, Cell>& x_;
  const bool near_;
  const int slabs_;
  StagedSums<Block, Real, Cell> sums_;
};

/// Tiles pay where they are mostly full and long enough to hide a copy.
template <class Block, class Real, class Cell>
IL_HD bool pays_staged(const Block& block, const BlockProduct<Real, Cell>& x) {
  const StagedTile<Real> tile(block.threads(), x.m);
  return x.m >= 8 && x.k >= kSlab<Real> && tile.thread_cols > 0 && 2 * x.n >= tile.cols();
}

template <class Block, class Real, class Cell>
IL_CALL void multiply_staged(const Block& block, const BlockProduct<Real, Cell>& x, Cell* staging,
                             bool near) {
  StagedProduct<Block, Real, Cell>(block, x, staging, near).run();
}

}  // namespace innerloop
