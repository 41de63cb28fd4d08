// From the sums over a trial's tasks to an estimator and its excess risks.
#pragma once

#include "regression/solve.h"
#include "regression/sums.h"

namespace innerloop {

/// The estimators of kLanes trials: number 0 is pooled least squares, number 1 + r MAML at rate r.
template <class L, int kP>
class Estimates {
 public:
  using V = typename L::V;
  using Mask = typename L::Mask;
  using Array = typename L::Array;
  using Numbers = typename L::Numbers;
  using Shape = RegressionShape<kP>;

  IL_HD static constexpr int64_t size(const Shape& s) {
    return s.system() + s.p() + numbers(s.p()) + 3 * L::kGap;
  }
  /// memory: size() vectors.
  IL_INLINE Estimates(const RegressionTrialsCall& call, Array memory)
      : call_(call), shape_{call.law.dimension, call.law.samples} {
    solved_ = system_of(shape_, L::take(&memory, shape_.system()), 0);
    regular_z_ = L::take(&memory, shape_.p());
    numbers_ = L::numbers(L::take(&memory, numbers(shape_.p())));
  }

  /// Writes one estimator of trials first .. first + kLanes - 1 of the call, of which `used` are
  /// wanted, from the sums [kSystems, shape.system()] over their tasks.
  IL_INLINE void run(Array sums, int64_t first, int64_t used, int64_t estimator) {
    solve(sums, estimator);
    const int64_t rates = call_.rates, width = 1 + 3 * rates;
    double* const out = call_.excess + first * width;
    if (estimator == 0) {
      store(out, width, used, excess(0));
      for (int64_t r = 0; r < rates; ++r) store(out + 1 + rates + r, width, used, excess(1 + r));
    } else {
      store(out + estimator, width, used, excess(0));
      store(out + 2 * rates + estimator, width, used, excess(estimator));
    }
    if (call_.estimates) {
      const int64_t p = shape_.p(), all = (1 + rates) * p;
      double* const theta = call_.estimates + first * all + estimator * p;
      for (int64_t i = 0; i < p; ++i) store(theta + i, all, used, solved_.z[i]);
    }
  }

 private:
  /// Vectors that hold two matrices and two right sides of one lane.
  IL_HD static constexpr int64_t numbers(int64_t p) {
    return (2 * p * p + 2 * p + L::kLanes - 1) / L::kLanes;
  }

  IL_INLINE void assemble(Array sums, int64_t estimator) {
    const int64_t size = shape_.system();
    if (estimator == 0) {
      for (int64_t i = 0; i < size; ++i) solved_.w[i] = sums[i];
      return;
    }
    const V a = L::set(call_.rate[estimator - 1]);
    const Array constant = sums + size, linear = constant + size, square = linear + size;
    for (int64_t i = 0; i < size; ++i) {
      solved_.w[i] = constant[i] - a * (linear[i] - a * square[i]);
    }
  }

  /// solved_.z := the estimator.
  IL_INLINE void solve(Array sums, int64_t estimator) {
    const int64_t p = shape_.p();
    const int64_t rows = call_.tasks * shape_.rows() * (estimator == 0 ? 2 : 1);
    assemble(sums, estimator);
    Mask singular = L::everywhere();
    if (rows >= p) singular = L::without(singular, solve_cholesky<L>(shape_, solved_.w, solved_.z));
    if (L::any(singular)) solve_singular(sums, estimator, rows < p ? rows : p, singular);
  }

  /// In singular lanes, whose matrices have at most this rank.
  IL_OUTLINE void solve_singular(Array sums, int64_t estimator, int64_t rank, Mask singular) {
    const int64_t p = shape_.p();
    const Numbers a = numbers_, vectors = a + p * p, z = vectors + p * p, projection = z + p;
    for (int64_t i = 0; i < p; ++i) regular_z_[i] = solved_.z[i];
    assemble(sums, estimator);
    for (int64_t lane = 0; lane < L::kLanes; ++lane) {
      if (!L::holds(singular, lane)) continue;
      for (int64_t i = 0; i < p; ++i) {
        z[i] = L::get(solved_.z[i], lane);
        for (int64_t j = 0; j <= i; ++j) {
          a[i * p + j] = a[j * p + i] = L::get(solved_.w[i * (i + 1) / 2 + j], lane);
        }
      }
      solve_smallest_norm<L>(p, rank, a, vectors, z, projection);
      for (int64_t i = 0; i < p; ++i) L::put(regular_z_[i], lane, z[i]);
    }
    for (int64_t i = 0; i < p; ++i) solved_.z[i] = regular_z_[i];
  }

  IL_INLINE V excess(int64_t risk) const {
    const RegressionRisk& r = call_.risks[risk];
    V square{};
    for (int64_t i = 0; i < shape_.p(); ++i) {
      const V d = solved_.z[i] - L::set(r.optimum);
      square += d * d;
    }
    return L::set(0.5 * r.curvature) * square;
  }
  static IL_INLINE void store(double* out, int64_t stride, int64_t used, V value) {
    for (int64_t lane = 0; lane < used; ++lane) out[lane * stride] = L::get(value, lane);
  }

  const RegressionTrialsCall& call_;
  Shape shape_;
  System<Array> solved_;
  Array regular_z_;
  Numbers numbers_;
};

}  // namespace innerloop
