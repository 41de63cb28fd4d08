// The elementwise steps of the block engine, sums over rows, and losses.
#pragma once

#include "block/block_products.h"
#include "core/activation.h"

namespace innerloop {

template <class BlockType, class RealType>
class BlockMaps : public BlockProducts<BlockType, RealType> {
 public:
  using Base = BlockProducts<BlockType, RealType>;
  using Base::Base;
  using typename Base::BiasRef;
  using typename Base::Elem;
  using typename Base::M;
  using typename Base::Numbers;
  using typename Base::Out;
  using typename Base::PerTask;
  using typename Base::R;
  using typename Base::Real;
  using typename Base::SideData;

  IL_CALL void bias_activation(const R& z, const R& h, const R& from, const BiasRef& b,
                               const LayerPlan& p) const {
    if (!b && p.activation == Activation::kIdentity && from.p == h.p) return;
    const Real slope = static_cast<Real>(p.slope);
    const Numbers bias = numbers(b);
    const int rows = extent(z.rows);
    with_activation<M>(p.activation, [&](auto act) {
      using A = decltype(act);
      block_.spread(used_ * rows, extent(z.cols), [&](int r, int j) {
        const int64_t at = r * z.ld + j;
        Real value = from.p[at];
        if (bias) value += bias.at(r / rows * b.task_stride + j);
        z.p[at] = value;
        h.p[at] = A::value(value, slope);
      });
    });
    block_.barrier();
  }
  IL_CALL void activation_backward(const R& delta, const R& a, const R& z, const R& h,
                                   const LayerPlan& p) const {
    if (p.activation == Activation::kIdentity && delta.p == a.p) return;
    const Real slope = static_cast<Real>(p.slope);
    with_activation<M>(p.activation, [&](auto act) {
      using A = decltype(act);
      block_.spread(used_ * extent(delta.rows), extent(delta.cols), [&](int r, int j) {
        const int64_t at = r * delta.ld + j;
        delta.p[at] = A::chain(a.p[at], A::kNeedsZ ? Real(z.p[at]) : Real(0), h.p[at], slope);
      });
    });
    block_.barrier();
  }
  IL_CALL void r_activation(const R& rh, const R& rz, const BiasRef& b, const PerTask* rate,
                            const R& z, const R& h, const LayerPlan& p) const {
    if (!b && p.activation == Activation::kIdentity && rz.p == rh.p) return;
    const Real slope = static_cast<Real>(p.slope);
    const Numbers bias = numbers(b);
    const int rows = extent(rz.rows);
    with_activation<M>(p.activation, [&](auto act) {
      using A = decltype(act);
      block_.spread(used_ * rows, extent(rz.cols), [&](int r, int j) {
        const int64_t at = r * rz.ld + j;
        const int task = r / rows;
        Real value = rz.p[at];
        if (bias) value += factor(rate, task) * bias.at(task * b.task_stride + j);
        rz.p[at] = value;
        rh.p[at] = A::chain(value, A::kNeedsZ ? Real(z.p[at]) : Real(0), h.p[at], slope);
      });
    });
    block_.barrier();
  }
  /// rdelta, holding R{a}, becomes R{delta} = R{a} act' + a act'' R{z}.
  IL_CALL void r_activation_backward(const R& rdelta, const R& rz, const R& a, const R& z,
                                     const R& h, const LayerPlan& p) const {
    if (p.activation == Activation::kIdentity) return;
    const Real slope = static_cast<Real>(p.slope);
    with_activation<M>(p.activation, [&](auto act) {
      using A = decltype(act);
      block_.spread(used_ * extent(rdelta.rows), extent(rdelta.cols), [&](int r, int j) {
        const int64_t at = r * rdelta.ld + j;
        const Real zi = A::kNeedsZ ? Real(z.p[at]) : Real(0), hi = h.p[at];
        Real value = A::chain(rdelta.p[at], zi, hi, slope);
        if constexpr (A::kCurved) value += a.p[at] * A::second(zi, hi, slope) * rz.p[at];
        rdelta.p[at] = value;
      });
    });
    block_.barrier();
  }
  IL_CALL void clear(const R& r) const {
    block_.spread(used_ * extent(r.rows), extent(r.cols),
                  [&](int i, int j) { r.p[i * r.ld + j] = Real(0); });
    block_.barrier();
  }
  IL_CALL void add_scaled(const R& to, const R& from, const PerTask* rate) const {
    const int rows = extent(to.rows);
    block_.spread(used_ * rows, extent(to.cols), [&](int r, int j) {
      const int64_t at = r * to.ld + j;
      to.p[at] = to.p[at] + factor(rate, r / rows) * from.p[at];
    });
    block_.barrier();
  }
  IL_CALL void copy_scaled(const R& to, const R& from, const PerTask* rate) const {
    const int rows = extent(to.rows);
    block_.spread(used_ * rows, extent(to.cols), [&](int r, int j) {
      const int64_t at = r * to.ld + j;
      to.p[at] = factor(rate, r / rows) * from.p[at];
    });
    block_.barrier();
  }
  IL_CALL void column_sums(const Out& to, const BiasRef* from, const R& r, const PerTask* rate,
                           Real sign) const {
    const Numbers base = from ? numbers(*from) : Numbers();
    const int64_t base_stride = from ? from->task_stride : 0;
    block_.spread(used_, extent(r.cols), [&](int t, int j) {
      Real total = 0;
      const Elem* column = r.p + t * r.rows * r.ld + j;
      for (int i = 0; i < extent(r.rows); ++i) total += column[i * r.ld];
      const Real change = sign * factor(rate, t) * total;
      to.p[t * to.task_stride + j] = base ? base.at(t * base_stride + j) + change : change;
    });
    block_.barrier();
  }
  /// -<a, b> for every task.
  IL_CALL void minus_dot(PerTask* to, const LayerPlan&, const R& a, const R& b) const {
    sum_per_task(to, -1, a.rows, a.cols, [&](int64_t row, int j) {
      return static_cast<Real>(a.p[row * a.ld + j]) * static_cast<Real>(b.p[row * b.ld + j]);
    });
  }
  IL_CALL void minus_dot_bias(PerTask* to, const LayerPlan&, const R& delta,
                              const Out& lambda) const {
    const int rows = extent(delta.rows);
    sum_per_task(to, -1, delta.rows, delta.cols, [&](int64_t row, int j) {
      return static_cast<Real>(delta.p[row * delta.ld + j]) *
             static_cast<Real>(lambda.p[row / rows * lambda.task_stride + j]);
    });
  }

