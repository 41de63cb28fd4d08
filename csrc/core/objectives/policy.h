// Objectives of a Gaussian policy, whose outputs are means and whose free leaf is the log-standard
// deviation: derived in docs/math.md ("Policy objectives").
//
// Columns of a row's targets: the action [K], the recorded mean [K] and log-standard deviation [K],
// and the advantage. Constants: the clip range, the floor of the log-standard deviation.
#pragma once

#include "core/objectives/objective.h"

namespace innerloop {

struct PolicyTargets {
  static constexpr bool kClasses = false, kFree = true;
  IL_HD static int64_t columns(int64_t outputs) { return 3 * outputs + 1; }
};

/// What all of them see of a row: one output at a time.
template <class M>
struct PolicyRow {
  using V = typename M::V;
  using Cell = typename M::Cell;

  IL_HD PolicyRow(const Sample<M>& sample, const Objective& o)
      : s(sample), floor(M::set(o.constants[1])) {}
  IL_HD V action(int64_t k) const { return s.y[k]; }
  IL_HD V old_mean(int64_t k) const { return s.y[s.outputs + k]; }
  IL_HD V old_log_std(int64_t k) const { return s.y[2 * s.outputs + k]; }
  IL_HD V advantage() const { return s.y[3 * s.outputs]; }
  IL_HD V log_std(int64_t k) const { return M::max(s.free[k], floor); }
  /// 1, or 0 below the floor, where nothing depends on the leaf.
  IL_HD V moves(int64_t k) const { return M::select_gt(floor, s.free[k], M::set(0), M::set(1)); }
  IL_HD V inverse_std(int64_t k) const { return M::exp(-log_std(k)); }
  IL_HD V z(int64_t k) const { return (action(k) - V(s.z[k])) * inverse_std(k); }

  const Sample<M>& s;
  V floor;
};

/// The Fisher information of a policy's means and log-standard deviations, which needs no targets.
template <class M>
struct PolicyMetric : PolicyTargets {
  using V = typename M::V;
  using Cell = typename M::Cell;

  IL_HD explicit PolicyMetric(const Objective& o) : o_(o) {}
  IL_HD void metric(const Sample<M>& s, const Cell* rz, const Cell* r_free, Cell* rg,
                    Cell* rg_free) const {
    const PolicyRow<M> row(s, o_);
    for (int64_t k = 0; k < s.outputs; ++k) {
      const V inverse = row.inverse_std(k);
      rg[k] = inverse * inverse * rz[k];
      rg_free[k] = M::set(2) * row.moves(k) * r_free[k];
    }
  }

 protected:
  Objective o_;
};

enum class Likelihood { kLog, kRatio, kClipped };

/// -A log pi, -A rho, or -min(rho A, clip(rho, 1 +- c) A) with rho = pi / pi_old. An advantage of 0
/// gives 0 whatever the ratio is.
template <class M, Likelihood kForm>
struct PolicyGradient : PolicyMetric<M> {
  using V = typename M::V;
  using Cell = typename M::Cell;

  IL_HD explicit PolicyGradient(const Objective& o) : PolicyMetric<M>(o) {}
  IL_HD V gradient(const Sample<M>& s, Cell* g, Cell* g_free) const {
    const PolicyRow<M> row(s, this->o_);
    V value;
    const V c = factor(row, &value);
    for (int64_t k = 0; k < s.outputs; ++k) {
      const V z = row.z(k);
      g[k] = counted(row, -c * z * row.inverse_std(k));
      g_free[k] = counted(row, -row.moves(k) * c * (z * z - M::set(1)));
    }
    return value;
  }
  IL_HD void curvature(const Sample<M>& s, const Cell* rz, const Cell* r_free, Cell* rg,
                       Cell* rg_free) const {
    const PolicyRow<M> row(s, this->o_);
    V value;
    const V c = factor(row, &value);
    V r_log = M::set(0);  // R{log pi}
    for (int64_t k = 0; k < s.outputs; ++k) {
      const V z = row.z(k), sigma = row.moves(k) * r_free[k];
      r_log += z * row.inverse_std(k) * rz[k] + (z * z - M::set(1)) * sigma;
    }
    const V r_c = kForm == Likelihood::kLog ? M::set(0) : c * r_log;
    for (int64_t k = 0; k < s.outputs; ++k) {
      const V z = row.z(k), inverse = row.inverse_std(k), moves = row.moves(k);
      const V sigma = moves * r_free[k];
      const V r_z = -(inverse * rz[k]) - z * sigma;
      rg[k] = counted(row, -(r_c * z + c * (r_z - z * sigma)) * inverse);
      rg_free[k] = counted(row, -moves * (r_c * (z * z - M::set(1)) + M::set(2) * c * z * r_z));
    }
  }

