// Solves W theta = z for symmetric W >= 0 in every lane: Cholesky, and where a lane's matrix is
// singular the least-squares solution of smallest norm.
#pragma once

#include "regression/task.h"

namespace innerloop {

/// Weight of a pivot or an eigenvalue below which it counts as zero, as in LAPACK's least squares.
IL_INLINE double rank_tolerance(int64_t p) { return static_cast<double>(p) * 0x1p-52; }

/// Replaces z by W^-1 z and the packed W by its factor. Returns the lanes whose matrix is regular;
/// where it is numerically singular, arbitrary numbers are left.
template <class L, int kP>
IL_INLINE typename L::Mask solve_cholesky(const RegressionShape<kP>& shape, typename L::Array w,
                                          typename L::Array z) {
  using V = typename L::V;
  using Array = typename L::Array;
  const int64_t p = shape.p();
  const V tolerance = L::set(rank_tolerance(p));
  typename L::Mask regular = L::everywhere();
  for (int64_t j = 0; j < p; ++j) {
    const Array row = w + j * (j + 1) / 2;
    V pivot = row[j];
    const V least = tolerance * pivot;
    for (int64_t k = 0; k < j; ++k) pivot -= row[k] * row[k];
    regular &= pivot > least;
    const V inverse = L::set(1) / L::sqrt(pivot);
    row[j] = inverse;
    for (int64_t i = j + 1; i < p; ++i) {
      const Array below = w + i * (i + 1) / 2;
      for (int64_t k = 0; k < j; ++k) below[j] -= below[k] * row[k];
      below[j] = below[j] * inverse;
    }
  }
  for (int64_t i = 0; i < p; ++i) {
    const Array row = w + i * (i + 1) / 2;
    for (int64_t k = 0; k < i; ++k) z[i] -= row[k] * z[k];
    z[i] = z[i] * row[i];
  }
  for (int64_t i = p - 1; i >= 0; --i) {
    for (int64_t k = i + 1; k < p; ++k) z[i] -= w[k * (k + 1) / 2 + i] * z[k];
    z[i] = z[i] * w[i * (i + 1) / 2 + i];
  }
  return regular;
}

/// One lane at a time: replaces z [p] by the least-squares solution of smallest norm, through the
/// eigenvalues of a [p, p] (cyclic Jacobi rotations); a and vectors [p, p] are overwritten. At most
/// `rank` eigenvalues count, the largest.
template <class L>
IL_HD void solve_smallest_norm(int64_t p, int64_t rank, typename L::Numbers a,
                               typename L::Numbers vectors, typename L::Numbers z,
                               typename L::Numbers projection) {
  for (int64_t i = 0; i < p * p; ++i) vectors[i] = i % (p + 1) == 0 ? 1.0 : 0.0;
  for (int sweep = 0; sweep < 40; ++sweep) {
    double diagonal = 0, outside = 0;
    for (int64_t i = 0; i < p; ++i) {
      diagonal += a[i * p + i] * a[i * p + i];
      for (int64_t j = 0; j < i; ++j) outside += a[i * p + j] * a[i * p + j];
    }
    if (!(outside > 1e-36 * diagonal)) break;
    IL_ROLLED
    for (int64_t i = 1; i < p; ++i) {
      IL_ROLLED
      for (int64_t j = 0; j < i; ++j) {
        const double off = a[i * p + j];
        if (off == 0) continue;
        const double half = (a[i * p + i] - a[j * p + j]) / (2 * off);
        const double size = std::fabs(half) + std::sqrt(half * half + 1);
        const double t = half < 0 ? -1 / size : 1 / size;  // tan of the angle, at most 1
        const double c = 1 / std::sqrt(t * t + 1), s = t * c;
        IL_ROLLED
        for (int64_t k = 0; k < p; ++k) {
          const double u = a[k * p + j], v = a[k * p + i];
          a[k * p + j] = c * u - s * v;
          a[k * p + i] = s * u + c * v;
        }
        IL_ROLLED
        for (int64_t k = 0; k < p; ++k) {
          const double u = a[j * p + k], v = a[i * p + k];
          a[j * p + k] = c * u - s * v;
          a[i * p + k] = s * u + c * v;
        }
        IL_ROLLED
        for (int64_t k = 0; k < p; ++k) {
          const double u = vectors[k * p + j], v = vectors[k * p + i];
          vectors[k * p + j] = c * u - s * v;
          vectors[k * p + i] = s * u + c * v;
        }
      }
    }
  }
  double largest = 0;
  for (int64_t i = 0; i < p; ++i) largest = a[i * p + i] > largest ? a[i * p + i] : largest;
  for (int64_t i = 0; i < p; ++i) {
    const double value = a[i * p + i];
    int64_t greater = 0;
    for (int64_t j = 0; j < p; ++j) {
      greater += a[j * p + j] > value || (a[j * p + j] == value && j < i);
    }
    projection[i] = 0;
    if (greater >= rank || !(value > rank_tolerance(p) * largest)) continue;
    for (int64_t k = 0; k < p; ++k) projection[i] += vectors[k * p + i] * z[k];
    projection[i] /= value;
  }
  for (int64_t k = 0; k < p; ++k) {
    z[k] = 0;
    for (int64_t i = 0; i < p; ++i) z[k] += vectors[k * p + i] * projection[i];
  }
}

}  // namespace innerloop
