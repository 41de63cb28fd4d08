// Draws tasks of the meta linear-regression experiment and the statistics of their data without
// drawing the data: the cost does not depend on the number of samples.
//
// Rows of X are N(0, Q), Q = U diag(t) U'. With X = Z diag(sqrt t) U' and the QR decomposition
// Z = H B, B has independent entries: chi variables with N, N - 1, ... degrees of freedom on the
// diagonal and normals above it (Bartlett), in min(N, p) rows, whether or not N >= p; and H' noise
// is normal and independent of B. So X'X = D'D and X'y = D'(D theta + sigma g) with the min(N, p)
// rows D = B diag(sqrt t) U' and g normal. U is a product of reflections along normal vectors of p,
// p - 1,
// ..., 2 components (Stewart, 1980); signs of its columns do not change Q.
#pragma once

#include "core/regression.h"
#include "cpu/random.h"

namespace innerloop {
namespace INNERLOOP_LEVEL {

/// kP: the dimension when known to the compiler, or 0.
template <int kP>
struct RegressionShape {
  using V = Lanes::V;
  int64_t dimension, samples;

  INNERLOOP_INLINE int64_t p() const { return kP ? kP : dimension; }
  /// Rows that carry all that N samples say.
  INNERLOOP_INLINE int64_t rows() const { return smaller(samples, p()); }
  /// Entries of a symmetric matrix, packed by rows of its lower triangle.
  INNERLOOP_INLINE int64_t packed() const { return p() * (p() + 1) / 2; }
};

/// One task in kLanes trials.
template <int kP>
class TaskLanes {
 public:
  using S = Simd<double>;
  using V = S::V;
  using Shape = RegressionShape<kP>;

  static int64_t size(const Shape& s) {
    return 3 * s.p() + 1 + s.packed() + 2 * (s.rows() * s.p() + s.p() * s.p() + s.p());
  }
  /// memory: size() vectors.
  TaskLanes(const Shape& shape, const RegressionLaw& law, V* memory) : shape_(shape), law_(law) {
    const int64_t p = shape.p();
    const auto take = [&memory](int64_t n) { return memory += n, memory - n; };
    theta = take(p + 1);
    root_ = take(p);
    factor_ = take(p);
    mirror_ = take(shape.packed());
    for (int side = 0; side < 2; ++side) {
      design_[side] = take(shape.rows() * p);
      gram[side] = take(p * p);
      moment[side] = take(p);
    }
  }

  void draw(const Philox<Lanes>& philox, Lanes::U trial, int64_t task) {
    Stream stream(philox, trial, task);
    draw_parameters(stream);
    draw_designs(stream);
    for (int side = 0; side < 2; ++side) summarise(side);
  }

  /// The covariance [p, p] of the rows. Overwrites the design.
  void covariance(V* out) {
    const int64_t p = shape_.p();
    V* row = design_[0];
    for (int64_t i = 0; i < p * p; ++i) out[i] = V{};
    for (int64_t i = 0; i < p; ++i) {
      for (int64_t j = 0; j < p; ++j) row[j] = i == j ? root_[i] : V{};
      rotate(row);
      for (int64_t j = 0; j < p; ++j) {
        for (int64_t k = 0; k < p; ++k) out[j * p + k] += row[j] * row[k];
      }
    }
  }

  V* theta;      // [p], then the noise variance
  V* gram[2];    // [p, p] X'X / N of support and query
  V* moment[2];  // [p] X'y / N

 private:
  INNERLOOP_INLINE void draw_parameters(Stream& stream) {
    const int64_t p = shape_.p();
    const V scale = S::set(law_.scale);
    for (int64_t i = 0; i <= p; i += 2) {
      const auto u = stream.uniforms();
      theta[i] = scale * u.first;
      if (i < p) theta[i + 1] = scale * u.second;
    }
    for (int64_t i = 0; i < p; ++i) root_[i] = Lanes::sqrt(theta[i]);
    sigma_ = Lanes::sqrt(theta[p]);
    const int64_t normals = shape_.packed() - 1;
    for (int64_t i = 0; i < normals; i += 2) {
      const auto z = stream.normals();
      mirror_[i] = z.first;
      mirror_[i + 1] = z.second;
    }
    V* w = mirror_;
    for (int64_t k = p; k >= 2; w += k--) {  // the reflection that turns e_1 along w
      V square{};
      for (int64_t i = 0; i < k; ++i) square += w[i] * w[i];
      const V norm = Lanes::sqrt(square);
      w[0] += w[0] < S::set(0) ? -norm : norm;
      factor_[k - 1] = S::set(1) / (norm * (w[0] < S::set(0) ? -w[0] : w[0]));
    }
  }

  INNERLOOP_INLINE void draw_designs(Stream& stream) {
    const int64_t p = shape_.p(), rows = shape_.rows();
    for (int64_t i = 0; i < rows; ++i) {
      V *support = design_[0] + i * p, *query = design_[1] + i * p;
      for (int64_t j = 0; j < i; ++j) support[j] = query[j] = V{};
      const auto chi = stream.chis(law_.samples - i);
      support[i] = chi.first * root_[i];
      query[i] = chi.second * root_[i];
      for (int64_t j = i + 1; j < p; ++j) {
        const auto z = stream.normals();
        support[j] = z.first * root_[j];
        query[j] = z.second * root_[j];
      }
    }
    // with the noise of a row beside it, a row's share of X'y is complete
    for (int side = 0; side < 2; ++side) {
      for (int64_t i = 0; i < p; ++i) moment[side][i] = V{};
      for (int64_t i = 0; i < rows; ++i) rotate(design_[side] + i * p);
    }
    for (int64_t i = 0; i < rows; ++i) {
      const auto noise = stream.normals();
      add_row(0, design_[0] + i * p, noise.first);
      add_row(1, design_[1] + i * p, noise.second);
    }
  }

  /// row := row U'.
  INNERLOOP_INLINE void rotate(V* row) const {
    const int64_t p = shape_.p();
    const V* w = mirror_ + shape_.packed() - 1;
    for (int64_t k = 2; k <= p; ++k) {
      w -= k;
      V* last = row + p - k;
      V product{};
      for (int64_t i = 0; i < k; ++i) product += last[i] * w[i];
      product = product * factor_[k - 1];
      for (int64_t i = 0; i < k; ++i) last[i] -= product * w[i];
    }
  }

  /// moment += row (row theta + sigma noise).
  INNERLOOP_INLINE void add_row(int side, const V* row, V noise) {
    V response = sigma_ * noise;
    for (int64_t j = 0; j < shape_.p(); ++j) response += row[j] * theta[j];
    for (int64_t j = 0; j < shape_.p(); ++j) moment[side][j] += row[j] * response;
  }

  /// gram, and both divided by N.
  INNERLOOP_INLINE void summarise(int side) {
    const int64_t p = shape_.p(), rows = shape_.rows();
    const V each = S::set(1 / static_cast<double>(law_.samples));
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
  V *root_, *factor_, *mirror_, *design_[2];
  V sigma_;
};

}  // namespace INNERLOOP_LEVEL
}  // namespace innerloop
