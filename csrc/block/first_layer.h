// The first layer's products with an initial weight W that all tasks share and whose per-task
// weights are never built ("Implicit first layer" in docs/math.md), taken for all tasks at once:
//   X W^T   in a launch before the tasks' own, whose blocks take their rows of it
//   D^T X   in a launch after it, the gradient of W, from the cotangents D that the blocks leave
// X has the support rows of all tasks, then their query rows; D takes the place of X W^T row by
// row. A block computes one tile of one part of a product; the rows of D^T X are cut into a number
// of parts that depends on sizes alone, and a kernel adds the parts in their order.
#pragma once

#include "block/schedule.h"
#include "block/side_rows.h"
#include "block/tensor_product.h"

namespace innerloop {

constexpr int kProductThreads = 256;       // of a block of these launches
constexpr int64_t kProductBlocks = 2;      // that a multiprocessor shall have
constexpr int64_t kLeastRowsOfPart = 128;  // fewer would have little to do beside writing sums

struct FirstLayerLaunch {
  Side support, query;
  int64_t tasks, in, out;
  int64_t first, last;  // rows that take part, of tasks (N + Q)
  int64_t parts;        // of these rows in D^T X
  bool tf32;            // the products may run on tensor cores
  const void* weight;   // [out, in]
  void* rows;           // [tasks (N + Q), out]
  void* gradient;       // [parts, out, in]
};

/// The rows X where the caller keeps them.
template <class Real>
class InputRows {
 public:
  IL_HD explicit InputRows(const FirstLayerLaunch& launch)
      : launch_(launch), support_rows_(launch.tasks * launch.support.rows) {}
  /// Null for a row that is not in use, which may hold anything and counts as zero.
  IL_HD const Real* at(int64_t row) const {
    const bool is_query = row >= support_rows_;
    const Side& side = is_query ? launch_.query : launch_.support;
    const int64_t r = is_query ? row - support_rows_ : row;
    if (side.count || side.weight) {
      const int64_t task = r / side.rows;
      if (row_weight<Real>(side, task, r - task * side.rows) == Real(0)) return nullptr;
    }
    return static_cast<const Real*>(side.x) + r * launch_.in;
  }

