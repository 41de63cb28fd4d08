// What the block engine does with rates per parameter, and how its results leave the workspace:
// sums over tasks grow in a sink that belongs to the block, in task order.
#pragma once

#include "block/block_maps.h"

namespace innerloop {

template <class BlockType, class RealType>
class BlockResults : public BlockMaps<BlockType, RealType> {
 public:
  using Base = BlockMaps<BlockType, RealType>;
  using Base::Base;
  using typename Base::BiasRef;
  using typename Base::Elem;
  using typename Base::Numbers;
  using typename Base::Out;
  using typename Base::PerTask;
  using typename Base::R;
  using typename Base::Real;
  using typename Base::WeightRef;

  // ---- sums over tasks -------------------------------------------------------------------------
  IL_CALL void clear_sinks(int64_t rate_size) {
    block_.spread(1, extent(plan_.sink), [&](int, int i) { sink_[i] = Real(0); });
    block_.spread(1, extent(rate_size), [&](int, int i) { rate_sink_[i] = Real(0); });
    block_.barrier();
  }
  /// Writes the block's sums to `to`: leaves in the flat [P] order, then the rates.
  IL_CALL void export_sinks(Real* to, int64_t rate_size) const {
    for (int l = 0; l < plan_.entries; ++l) {
      const LayerPlan& p = plan_.layers[l];
      const Elem *weight = sink_ + p.sink_w, *bias = sink_ + p.sink_b;
      block_.spread(extent(p.out), extent(p.in), [&](int i, int j) {
        to[p.weight_offset + i * p.in + j] = weight[i * p.ld_in + j];
      });
      if (p.bias_leaf < 0) continue;
      Real* to_bias = to + p.bias_offset;
      block_.spread(1, extent(p.out), [&](int, int j) { to_bias[j] = bias[j]; });
    }
    Real* rates = to + options_.parameters;
    block_.spread(1, extent(rate_size), [&](int, int i) { rates[i] = rate_sink_[i]; });
    block_.barrier();
  }
  /// Gradients of rates that every task has of its own are sums over steps: they start at zero.
  IL_CALL void clear_rates(const MetaGradCall& call) const {
    const int64_t size = call.rates.task_stride;
    if (!call.out_rate_grad || size == 0) return;
    Real* to = static_cast<Real*>(call.out_rate_grad) + first_ * size;
    block_.spread(used_, extent(size), [&](int t, int i) { to[t * size + i] = Real(0); });
    block_.barrier();
  }

  // ---- rates per parameter ---------------------------------------------------------------------
  /// to = keep * from + sign * rate * x; `from` is not read where keep is 0.
  IL_CALL void combine_weight(const Out& to, const WeightRef& from, Real keep, const Out& x,
                              const PerTask* rate, Real sign, const LayerPlan& p) const {
    combine(to, {from.own, from.shared}, from.task_stride, from.ld, keep, x, rate, sign, p.out,
            p.in);
  }
  IL_CALL void combine_bias(const Out& to, const BiasRef& from, Real keep, const Out& x,
                            const PerTask* rate, Real sign, const LayerPlan& p) const {
    combine(to, numbers(from), from.task_stride, 0, keep, x, rate, sign, 1, p.out);
  }
  IL_CALL void step_weight(const Out& to, const WeightRef& from, const Out& g, const LayerPlan& p,
                           const Real* rates, int64_t task_stride) const {
    step(to, {from.own, from.shared}, from.task_stride, from.ld, g, p.out, p.in, rates,
         task_stride);
  }
  IL_CALL void step_bias(const Out& to, const BiasRef& from, const Out& g, const LayerPlan& p,
                         const Real* rates, int64_t task_stride) const {
    step(to, numbers(from), from.task_stride, p.out, g, 1, p.out, rates, task_stride);
  }
  IL_CALL void scale_weight(const Out& to, const Out& from, const LayerPlan& p, const Real* rates,
                            int64_t task_stride) const {
    scale(to, from, p.out, p.in, rates, task_stride);
  }
  IL_CALL void scale_bias(const Out& to, const Out& from, const LayerPlan& p, const Real* rates,
                          int64_t task_stride) const {
    scale(to, from, 1, p.out, rates, task_stride);
  }
  IL_CALL void rate_grad_weight(const MetaGradCall& call, int64_t offset, const LayerPlan& p,
                                const Out& lambda, const Out& g) const {
    rate_grad(call, offset, p.out, p.in, lambda, g);
  }
  IL_CALL void rate_grad_bias(const MetaGradCall& call, int64_t offset, const LayerPlan& p,
                              const Out& lambda, const Out& g) const {
    rate_grad(call, offset, 1, p.out, lambda, g);
  }

