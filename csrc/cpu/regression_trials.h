// Trials of the meta linear-regression experiment, kLanes at a time.
//
// MAML's system at rate a is a quadratic in a, S = I - a G1 with gram matrices G1, G2:
//   W = S G2 S = G2 - a (G1 G2 + G2 G1) + a^2 G1 G2 G1,
//   z = S (z2 - a G2 z1) = z2 - a (G1 z2 + G2 z1) + a^2 G1 G2 z1,
// so tasks are summed once for all rates, and a rate costs one solution per trial.
#pragma once

#include "cpu/regression_solve.h"

namespace innerloop {
namespace INNERLOOP_LEVEL {

/// The worker's part of a call.
template <int kP>
class TrialLanes {
 public:
  using S = Simd<double>;
  using V = S::V;
  using Shape = RegressionShape<kP>;

  static int64_t size(const Shape& s) {
    const int64_t p = s.p(), system = s.packed() + p;
    return TaskLanes<kP>::size(s) + 5 * system + p * p + 2 * p + scalars(p);
  }
  TrialLanes(const RegressionTrialsCall& call, const Philox<Lanes>& philox, V* memory)
      : call_(call),
        philox_(philox),
        shape_{call.law.dimension, call.law.samples},
        task_(shape_, call.law, memory) {
    const int64_t p = shape_.p();
    memory += TaskLanes<kP>::size(shape_);
    const auto take = [&memory](int64_t n) { return memory += n, memory - n; };
    for (System& s : systems_) s = {take(shape_.packed()), take(p)};
    joint_ = take(p);
    product_ = take(p * p);
    product_z_ = take(p);
    scalar_ = reinterpret_cast<double*>(take(scalars(p)));
  }

  /// Trials first .. first + kLanes - 1 of the call, of which `used` are wanted.
  void run(int64_t first, int64_t used) {
    const int64_t p = shape_.p(), rows = call_.tasks * shape_.rows();
    sum_tasks(first);
    const auto assemble_pooled = [this] { copy_pooled(); };
    assemble_pooled();
    solve(smaller(2 * rows, p), assemble_pooled);
    for (int64_t i = 0; i < p; ++i) joint_[i] = solved_.z[i];
    const int64_t width = 1 + 3 * call_.rates;
    double* out = call_.excess + first * width;
    store(out, width, used, excess(joint_, 0));
    store_estimates(first, used, 0);
    for (int64_t r = 0; r < call_.rates; ++r) {
      const auto assemble_rate = [this, r] { assemble(call_.rate[r]); };
      assemble_rate();
      solve(smaller(rows, p), assemble_rate);
      store(out + 1 + r, width, used, excess(solved_.z, 0));
      store(out + 1 + call_.rates + r, width, used, excess(joint_, 1 + r));
      store(out + 1 + 2 * call_.rates + r, width, used, excess(solved_.z, 1 + r));
      store_estimates(first, used, 1 + r);
    }
  }

 private:
  /// A packed symmetric matrix and a right side.
  struct System {
    V *w, *z;
  };
  /// Vectors that hold the two matrices and two vectors of one lane.
  static int64_t scalars(int64_t p) { return (2 * p * p + 2 * p + S::kLanes - 1) / S::kLanes; }

  void sum_tasks(int64_t first) {
    const int64_t p = shape_.p();
    for (System& s : systems_) {
      for (int64_t i = 0; i < shape_.packed(); ++i) s.w[i] = V{};
      for (int64_t i = 0; i < p; ++i) s.z[i] = V{};
    }
    Lanes::U trial;
    for (int i = 0; i < S::kLanes; ++i) {
      trial[i] = static_cast<uint64_t>(call_.first_trial + first + i);
    }
    for (int64_t t = 0; t < call_.tasks; ++t) {
      task_.draw(philox_, trial, t);
      add_task();
    }
  }

