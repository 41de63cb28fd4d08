// Register-blocked matrix products with vectors along the columns of C (or along the contraction,
// `dot_product`). Small matrices straight from their place: no packing of A, no blocking beyond
// registers; B may be row-major or packed in panels. Every element of C is one chain of
// multiply-adds in the order of k, whatever the tile: results do not depend on how rows are
// grouped.
#pragma once

#include <utility>

#include "cpu/simd.h"

namespace innerloop {
namespace INNERLOOP_LEVEL {

/// Columns per panel of a packed B, in vectors.
constexpr int kPanelVectors = 2;

/// C = C0 + alpha (A B + A2 B2).  A[i, k] = a[i * a_row + k * a_col];  B[k, j] = b[(j / panel) *
/// b_panel + k * b_row + j % panel], panel = kPanelVectors * lanes.  C0 and the second pair
/// optional.
template <class Real>
struct Product {
  int64_t m, n, k;
  const Real* a;
  int64_t a_row, a_col;
  const Real* b;
  int64_t b_row, b_panel;
  const Real* a2 = nullptr;
  const Real* b2 = nullptr;
  Real* c;
  int64_t c_row;
  const Real* c0 = nullptr;
  int64_t c0_row = 0;
  Real alpha = 1;
};

template <class Real, int kRows, int kVectors, bool kTail, bool kFew>
static void product_tile(const Product<Real>& p, int64_t row, int64_t column, int64_t tail) {
  using S = Simd<Real>;
  using V = typename S::V;
  constexpr int n = S::kLanes;
  V acc[kRows][kVectors];
#pragma GCC unroll 16
  for (int i = 0; i < kRows; ++i) {
#pragma GCC unroll 4
    for (int j = 0; j < kVectors; ++j) acc[i][j] = V{};
  }
  const int64_t panel = column / (kPanelVectors * n);
  const int64_t b_offset = panel * p.b_panel + (column - panel * kPanelVectors * n);
  const int64_t a_row = p.a_row, a_col = p.a_col, b_row = p.b_row, b_panel = p.b_panel;
  for (int pair = 0; pair < 2; ++pair) {
    const Real* a = pair ? p.a2 : p.a;
    const Real* b = pair ? p.b2 : p.b;
    if (!a) break;
    a += row * a_row;
    b += b_offset;
    for (int64_t k = 0; k < p.k; ++k, a += a_col, b += b_row) {
      V bv[kVectors];
#pragma GCC unroll 4
      for (int j = 0; j < kVectors; ++j) {
        const Real* from = b + (j / kPanelVectors) * b_panel + (j % kPanelVectors) * n;
        bv[j] = kTail ? S::load_part(from, tail) : S::load(from);
      }
#pragma GCC unroll 16
      for (int i = 0; i < kRows; ++i) {
        const V av = S::set(a[i * a_row]);
#pragma GCC unroll 4
        for (int j = 0; j < kVectors; ++j) {
          acc[i][j] = S::template add_product<kFew>(av, bv[j], acc[i][j]);
        }
      }
    }
  }
  const V alpha = S::set(p.alpha);
  Real* c = p.c + row * p.c_row + column;
  const Real* c0 = p.c0 ? p.c0 + row * p.c0_row + column : nullptr;
#pragma GCC unroll 16
  for (int i = 0; i < kRows; ++i) {
#pragma GCC unroll 4
    for (int j = 0; j < kVectors; ++j) {
      V base{};
      if (c0) {
        const Real* from = c0 + i * p.c0_row + j * n;
        base = kTail ? S::load_part(from, tail) : S::load(from);
      }
      const V value = base + alpha * acc[i][j];  // two roundings: see simd.h
      Real* to = c + i * p.c_row + j * n;
      if (kTail) {
        S::store_part(to, value, tail);
      } else {
        S::store(to, value);
      }
    }
  }
}

template <class Real>
using ProductTile = void (*)(const Product<Real>&, int64_t, int64_t, int64_t);

/// Rows of the tallest tile with that many vectors of columns: accumulators, B and one A must fit.
template <class Real>
constexpr int max_tile_rows(int vectors) {
  return Simd<Real>::kRegisters == 32 ? (vectors == 1   ? 12
                                         : vectors == 2 ? 12
                                         : vectors == 3 ? 8
                                                        : 6)
                                      : (vectors == 1   ? 8
                                         : vectors == 2 ? 6
                                         : vectors == 3 ? 4
                                                        : 2);
}

/// The tile of a height, or null beyond the tallest one.
template <class Real, int kRows, int kVectors, bool kTail, bool kFew>
constexpr ProductTile<Real> tile_of_height() {
  if constexpr (kRows <= max_tile_rows<Real>(kVectors)) {
    return product_tile<Real, kRows, kVectors, kTail, kFew>;
  } else {
    return nullptr;
  }
}

template <class Real, int kVectors, bool kTail, int... kIndices>
static INNERLOOP_INLINE ProductTile<Real> pick_tile(int rows, int64_t terms,
                                                    std::integer_sequence<int, kIndices...>) {
  static constexpr ProductTile<Real> table[2][sizeof...(kIndices)] = {
      {tile_of_height<Real, kIndices + 1, kVectors, kTail, false>()...},
      {tile_of_height<Real, kIndices + 1, kVectors, kTail, true>()...}};
  return table[terms <= kFewTerms][rows - 1];
}

/// The tile for a number of rows and of terms in a sum.
template <class Real, int kVectors, bool kTail>
static INNERLOOP_INLINE ProductTile<Real> pick_tile(int rows, int64_t terms) {
  return pick_tile<Real, kVectors, kTail>(
      rows, terms, std::make_integer_sequence<int, max_tile_rows<Real>(kVectors)>{});
}

/// All rows of kVectors columns: B's panel is read from the nearest cache again and again.
template <class Real, int kVectors, bool kTail>
static void product_columns(const Product<Real>& p, int64_t column, int64_t tail) {
  constexpr int top = max_tile_rows<Real>(kVectors);
  const int64_t blocks = (p.m + top - 1) / top;
  int64_t row = 0;
  for (int64_t i = 0; i < blocks; ++i) {  // heights differ by at most one
    const int64_t next = p.m * (i + 1) / blocks;
    pick_tile<Real, kVectors, kTail>(static_cast<int>(next - row), p.k)(p, row, column, tail);
    row = next;
  }
}

/// A few rows of all columns: C is written in long runs, which pays when k is short and all of B
/// stays in the first-level cache.
template <class Real>
static void product_by_rows(const Product<Real>& p) {
  constexpr int lanes = Simd<Real>::kLanes;
  constexpr int top = max_tile_rows<Real>(2);
  const int64_t whole = p.n / lanes, tail = p.n - whole * lanes;
  const int64_t blocks = (p.m + top - 1) / top;
  int64_t row = 0;
  for (int64_t i = 0; i < blocks; ++i) {
    const int64_t next = p.m * (i + 1) / blocks;
    const int height = static_cast<int>(next - row);
    const ProductTile<Real> two = pick_tile<Real, 2, false>(height, p.k);
    int64_t v = 0;
    for (; v + 2 <= whole; v += 2) two(p, row, v * lanes, 0);
    if (v < whole) pick_tile<Real, 1, false>(height, p.k)(p, row, v * lanes, 0);
    if (tail) pick_tile<Real, 1, true>(height, p.k)(p, row, whole * lanes, tail);
    row = next;
  }
}

/// Computes the product. Memory beyond column n of B, C and C0 is neither read nor written.
template <class Real>
static void multiply(const Product<Real>& p) {
  constexpr int lanes = Simd<Real>::kLanes;
  constexpr int64_t kNearBytes = 16 << 10;
  const int64_t whole = p.n / lanes;
  const bool is_flat = p.m <= max_tile_rows<Real>(4);
  if (!is_flat && p.k * p.n * static_cast<int64_t>(sizeof(Real)) <= kNearBytes) {
    product_by_rows(p);
    return;
  }
  int64_t v = 0;
  if (is_flat) {
    for (; v + 4 <= whole; v += 4) product_columns<Real, 4, false>(p, v * lanes, 0);
  }
  for (; v + 2 <= whole; v += 2) product_columns<Real, 2, false>(p, v * lanes, 0);
  for (; v < whole; ++v) product_columns<Real, 1, false>(p, v * lanes, 0);
  const int64_t tail = p.n - whole * lanes;
  if (tail) product_columns<Real, 1, true>(p, whole * lanes, tail);
}

/// The product of a sum over many rows, some rows at a time: rounding errors grow with the length
/// of one sum, and B is read from the nearest cache for all rows of C.
template <class Real>
static void multiply_long(Product<Real> p) {
  constexpr int64_t kMost = 512;
  const int64_t all = p.k;
  for (int64_t first = 0; first == 0 || first < all; first += kMost) {
    p.k = smaller(kMost, all - first);
    multiply(p);
    p.a += p.k * p.a_col;
    p.b += p.k * p.b_row;
    if (p.a2) {
      p.a2 += p.k * p.a_col;
      p.b2 += p.k * p.b_row;
    }
    p.c0 = p.c;
    p.c0_row = p.c_row;
  }
}

/// C = C0 + alpha A B^T with both A and B contiguous along k: for few rows and long k, where
/// turning B would cost as much as the product.
template <class Real>
struct DotProduct {
  int64_t m, n, k;
  const Real* a;
  int64_t a_row;
  const Real* b;
  int64_t b_row;
  Real* c;
  int64_t c_row;
  const Real* c0 = nullptr;
  int64_t c0_row = 0;
  Real alpha = 1;
};

template <class Real, int kRows, int kColumns>
static void dot_tile(const DotProduct<Real>& p, int64_t row, int64_t column) {
  using S = Simd<Real>;
  using V = typename S::V;
  constexpr int n = S::kLanes;
  static_assert(kRows * kColumns <= n, "one reduction per tile");
  V acc[n];
#pragma GCC unroll 16
  for (int i = 0; i < n; ++i) acc[i] = V{};
  const Real* a = p.a + row * p.a_row;
  const Real* b = p.b + column * p.b_row;
  int64_t k = 0;
  for (; k + n <= p.k; k += n) {
    V bv[kColumns];
#pragma GCC unroll 16
    for (int j = 0; j < kColumns; ++j) {
      bv[j] = S::load(b + j * p.b_row + k);
      __builtin_prefetch(b + (kColumns + j) * p.b_row + k, 0, 2);  // the next tile's rows
    }
#pragma GCC unroll 16
    for (int i = 0; i < kRows; ++i) {
      const V av = S::load(a + i * p.a_row + k);
#pragma GCC unroll 16
      for (int j = 0; j < kColumns; ++j) {
        V& sum = acc[i * kColumns + j];
        sum = S::fma(av, bv[j], sum);
      }
    }
  }
  if (k < p.k) {
    for (int i = 0; i < kRows; ++i) {
      const V av = S::load_part(a + i * p.a_row + k, p.k - k);
      for (int j = 0; j < kColumns; ++j) {
        V& sum = acc[i * kColumns + j];
        sum = S::fma(av, S::load_part(b + j * p.b_row + k, p.k - k), sum);
      }
    }
  }
  const V total = reduce_tile<Real>(acc);
  for (int i = 0; i < kRows; ++i) {
    for (int j = 0; j < kColumns; ++j) {
      const Real base = p.c0 ? p.c0[(row + i) * p.c0_row + column + j] : Real(0);
      p.c[(row + i) * p.c_row + column + j] = base + p.alpha * total[i * kColumns + j];
    }
  }
}

template <class Real, int kRows>
static void dot_rows(const DotProduct<Real>& p, int64_t row) {
  constexpr int columns = Simd<Real>::kLanes / kRows;
  int64_t j = 0;
  for (; j + columns <= p.n; j += columns) dot_tile<Real, kRows, columns>(p, row, j);
  for (; j < p.n; ++j) dot_tile<Real, kRows, 1>(p, row, j);
}

template <class Real>
static void multiply_dot(const DotProduct<Real>& p) {
  constexpr int lanes = Simd<Real>::kLanes;
  constexpr int top = lanes >= 8 && Simd<Real>::kRegisters == 32 ? 5 : lanes >= 4 ? 4 : lanes;
  const int64_t blocks = (p.m + top - 1) / top;
  int64_t row = 0;
  for (int64_t i = 0; i < blocks; ++i) {
    const int64_t next = p.m * (i + 1) / blocks;
    switch (next - row) {
      case 1:
        dot_rows<Real, 1>(p, row);
        break;
      case 2:
        dot_rows<Real, 2>(p, row);
        break;
      case 3:
        dot_rows<Real, lanes >= 4 ? 3 : 1>(p, row);
        break;
      case 4:
        dot_rows<Real, lanes >= 4 ? 4 : 1>(p, row);
        break;
      case 5:
        dot_rows<Real, lanes >= 8 ? 5 : 1>(p, row);
        break;
    }
    row = next;
  }
}

/// out = in^T packed in panels: in [rows, columns] row-major with row stride in_row; out is the B
/// operand [columns, rows] of `multiply` with b_row = panel, b_panel = columns * panel. Columns of
/// the last panel beyond `rows` become 0.
template <class Real>
static void pack_transposed(Real* out, const Real* in, int64_t in_row, int64_t rows,
                            int64_t columns) {
  using S = Simd<Real>;
  using V = typename S::V;
  constexpr int n = S::kLanes;
  constexpr int panel = kPanelVectors * n;
  const int64_t vectors = round_up(rows, panel) / n;
  for (int64_t v = 0; v < vectors; ++v) {
    Real* to = out + (v / kPanelVectors) * columns * panel + (v % kPanelVectors) * n;
    const Real* from = in + v * n * in_row;
    const int64_t valid = rows - v * n;
    for (int64_t c = 0; c < columns; c += n) {
      V r[n];
      const int64_t width = smaller(n, columns - c);
      if (valid >= n && width == n) {
#pragma GCC unroll 16
        for (int i = 0; i < n; ++i) r[i] = S::load(from + i * in_row + c);
      } else {
        for (int i = 0; i < n; ++i) {
          r[i] = i < valid ? S::load_part(from + i * in_row + c, width) : V{};
        }
      }
      transpose_tile<Real>(r);
      for (int i = 0; i < width; ++i) S::store(to + (c + i) * panel, r[i]);
    }
  }
}

}  // namespace INNERLOOP_LEVEL
}  // namespace innerloop