  // ---- results ---------------------------------------------------------------------------------
  IL_CALL void finish_weight(const LayerPlan& p, const Out& lambda,
                             const MetaGradCall& call) const {
    finish(p.weight_per_task, {p.weight_leaf, p.out, p.in}, sink_ + p.sink_w, lambda, call);
  }
  IL_CALL void finish_bias(const LayerPlan& p, const Out& lambda, const MetaGradCall& call) const {
    finish(p.bias_per_task, {p.bias_leaf, 1, p.out}, sink_ + p.sink_b, lambda, call);
  }
  IL_CALL void finish_rate(const MetaGradCall& call, int64_t offset, const PerTask* values) const {
    const int64_t stride = call.rates.task_stride;
    if (stride) {
      Real* out = static_cast<Real*>(call.out_rate_grad) + first_ * stride + offset;
      block_.spread(1, used_, [&](int, int t) { out[t * stride] += values[t]; });
    } else {
      block_.spread(1, 1, [&](int, int) {
        Real total = rate_sink_[offset];
        for (int t = 0; t < used_; ++t) total += values[t];
        rate_sink_[offset] = total;
      });
    }
    block_.barrier();
  }
  /// Into the tasks' parameters `out`, in the flat [P] order.
  IL_CALL void export_weight(Real* out, int64_t stride, const LayerPlan& p,
                             const WeightRef& w) const {
    write_out(out + p.weight_offset, stride, p.in, {w.own, w.shared}, w.task_stride, w.ld, w.out,
              w.in);
  }
  IL_CALL void export_bias(Real* out, int64_t stride, const LayerPlan& p, const BiasRef& b) const {
    write_out(out + p.bias_offset, stride, 0, numbers(b), b.task_stride, 0, 1, b.out);
  }
  IL_CALL void export_rows(Real* out, const R& r) const {
    Real* to = out + first_ * r.rows * r.cols;
    block_.spread(used_ * extent(r.rows), extent(r.cols),
                  [&](int i, int j) { to[i * r.cols + j] = r.p[i * r.ld + j]; });
    block_.barrier();
  }

 protected:
  using Base::block_;
  using Base::extent;
  using Base::first_;
  using Base::numbers;
  using Base::options_;
  using Base::plan_;
  using Base::rate_sink_;
  using Base::sink_;
  using Base::used_;

 private:
  IL_HD void combine(const Out& to, const Numbers& from, int64_t from_task, int64_t from_ld,
                     Real keep, const Out& x, const PerTask* rate, Real sign, int64_t rows,
                     int64_t cols) const {
    for (int t = 0; t < used_; ++t) {
      const Real scale = sign * Base::factor(rate, t);
      block_.spread(extent(rows), extent(cols), [&](int i, int j) {
        const Real base = keep == 0 ? Real(0) : keep * from.at(t * from_task + i * from_ld + j);
        to.p[t * to.task_stride + i * to.ld + j] =
            base + scale * x.p[t * x.task_stride + i * x.ld + j];
      });
    }
    block_.barrier();
  }
  IL_HD void step(const Out& to, const Numbers& from, int64_t from_task, int64_t from_ld,
                  const Out& g, int64_t rows, int64_t cols, const Real* rates,
                  int64_t task_stride) const {
    const Real* rate = rates + first_ * task_stride;
    for (int t = 0; t < used_; ++t) {
      block_.spread(extent(rows), extent(cols), [&](int i, int j) {
        const int64_t change = t * g.task_stride + i * g.ld + j;
        to.p[t * to.task_stride + i * to.ld + j] =
            from.at(t * from_task + i * from_ld + j) -
            rate[t * task_stride + i * cols + j] * g.p[change];
      });
    }
    block_.barrier();
  }
  IL_HD void scale(const Out& to, const Out& from, int64_t rows, int64_t cols, const Real* rates,
                   int64_t task_stride) const {
    const Real* rate = rates + first_ * task_stride;
    for (int t = 0; t < used_; ++t) {
      block_.spread(extent(rows), extent(cols), [&](int i, int j) {
        to.p[t * to.task_stride + i * to.ld + j] =
            rate[t * task_stride + i * cols + j] * from.p[t * from.task_stride + i * from.ld + j];
      });
    }
    block_.barrier();
  }
  IL_HD void rate_grad(const MetaGradCall& call, int64_t offset, int64_t rows, int64_t cols,
                       const Out& lambda, const Out& g) const {
    const int64_t stride = call.rates.task_stride;
    Real* out = static_cast<Real*>(call.out_rate_grad) + first_ * stride + offset;
    block_.spread(extent(rows), extent(cols), [&](int i, int j) {
      Real total = 0;
      for (int t = 0; t < used_; ++t) {
        const Real value = static_cast<Real>(lambda.p[t * lambda.task_stride + i * lambda.ld + j]) *
                           static_cast<Real>(g.p[t * g.task_stride + i * g.ld + j]);
        total += value;
        if (stride) out[t * stride + i * cols + j] -= value;
      }
      if (!stride) {
        Elem& sum = rate_sink_[offset + i * cols + j];
        sum = sum - total;
      }
    });
    block_.barrier();
  }
  struct LeafSize {
    int leaf;
    int64_t rows, cols;
  };
  IL_HD void finish(bool per_task, const LeafSize& at, Elem* sink, const Out& lambda,
                    const MetaGradCall& call) const {
    const int64_t stride = per_task ? call.grad_strides[at.leaf] : 0;
    Real* out = per_task ? static_cast<Real*>(call.grads[at.leaf]) + first_ * stride : nullptr;
    block_.spread(extent(at.rows), extent(at.cols), [&](int i, int j) {
      Real total = 0;
      for (int t = 0; t < used_; ++t) {
        const Real value = lambda.p[t * lambda.task_stride + i * lambda.ld + j];
        total += value;
        if (per_task) out[t * stride + i * at.cols + j] = value;
      }
      if (!per_task) {
        Elem& sum = sink[i * lambda.ld + j];
        sum = sum + total;
      }
    });
    block_.barrier();
  }
  IL_HD void write_out(Real* out, int64_t stride, int64_t ld, const Numbers& from,
                       int64_t from_task, int64_t from_ld, int64_t rows, int64_t cols) const {
    Real* to = out + first_ * stride;
    for (int t = 0; t < used_; ++t) {
      block_.spread(extent(rows), extent(cols), [&](int i, int j) {
        to[t * stride + i * ld + j] = from.at(t * from_task + i * from_ld + j);
      });
    }
    block_.barrier();
  }
};

}  // namespace innerloop
