// Draws tasks of the meta linear-regression experiment and the statistics of their data without
// drawing the data: the cost does not depend on the number of samples.
//
// Rows of X are N(0, Q), Q = U diag(t) U'. With X = Z diag(sqrt t) U' and the QR decomposition
// Z = H B, B has independent entries: chi variables with N, N - 1, ... degrees of freedom on the
// diagonal and normals above it (Bartlett), in min(N, p) rows, whether or not N >= p; and H' noise
// is normal and independent of B. So X'X = D'D and X'y = D'(D theta + sigma g) with the min(N, p)
// rows D = B diag(sqrt t) U' and g normal. U is a product of reflections along normal vectors of p,
// p - 1, ..., 2 components (Stewart, 1980); signs of its columns do not change Q.
#pragma once

#include "core/regression.h"
#include "regression/variables.h"

namespace innerloop {

/// kP: the dimension when known to the compiler, or 0.
template <int kP>
struct RegressionShape {
  int64_t dimension, samples;

  IL_INLINE constexpr int64_t p() const { return kP ? kP : dimension; }
  /// Rows that carry all that N samples say.
  IL_INLINE constexpr int64_t rows() const { return samples < p() ? samples : p(); }
  /// Entries of a symmetric matrix, packed by rows of its lower triangle.
  IL_INLINE constexpr int64_t packed() const { return p() * (p() + 1) / 2; }
  /// Numbers of a system W theta = z: W packed, then z.
  IL_INLINE constexpr int64_t system() const { return packed() + p(); }
};

/// One task in kLanes trials.
template <class L, int kP>
class TaskLanes {
 public:
  using V = typename L::V;
  using Array = typename L::Array;
  using Shape = RegressionShape<kP>;

  IL_HD static constexpr int64_t size(const Shape& s) {
    return 3 * s.p() + 1 + s.packed() + 2 * (s.rows() * s.p() + s.p() * s.p() + s.p()) +
           10 * L::kGap;
  }
  /// memory: size() vectors.
  IL_INLINE TaskLanes(const Shape& shape, const RegressionLaw& law, Array memory)
      : shape_(shape), law_(law) {
    const int64_t p = shape.p();
    theta = L::take(&memory, p + 1);
    root_ = L::take(&memory, p);
    factor_ = L::take(&memory, p);
    mirror_ = L::take(&memory, shape.packed());
    for (int side = 0; side < 2; ++side) {
      design_[side] = L::take(&memory, shape.rows() * p);
      gram[side] = L::take(&memory, p * p);
      moment[side] = L::take(&memory, p);
    }
  }

  IL_INLINE void draw(const Philox<L>& philox, typename L::U trial, int64_t task) {
    Stream<L> stream(philox, trial, task);
    draw_parameters(stream);
    draw_designs(stream);
    summarise(0);
    summarise(1);
  }

  /// The covariance [p, p] of the rows. Overwrites the design.
  IL_INLINE void covariance(Array out) {
    const int64_t p = shape_.p();
    const Array row = design_[0];
    for (int64_t i = 0; i < p * p; ++i) out[i] = V{};
    for (int64_t i = 0; i < p; ++i) {
      for (int64_t j = 0; j < p; ++j) row[j] = i == j ? root_[i] : V{};
      rotate(row);
      for (int64_t j = 0; j < p; ++j) {
        for (int64_t k = 0; k < p; ++k) out[j * p + k] += row[j] * row[k];
      }
    }
  }

  Array theta;      // [p], then the noise variance
  Array gram[2];    // [p, p] X'X / N of support and query
  Array moment[2];  // [p] X'y / N

