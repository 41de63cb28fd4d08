// Matrix products for kLanes tasks at once: every matrix element is a vector over tasks, so there
// is no padding, no reduction and no tail. B may be shared by the tasks: then its elements are
// scalars.
#pragma once

#include "cpu/simd.h"

namespace innerloop {
namespace INNERLOOP_LEVEL {

/// C = C0 + sign * rate * (A B + A2 B2); strides in elements (vectors for A, C; scalars for a
/// shared B). rate: one factor per lane, null for 1. C0 may be vectors (c0), shared scalars
/// (c0_shared), or 0.
template <class Real>
struct LaneProduct {
  using V = typename Simd<Real>::V;
  int64_t m, n, k;
  const V* a;
  int64_t a_row, a_col;
  const V* b = nullptr;
  const Real* b_shared = nullptr;
  int64_t b_row, b_col;
  const V* a2 = nullptr;
  const V* b2 = nullptr;
  V* c;
  int64_t c_row;
  const V* c0 = nullptr;
  const Real* c0_shared = nullptr;
  const Real* rate = nullptr;
  Real sign = 1;
};

template <class Real, int kRows, int kColumns, bool kShared, bool kFew>
static void lane_tile(const LaneProduct<Real>& p, int64_t row, int64_t column) {
  using S = Simd<Real>;
  using V = typename S::V;
  V acc[kRows][kColumns];
#pragma GCC unroll 16
  for (int i = 0; i < kRows; ++i) {
#pragma GCC unroll 16
    for (int j = 0; j < kColumns; ++j) acc[i][j] = V{};
  }
  const int64_t a_row = p.a_row, a_col = p.a_col, b_row = p.b_row, b_col = p.b_col;
  for (int pair = 0; pair < 2; ++pair) {
    const V* a = pair ? p.a2 : p.a;
    if (!a) break;
    a += row * a_row;
    if constexpr (kShared) {
      const Real* b = p.b_shared + column * b_col;
      for (int64_t k = 0; k < p.k; ++k, a += a_col, b += b_row) {
        V av[kRows];
#pragma GCC unroll 16
        for (int i = 0; i < kRows; ++i) av[i] = a[i * a_row];
#pragma GCC unroll 16
        for (int j = 0; j < kColumns; ++j) {
          const V bv = S::set(b[j * b_col]);
#pragma GCC unroll 16
          for (int i = 0; i < kRows; ++i)
            acc[i][j] = S::template add_product<kFew>(av[i], bv, acc[i][j]);
        }
      }
    } else {
      const V* b = (pair ? p.b2 : p.b) + column * b_col;
      for (int64_t k = 0; k < p.k; ++k, a += a_col, b += b_row) {
        V av[kRows];
#pragma GCC unroll 16
        for (int i = 0; i < kRows; ++i) av[i] = a[i * a_row];
#pragma GCC unroll 16
        for (int j = 0; j < kColumns; ++j) {
          const V bv = b[j * b_col];
#pragma GCC unroll 16
          for (int i = 0; i < kRows; ++i)
            acc[i][j] = S::template add_product<kFew>(av[i], bv, acc[i][j]);
        }
      }
    }
  }
  const V alpha = p.rate ? p.sign * S::load(p.rate) : S::set(p.sign);
#pragma GCC unroll 16
  for (int i = 0; i < kRows; ++i) {
#pragma GCC unroll 16
    for (int j = 0; j < kColumns; ++j) {
      const int64_t at = (row + i) * p.c_row + column + j;
      V base{};
      if (p.c0) base = p.c0[at];
      if (p.c0_shared) base = S::set(p.c0_shared[at]);
      p.c[at] = base + alpha * acc[i][j];  // two roundings: see simd.h
    }
  }
}

template <class Real>
struct LaneTileShape {
  static constexpr int kRows = Simd<Real>::kRegisters == 32 ? 5 : 3;
  static constexpr int kColumns = Simd<Real>::kRegisters == 32 ? 4 : 3;
  static constexpr int kLong = Simd<Real>::kRegisters == 32 ? 12 : 6;  // beside a single one
};

/// Cuts n into the fewest parts of at most `most`, as even as possible: part i starts at n i /
/// parts.
inline int64_t parts_of(int64_t n, int most) { return (n + most - 1) / most; }

template <class Real, bool kShared, bool kFew, int kRows>
static void lane_row_block(const LaneProduct<Real>& p, int64_t row) {
  constexpr int wide = LaneTileShape<Real>::kColumns;
  const int64_t blocks = parts_of(p.n, wide);
  int64_t column = 0;
  for (int64_t i = 0; i < blocks; ++i) {
    const int64_t next = p.n * (i + 1) / blocks;
    switch (next - column) {
      case 1:
        lane_tile<Real, kRows, 1, kShared, kFew>(p, row, column);
        break;
      case 2:
        lane_tile<Real, kRows, 2, kShared, kFew>(p, row, column);
        break;
      case 3:
        lane_tile<Real, kRows, 3, kShared, kFew>(p, row, column);
        break;
      case 4:
        lane_tile<Real, kRows, wide, kShared, kFew>(p, row, column);
        break;
    }
    column = next;
  }
}

/// A single row or column of C: one long tile at a time, so that enough sums are in flight.
template <class Real, bool kShared, bool kFew, bool kIsColumn>
static void lane_strip(const LaneProduct<Real>& p) {
  constexpr int most = LaneTileShape<Real>::kLong;
  const int64_t length = kIsColumn ? p.m : p.n;
  const int64_t blocks = parts_of(length, most);
  int64_t at = 0;
  for (int64_t i = 0; i < blocks; ++i) {
    const int64_t next = length * (i + 1) / blocks;
    const int64_t row = kIsColumn ? at : 0, column = kIsColumn ? 0 : at;
    switch (next - at) {
#define INNERLOOP_STRIP(n)                                                                  \
  case n:                                                                                   \
    if constexpr (n <= most) {                                                              \
      lane_tile<Real, kIsColumn ? n : 1, kIsColumn ? 1 : n, kShared, kFew>(p, row, column); \
    }                                                                                       \
    break;
      INNERLOOP_STRIP(1)
      INNERLOOP_STRIP(2)
      INNERLOOP_STRIP(3)
      INNERLOOP_STRIP(4)
      INNERLOOP_STRIP(5)
      INNERLOOP_STRIP(6)
      INNERLOOP_STRIP(7)
      INNERLOOP_STRIP(8)
      INNERLOOP_STRIP(9)
      INNERLOOP_STRIP(10)
      INNERLOOP_STRIP(11)
      INNERLOOP_STRIP(12)
#undef INNERLOOP_STRIP
    }
    at = next;
  }
}

template <class Real, bool kShared, bool kFew>
static void lane_multiply_as(const LaneProduct<Real>& p) {
  if (p.n == 1) return lane_strip<Real, kShared, kFew, true>(p);
  if (p.m == 1) return lane_strip<Real, kShared, kFew, false>(p);
  constexpr int rows = LaneTileShape<Real>::kRows;
  const int64_t blocks = parts_of(p.m, rows);
  int64_t row = 0;
  for (int64_t i = 0; i < blocks; ++i) {
    const int64_t next = p.m * (i + 1) / blocks;
    switch (next - row) {
      case 1:
        lane_row_block<Real, kShared, kFew, 1>(p, row);
        break;
      case 2:
        lane_row_block<Real, kShared, kFew, 2>(p, row);
        break;
      case 3:
        lane_row_block<Real, kShared, kFew, 3>(p, row);
        break;
      case 4:
        lane_row_block<Real, kShared, kFew, rows >= 4 ? 4 : 1>(p, row);
        break;
      case 5:
        lane_row_block<Real, kShared, kFew, rows >= 5 ? 5 : 1>(p, row);
        break;
    }
    row = next;
  }
}

template <class Real, bool kFew>
static void lane_multiply_of(const LaneProduct<Real>& p) {
  if (p.b_shared) {
    lane_multiply_as<Real, true, kFew>(p);
  } else {
    lane_multiply_as<Real, false, kFew>(p);
  }
}

template <class Real>
static void lane_multiply(const LaneProduct<Real>& p) {
  if (p.m <= 0 || p.n <= 0) return;
  if (p.k <= kFewTerms) return lane_multiply_of<Real, true>(p);
  return lane_multiply_of<Real, false>(p);
}

}  // namespace INNERLOOP_LEVEL
}  // namespace innerloop