  INNERLOOP_INLINE void add_task() {
    const int64_t p = shape_.p();
    const V *g1 = task_.gram[0], *g2 = task_.gram[1];
    const V *z1 = task_.moment[0], *z2 = task_.moment[1];
    for (int64_t i = 0; i < p; ++i) {
      for (int64_t j = 0; j < p; ++j) {
        V total{};
        for (int64_t k = 0; k < p; ++k) total += g1[i * p + k] * g2[k * p + j];
        product_[i * p + j] = total;
      }
    }
    for (int64_t i = 0; i < p; ++i) {
      V from_query{}, from_support{};
      for (int64_t k = 0; k < p; ++k) {
        from_query += g1[i * p + k] * z2[k];
        from_support += g2[i * p + k] * z1[k];
      }
      product_z_[i] = from_support;
      pooled_.z[i] += z1[i] + z2[i];
      maml_[0].z[i] += z2[i];
      maml_[1].z[i] += from_query + from_support;
    }
    for (int64_t i = 0, at = 0; i < p; ++i) {
      V last{};
      for (int64_t k = 0; k < p; ++k) last += g1[i * p + k] * product_z_[k];
      maml_[2].z[i] += last;
      for (int64_t j = 0; j <= i; ++j, ++at) {
        V total{};
        for (int64_t k = 0; k < p; ++k) total += product_[i * p + k] * g1[k * p + j];
        pooled_.w[at] += g1[i * p + j] + g2[i * p + j];
        maml_[0].w[at] += g2[i * p + j];
        maml_[1].w[at] += product_[i * p + j] + product_[j * p + i];
        maml_[2].w[at] += total;
      }
    }
  }

  INNERLOOP_INLINE void copy_pooled() {
    for (int64_t i = 0; i < shape_.packed(); ++i) solved_.w[i] = pooled_.w[i];
    for (int64_t i = 0; i < shape_.p(); ++i) solved_.z[i] = pooled_.z[i];
  }
  INNERLOOP_INLINE void assemble(double rate) {
    const V a = S::set(rate);
    for (int64_t i = 0; i < shape_.packed(); ++i) {
      solved_.w[i] = maml_[0].w[i] - a * (maml_[1].w[i] - a * maml_[2].w[i]);
    }
    for (int64_t i = 0; i < shape_.p(); ++i) {
      solved_.z[i] = maml_[0].z[i] - a * (maml_[1].z[i] - a * maml_[2].z[i]);
    }
  }

  /// solved_.z := the solution of solved_, which `assemble` makes again for singular lanes.
  template <class Assemble>
  INNERLOOP_INLINE void solve(int64_t rank, const Assemble& assemble) {
    Lanes::I singular = ~Lanes::I{};
    if (rank == shape_.p()) solve_cholesky(shape_, solved_.w, solved_.z, &singular);
    if (Lanes::all(~singular)) return;
    solve_singular(rank, singular, assemble);
  }
  template <class Assemble>
  __attribute__((noinline)) void solve_singular(int64_t rank, Lanes::I singular,
                                                const Assemble& assemble) {
    const int64_t p = shape_.p();
    double *a = scalar_, *vectors = a + p * p, *z = vectors + p * p, *projection = z + p;
    for (int64_t i = 0; i < p; ++i) product_z_[i] = solved_.z[i];
    assemble();
    for (int lane = 0; lane < S::kLanes; ++lane) {
      if (singular[lane] == 0) continue;
      for (int64_t i = 0; i < p; ++i) {
        z[i] = solved_.z[i][lane];
        for (int64_t j = 0; j <= i; ++j) {
          a[i * p + j] = a[j * p + i] = solved_.w[i * (i + 1) / 2 + j][lane];
        }
      }
      solve_smallest_norm(p, rank, a, vectors, z, projection);
      for (int64_t i = 0; i < p; ++i) product_z_[i][lane] = z[i];
    }
    for (int64_t i = 0; i < p; ++i) solved_.z[i] = product_z_[i];
  }

  INNERLOOP_INLINE V excess(const V* theta, int64_t risk) const {
    const RegressionRisk& r = call_.risks[risk];
    V square{};
    for (int64_t i = 0; i < shape_.p(); ++i) {
      const V d = theta[i] - S::set(r.optimum);
      square += d * d;
    }
    return S::set(0.5 * r.curvature) * square;
  }
  static INNERLOOP_INLINE void store(double* out, int64_t stride, int64_t used, V value) {
    for (int64_t lane = 0; lane < used; ++lane) out[lane * stride] = value[lane];
  }
  INNERLOOP_INLINE void store_estimates(int64_t first, int64_t used, int64_t which) {
    if (!call_.estimates) return;
    const int64_t p = shape_.p(), width = (1 + call_.rates) * p;
    for (int64_t i = 0; i < p; ++i) {
      store(call_.estimates + first * width + which * p + i, width, used, solved_.z[i]);
    }
  }

  const RegressionTrialsCall& call_;
  const Philox<Lanes>& philox_;
  Shape shape_;
  TaskLanes<kP> task_;
  System systems_[5];
  System &pooled_ = systems_[0], *maml_ = systems_ + 1, &solved_ = systems_[4];
  V *joint_, *product_, *product_z_;
  double* scalar_;
};

}  // namespace INNERLOOP_LEVEL
}  // namespace innerloop