 private:
  IL_INLINE void draw_parameters(Stream<L>& stream) {
    const int64_t p = shape_.p();
    const V scale = L::set(law_.scale);
    IL_ROLLED
    for (int64_t i = 0; i <= p; i += 2) {
      const auto u = stream.uniforms();
      theta[i] = scale * u.first;
      if (i < p) theta[i + 1] = scale * u.second;
    }
    for (int64_t i = 0; i < p; ++i) root_[i] = L::sqrt(theta[i]);
    sigma_ = L::sqrt(theta[p]);
    const int64_t normals = shape_.packed() - 1;
    IL_ROLLED
    for (int64_t i = 0; i < normals; i += 2) {
      const auto z = stream.normals();
      mirror_[i] = z.first;
      mirror_[i + 1] = z.second;
    }
    Array w = mirror_;
    for (int64_t k = p; k >= 2; w = w + k--) {  // the reflection that turns e_1 along w
      V square{};
      for (int64_t i = 0; i < k; ++i) square += w[i] * w[i];
      const V norm = L::sqrt(square);
      w[0] += w[0] < L::set(0) ? -norm : norm;
      factor_[k - 1] = L::set(1) / (norm * (w[0] < L::set(0) ? -w[0] : w[0]));
    }
  }

  IL_INLINE void draw_designs(Stream<L>& stream) {
    const int64_t p = shape_.p(), rows = shape_.rows();
    IL_ROLLED
    for (int64_t i = 0; i < rows; ++i) {
      const Array support = design_[0] + i * p, query = design_[1] + i * p;
      for (int64_t j = 0; j < i; ++j) support[j] = query[j] = V{};
      const auto chi = stream.chis(law_.samples - i);
      support[i] = chi.first * root_[i];
      query[i] = chi.second * root_[i];
      IL_ROLLED
      for (int64_t j = i + 1; j < p; ++j) {
        const auto z = stream.normals();
        support[j] = z.first * root_[j];
        query[j] = z.second * root_[j];
      }
    }
    // with the noise of a row beside it, a row's share of X'y is complete
    rotate_design(0);
    rotate_design(1);
    IL_ROLLED
    for (int64_t i = 0; i < rows; ++i) {
      const auto noise = stream.normals();
      add_row(0, design_[0] + i * p, noise.first);
      add_row(1, design_[1] + i * p, noise.second);
    }
  }

  IL_INLINE void rotate_design(int side) {
    for (int64_t i = 0; i < shape_.p(); ++i) moment[side][i] = V{};
    for (int64_t i = 0; i < shape_.rows(); ++i) rotate(design_[side] + i * shape_.p());
  }

  /// row := row U'.
  IL_INLINE void rotate(Array row) const {
    const int64_t p = shape_.p();
    int64_t at = shape_.packed() - 1;
    for (int64_t k = 2; k <= p; ++k) {
      at -= k;
      const Array w = mirror_ + at, last = row + (p - k);
      V product{};
      for (int64_t i = 0; i < k; ++i) product += last[i] * w[i];
      product = product * factor_[k - 1];
      for (int64_t i = 0; i < k; ++i) last[i] -= product * w[i];
    }
  }

  /// moment += row (row theta + sigma noise).
  IL_INLINE void add_row(int side, Array row, V noise) {
    V response = sigma_ * noise;
    for (int64_t j = 0; j < shape_.p(); ++j) response += row[j] * theta[j];
    for (int64_t j = 0; j < shape_.p(); ++j) moment[side][j] += row[j] * response;
  }

  /// gram, and both divided by N.
  IL_INLINE void summarise(int side) {
    const int64_t p = shape_.p(), rows = shape_.rows();
    const V each = L::set(1 / static_cast<double>(law_.samples));
    for (int64_t j = 0; j < p; ++j) {
      for (int64_t k = 0; k <= j; ++k) {
        V total{};
        for (int64_t i = 0; i < rows; ++i) {
          total += design_[side][i * p + j] * design_[side][i * p + k];
        }
        gram[side][j * p + k] = gram[side][k * p + j] = total * each;
      }
      moment[side][j] = moment[side][j] * each;
    }
  }

  Shape shape_;
  const RegressionLaw& law_;
  Array root_, factor_, mirror_, design_[2];
  V sigma_;
};

}  // namespace innerloop