 private:
  /// d value / d log pi, negated: A, A rho, or 0 where the ratio is clipped.
  IL_HD V factor(const PolicyRow<M>& row, V* value) const {
    const V zero = M::set(0), one = M::set(1), half = M::set(0.5), a = row.advantage();
    V log = zero;
    if constexpr (kForm == Likelihood::kLog) {
      const V constant = M::set(0.91893853320467274178);  // log(2 pi) / 2
      for (int64_t k = 0; k < row.s.outputs; ++k) {
        const V z = row.z(k);
        log -= row.log_std(k) + half * z * z + constant;
      }
      *value = counted(row, -a * log);
      return a;
    } else {
      for (int64_t k = 0; k < row.s.outputs; ++k) {
        const V z = row.z(k), old = row.old_log_std(k);
        const V z_old = (row.action(k) - row.old_mean(k)) * M::exp(-old);
        log += old - row.log_std(k) + half * (z_old * z_old - z * z);
      }
      const V ratio = M::exp(log);
      if constexpr (kForm == Likelihood::kRatio) {
        *value = counted(row, -a * ratio);
        return a * ratio;
      } else {
        const V high = one + M::set(this->o_.constants[0]);
        const V low = one - M::set(this->o_.constants[0]);
        const V above = M::select_gt(a, zero, M::select_gt(ratio, high, one, zero), zero);
        const V below = M::select_gt(zero, a, M::select_gt(low, ratio, one, zero), zero);
        const V kept = M::select_gt(above, zero, high, M::select_gt(below, zero, low, ratio));
        *value = counted(row, -a * kept);
        return M::select_gt(above + below, zero, zero, a * ratio);
      }
    }
  }
  /// Chooses, since 0 times an overflowing ratio is no number.
  IL_HD static V counted(const PolicyRow<M>& row, V x) {
    return M::select_eq(row.advantage(), M::set(0), M::set(0), x);
  }
};

template <class M>
using LogLikelihood = PolicyGradient<M, Likelihood::kLog>;
template <class M>
using Ratio = PolicyGradient<M, Likelihood::kRatio>;
template <class M>
using Clipped = PolicyGradient<M, Likelihood::kClipped>;

/// KL(recorded || policy).
template <class M>
struct Kl : PolicyMetric<M> {
  using V = typename M::V;
  using Cell = typename M::Cell;

  IL_HD explicit Kl(const Objective& o) : PolicyMetric<M>(o) {}
  IL_HD V gradient(const Sample<M>& s, Cell* g, Cell* g_free) const {
    const PolicyRow<M> row(s, this->o_);
    V value = M::set(0);
    for (int64_t k = 0; k < s.outputs; ++k) {
      const V d = gap(row, k), change = row.log_std(k) - row.old_log_std(k);
      const V q = M::exp(M::set(-2) * change), d2 = d * d;
      value += change + M::set(0.5) * (q + d2 - M::set(1));
      g[k] = d * row.inverse_std(k);
      g_free[k] = row.moves(k) * (M::set(1) - q - d2);
    }
    return value;
  }
  IL_HD void curvature(const Sample<M>& s, const Cell* rz, const Cell* r_free, Cell* rg,
                       Cell* rg_free) const {
    const PolicyRow<M> row(s, this->o_);
    for (int64_t k = 0; k < s.outputs; ++k) {
      const V d = gap(row, k), change = row.log_std(k) - row.old_log_std(k);
      const V q = M::exp(M::set(-2) * change), inverse = row.inverse_std(k);
      const V moves = row.moves(k), sigma = moves * r_free[k];
      const V r_d = inverse * rz[k] - d * sigma;
      rg[k] = (r_d - d * sigma) * inverse;
      rg_free[k] = M::set(2) * moves * (q * sigma - d * r_d);
    }
  }

 private:
  /// (mean - recorded mean) / std.
  IL_HD static V gap(const PolicyRow<M>& row, int64_t k) {
    return (V(row.s.z[k]) - row.old_mean(k)) * row.inverse_std(k);
  }
};

}  // namespace innerloop