 private:
  const FirstLayerLaunch& launch_;
  const int64_t support_rows_;
};

/// Starts copying a number to shared memory; null: it is zero.
template <class Block, class Real, class Cell>
IL_HD void copy_or_clear(const Block& block, Cell* to, const Real* from) {
  if (from) {
    block.copy(to, from, false);
  } else {
    *to = Real(0);
  }
}

/// f(sums) with a tile of an m x n product of k terms.
template <class Real, class Block, class Cell, class F>
IL_HD void with_tile(const Block& block, Cell* staging, int64_t m, int64_t n, int64_t k, F f) {
  if constexpr (std::is_same_v<Real, float>) {
    if (suits_tensor_cores(block, m, n, k)) {
      StagedTensorSums<Block, Cell> sums(block, m, staging);
      f(sums);
      return;
    }
  }
  StagedSums<Block, Real, Cell> sums(block, m, staging);
  f(sums);
}

/// Numbers of staging memory that a block of these launches needs.
template <class Real>
inline int64_t product_staging_size() {
  return staging_size<Real>(kProductThreads, kTensorPad);
}

/// Tiles of a product with m x n results.
template <class Real>
IL_HD inline int64_t product_tiles(int64_t m, int64_t n) {
  const StagedTile<Real> tile(kProductThreads, m);
  return (m + tile.rows() - 1) / tile.rows() * ((n + tile.cols() - 1) / tile.cols());
}

/// One tile of X W^T.
template <class Block, class Real, class Sums>
IL_HD void inputs_tile(const Block& block, const FirstLayerLaunch& launch, Sums& sums,
                       int64_t index) {
  using Cell = typename Block::template Cell<Real>;
  const int rows = sums.tile.rows(), cols = sums.tile.cols();
  const int64_t across = (launch.out + cols - 1) / cols;
  const int64_t i0 = launch.first + index / across * rows, j0 = index % across * cols;
  const InputRows<Real> inputs(launch);
  const Real* weight = static_cast<const Real*>(launch.weight);
  Real* to = static_cast<Real*>(launch.rows);
  const auto copy = [&](int slab, Cell* left, Cell* right) {
    const int64_t k0 = static_cast<int64_t>(slab) * kSlab<Real>;
    sums.fill(left, rows, true, [&](Cell* cell, int i, int k) {
      const bool exists = i0 + i < launch.last && k0 + k < launch.in;
      const Real* row = exists ? inputs.at(i0 + i) : nullptr;
      copy_or_clear(block, cell, row ? row + k0 + k : nullptr);
    });
    sums.fill(right, cols, true, [&](Cell* cell, int j, int k) {
      const bool exists = j0 + j < launch.out && k0 + k < launch.in;
      copy_or_clear(block, cell, exists ? weight + (j0 + j) * launch.in + k0 + k : nullptr);
    });
  };
  const int64_t slabs = (launch.in + kSlab<Real> - 1) / kSlab<Real>;
  sums.run(static_cast<int>(slabs), copy, [&](int i, int j, Real sum) {
    if (i0 + i < launch.last && j0 + j < launch.out) to[(i0 + i) * launch.out + j0 + j] = sum;
  });
}

/// One tile of a part of D^T X, of its rows first to last.
template <class Block, class Real, class Sums>
IL_HD void cotangents_tile(const Block& block, const FirstLayerLaunch& launch, Sums& sums,
                           int64_t first, int64_t last, int64_t index, Real* to) {
  using Cell = typename Block::template Cell<Real>;
  const int rows = sums.tile.rows(), cols = sums.tile.cols();
  const int64_t across = (launch.in + cols - 1) / cols;
  const int64_t i0 = index / across * rows, j0 = index % across * cols;
  const InputRows<Real> inputs(launch);
  const Real* cotangents = static_cast<const Real*>(launch.rows);
  const auto copy = [&](int slab, Cell* left, Cell* right) {
    const int64_t k0 = first + static_cast<int64_t>(slab) * kSlab<Real>;
    sums.fill(left, rows, false, [&](Cell* cell, int i, int k) {
      const bool exists = i0 + i < launch.out && k0 + k < last;
      copy_or_clear(block, cell, exists ? cotangents + (k0 + k) * launch.out + i0 + i : nullptr);
    });
    sums.fill(right, cols, false, [&](Cell* cell, int j, int k) {
      const bool exists = j0 + j < launch.in && k0 + k < last;
      const Real* row = exists ? inputs.at(k0 + k) : nullptr;
      copy_or_clear(block, cell, row ? row + j0 + j : nullptr);
    });
  };
  const int64_t slabs = (last - first + kSlab<Real> - 1) / kSlab<Real>;
  sums.run(static_cast<int>(slabs), copy, [&](int i, int j, Real sum) {
    if (i0 + i < launch.out && j0 + j < launch.in) to[(i0 + i) * launch.in + j0 + j] = sum;
  });
}

/// Block `index` of the launch of X W^T.
template <class Block, class Real>
IL_HD void multiply_inputs(const Block& block, const FirstLayerLaunch& launch,
                           typename Block::template Cell<Real>* staging, int64_t index) {
  with_tile<Real>(block, staging, launch.last - launch.first, launch.out, launch.in,
                  [&](auto& sums) { inputs_tile<Block, Real>(block, launch, sums, index); });
}

/// Block `index` of the launch of D^T X: all tiles of its first part, then those of the second, ...
template <class Block, class Real>
IL_HD void multiply_cotangents(const Block& block, const FirstLayerLaunch& launch,
                               typename Block::template Cell<Real>* staging, int64_t index) {
  const int64_t tiles = product_tiles<Real>(launch.out, launch.in), part = index / tiles;
  const int64_t all = launch.last - launch.first;
  const int64_t first = launch.first + all * part / launch.parts;
  const int64_t last = launch.first + all * (part + 1) / launch.parts;
  Real* to = static_cast<Real*>(launch.gradient) + part * launch.out * launch.in;
  with_tile<Real>(block, staging, launch.out, launch.in, last - first, [&](auto& sums) {
    cotangents_tile<Block, Real>(block, launch, sums, first, last, index % tiles, to);
  });
}

// ---- when, and in how many blocks
// ----------------------------------------------------------------

/// Bytes of the rows that pass between the launches.
inline int64_t first_rows_bytes(const Request& r, int64_t real) {
  return r.problem.tasks * (r.support_rows + r.query_rows) * r.problem.net->first().out * real;
}

/// A launch pays where the product that it takes from a block would keep a multiprocessor busy for
/// longer than the launch itself takes, even if the block has a single task.
inline bool pays_one_product(const Request& r, int64_t real) {
  return first_product_work(r) >= kLaunchCycles * kMultiplyAddsPerCycle &&
         first_rows_bytes(r, real) <= kStreamedBudget;
}

/// The work of a task whose first layer's products are taken for all tasks at once.
inline TaskWork with_one_product(TaskWork work, const Request& r) {
  const double products = r.wants_grad ? 2 : 1;
  work.multiply_adds -= products * first_product_work(r);
  work.apart_multiply_adds = products * first_product_work(r);
  work.apart_launches = products;
  return work;
}

/// Parts that keep the multiprocessors busy.
template <class Real>
inline int64_t gradient_parts(int64_t out, int64_t in, int64_t rows, int multiprocessors) {
  const int64_t tiles = product_tiles<Real>(out, in);
  const int64_t wanted = (kProductBlocks * multiprocessors + tiles - 1) / tiles;
  return std::max<int64_t>(1, std::min(wanted, rows / kLeastRowsOfPart));
}

}  // namespace innerloop