  // ---- losses: a row to a thread ---------------------------------------------------------------
  IL_CALL void loss_gradient(const SideData& d, const R& out, const BiasRef& free,
                             const R& gradient, const R& free_gradient, PerTask* losses) const {
    with_objective<M>(d.objective, [&](const auto& objective) {
      block_.spread(used_, extent(out.rows), [&](int t, int i) {
        const int64_t r = t * out.rows + i;
        Elem* g = gradient.p + r * gradient.ld;
        Elem* g_free = free_gradient.p + r * free_gradient.ld;
        const Real value = objective.gradient(sample(d, out, free, t, r), g, g_free);
        const Real w = d.weight[r], gw = d.gradient[r];
        d.losses[r] = w == Real(0) ? Real(0) : w * value;
        for (int64_t k = 0; k < out.cols; ++k) g[k] = w == Real(0) ? Real(0) : gw * g[k];
        for (int64_t k = 0; k < free_gradient.cols; ++k) {
          g_free[k] = w == Real(0) ? Real(0) : gw * g_free[k];
        }
      });
    });
    block_.barrier();
    sum_per_task(losses, 1, out.rows, 1,
                 [&](int64_t row, int) { return static_cast<Real>(d.losses[row]); });
  }
  template <class Direction>
  IL_CALL void loss_curvature(const SideData& d, const R& out, const BiasRef& free, const R& r_out,
                              const Direction& r_free, bool metric, const R& r_gradient,
                              const R& r_free_gradient) const {
    const int64_t size = r_free_gradient.cols;
    if (size > 0) {
      const Numbers from = numbers(r_free.bias);
      block_.spread(used_, extent(size), [&](int t, int k) {
        r_free_[t * size + k] =
            from ? factor(r_free.bias_rate, t) * from.at(t * r_free.bias.task_stride + k) : Real(0);
      });
      block_.barrier();
    }
    with_objective<M>(d.objective, [&](const auto& objective) {
      block_.spread(used_, extent(out.rows), [&](int t, int i) {
        const int64_t r = t * out.rows + i;
        Elem* g = r_gradient.p + r * r_gradient.ld;
        Elem* g_free = r_free_gradient.p + r * r_free_gradient.ld;
        const Sample<M> s = sample(d, out, free, t, r);
        const Elem *rz = r_out.p + r * r_out.ld, *rf = r_free_ + t * size;
        if (metric) {
          objective.metric(s, rz, rf, g, g_free);
        } else {
          objective.curvature(s, rz, rf, g, g_free);
        }
        const Real w = d.weight[r], gw = d.gradient[r];
        for (int64_t k = 0; k < out.cols; ++k) g[k] = w == Real(0) ? Real(0) : gw * g[k];
        for (int64_t k = 0; k < size; ++k) g_free[k] = w == Real(0) ? Real(0) : gw * g_free[k];
      });
    });
    block_.barrier();
  }

 protected:
  using Base::block_;
  using Base::extent;
  using Base::factor;
  using Base::numbers;
  using Base::partial_;
  using Base::plan_;
  using Base::r_free_;
  using Base::used_;

 private:
  /// to[t] = sign * sum of f(row, column) over task t's rows. Every task has the same number of
  /// threads, a power of two; their sums meet in a tree, so the order depends on sizes alone.
  template <class F>
  IL_HD void sum_per_task(PerTask* to, Real sign, int64_t rows, int64_t cols, F f) const {
    int lanes = 1;
    while (2 * lanes * plan_.copies <= block_.threads()) lanes *= 2;
    const int n = extent(rows), width = extent(cols);
    block_.spread(used_, lanes, [&](int t, int lane) {
      Real total = 0;
      int i = lane / width, j = lane % width;
      const int row_step = lanes / width, step = lanes % width;
      while (i < n) {
        total += f(static_cast<int64_t>(t) * n + i, j);
        i += row_step;
        j += step;
        if (j >= width) {
          j -= width;
          ++i;
        }
      }
      partial_[t * lanes + lane] = total;
    });
    block_.barrier();
    for (int half = lanes / 2; half > 0; half /= 2) {
      block_.spread(used_, half, [&](int t, int lane) {
        Elem* sums = partial_ + t * lanes;
        sums[lane] = sums[lane] + sums[lane + half];
      });
      block_.barrier();
    }
    block_.spread(1, used_, [&](int, int t) { to[t] = sign * partial_[t * lanes]; });
    block_.barrier();
  }

  IL_HD Sample<M> sample(const SideData& d, const R& out, const BiasRef& free, int t,
                         int64_t r) const {
    return {out.p + r * out.ld, d.y + r * d.targets.columns, out.cols,
            free.own + t * free.task_stride};
  }
};

}  // namespace innerloop
