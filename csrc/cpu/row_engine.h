// Engine: for wide networks, few tasks or many rows: matrices are row-major with rows padded to
// whole vectors, products have vectors along the outputs. Tasks of a group are stacked, so that a
// product with weights that all of them share is one product. Here: its workspace, leaves and
// results; its other parts are row_group.h, row_products.h, row_maps.h, row_objectives.h and
// row_steps.h.
#pragma once

#include "cpu/row_steps.h"

namespace innerloop {
namespace INNERLOOP_LEVEL {

template <class Real>
static void accumulate(Real* to, const Real* from, int64_t n) {
  for (int64_t i = 0; i < n; ++i) to[i] += from[i];
}

template <class RealT>
class RowEngine : public RowSteps<RealT> {
 public:
  using Base = RowSteps<RealT>;
  using Base::Base, Base::kWidth, Base::turned;
  using typename Base::Real, typename Base::R, typename Base::Out;
  using typename Base::WeightRef, typename Base::BiasRef;

  // ---- workspace and loading -------------------------------------------------------------------
  template <class C>
  void carve(C& c) {
    int64_t size = 0;
    for (int l = 0; l < plan_.depth; ++l) {
      const LayerPlan& p = plan_.layers[l];
      if (!p.diagonal) size = larger(size, turned(p.out, p.in));
    }
    turned_ = c.take(size);
    head_ = c.take((net_.free > 0 ? 7 : 4) * kWidth * head_columns());
  }
  void load_inputs(R& x, const void* data) {
    const Real* from = static_cast<const Real*>(data) + first_ * x.rows * x.cols;
    x.p = const_cast<Real*>(from);
  }
  /// Weights are read where they are; biases get padded copies.
  void load_params(Real* initial) { load_biases(problem_.params, initial, true); }
  void load_per_task(Real* to, const Real* from, int64_t task_stride) const {
    for (int64_t i = 0; i < used_; ++i) to[i] = from[(first_ + i) * task_stride];
  }
  void store_per_task(Real* to, int64_t stride, int64_t index, const Real* values) const {
    for (int64_t i = 0; i < used_; ++i) to[(first_ + i) * stride + index] = values[i];
  }
  void clear_per_task(Real* to) const {
    for (int64_t i = 0; i < used_; ++i) to[i] = 0;
  }

  // ---- leaves ----------------------------------------------------------------------------------
  WeightRef initial_weight(int l, Real*) const {
    const LayerPlan& p = plan_.layers[l];
    if (p.weight_per_task) return leaf_weight(p, problem_.params);
    WeightRef w = empty_weight<Real>(p);
    if (p.weight_leaf < 0) return w;
    w.shared = prepared_[l].weight;
    w.shared_turned = prepared_[l].turned;
    w.ld = prepared_[l].ld;
    return w;
  }
  BiasRef initial_bias(int l, Real* initial) const {
    const LayerPlan& p = plan_.layers[l];
    if (p.bias_leaf < 0) return {};
    if (p.bias_per_task) return block_bias(l, initial);
    BiasRef b;
    b.shared = prepared_[l].bias;
    b.out = p.out;
    return b;
  }
  WeightRef block_weight(int l, Real* block) const {
    const LayerPlan& p = plan_.layers[l];
    WeightRef w = empty_weight<Real>(p);
    w.own = block + p.w;
    w.ld = p.weight_ld();
    w.task_stride = p.weight_size();
    return w;
  }
  /// As block_weight, with the transposed copy that `turn` made.
  WeightRef turned_weight(int l, Real* block) const {
    WeightRef w = block_weight(l, block);
    if (plan_.turns_weights && !w.diagonal) {
      w.own_turned = block + plan_.layers[l].w_turned;
      w.turned_stride = turned(w.out, w.in);
    }
    return w;
  }
  BiasRef block_bias(int l, Real* block) const {
    const LayerPlan& p = plan_.layers[l];
    BiasRef b;
    b.own = block + p.b;
    b.out = p.out;
    b.task_stride = p.ld_out;
    return b;
  }
  Out block_weight_target(int l, Real* block) const {
    const LayerPlan& p = plan_.layers[l];
    return {block + p.w, p.weight_ld(), p.weight_size()};
  }
  Out block_bias_target(int l, Real* block) const {
    const LayerPlan& p = plan_.layers[l];
    return {block + p.b, p.ld_out, p.ld_out};
  }
  void turn(int l, Real* block) {
    const LayerPlan& p = plan_.layers[l];
    if (!plan_.turns_weights || p.diagonal) return;
    for (int64_t t = 0; t < used_; ++t) {
      pack_transposed(block + p.w_turned + t * turned(p.out, p.in),
                      block + p.w + t * p.out * p.ld_in, p.ld_in, p.out, p.in);
    }
  }
  WeightRef load_weight(int l, const Leaves& leaves, Real*) const {
    return leaf_weight(plan_.layers[l], leaves);
  }
  WeightRef loaded_weight(int l, const Leaves& leaves, Real*) const {
    return leaf_weight(plan_.layers[l], leaves);
  }
  BiasRef load_bias(int l, const Leaves& leaves, Real* block) {
    const LayerPlan& p = plan_.layers[l];
    if (p.bias_leaf < 0) return {};
    load_bias_leaf(p, leaves, block);
    return block_bias(l, block);
  }

  // ---- results ---------------------------------------------------------------------------------
  void finish_weight(const LayerPlan& p, const Out& lambda, const MetaGradCall& call) {
    for (int64_t t = 0; t < used_; ++t) {
      if (p.weight_per_task) {
        Real* out = static_cast<Real*>(call.grads[p.weight_leaf]) +
                    (first_ + t) * call.grad_strides[p.weight_leaf];
        for (int64_t i = 0; i < p.weight_rows(); ++i) {
          std::memcpy(out + i * p.weight_cols(), at(lambda, t, i), p.weight_cols() * sizeof(Real));
        }
      } else {
        accumulate(sink_ + p.sink_w, at(lambda, t, 0), p.weight_size());
      }
    }
  }
  void finish_bias(const LayerPlan& p, const Out& lambda, const MetaGradCall& call) {
    for (int64_t t = 0; t < used_; ++t) {
      if (p.bias_per_task) {
        std::memcpy(static_cast<Real*>(call.grads[p.bias_leaf]) +
                        (first_ + t) * call.grad_strides[p.bias_leaf],
                    at(lambda, t, 0), p.out * sizeof(Real));
      } else {
        accumulate(sink_ + p.sink_b, at(lambda, t, 0), p.ld_out);
      }
    }
  }
  void finish_rate(const MetaGradCall& call, int64_t offset, const Real* values) {
    if (call.rates.task_stride) {
      Real* out = static_cast<Real*>(call.out_rate_grad);
      for (int64_t t = 0; t < used_; ++t) {
        out[(first_ + t) * call.rates.task_stride + offset] += values[t];
      }
      return;
    }
    double total = 0;
    for (int64_t t = 0; t < used_; ++t) total += values[t];
    rate_sink_[offset] += static_cast<Real>(total);
  }
  void export_weight(Real* out, int64_t stride, const LayerPlan& p, const WeightRef& w) const {
    for (int64_t t = 0; t < used_; ++t) {
      const Real* from = weight_of(w, t);
      Real* to = out + p.weight_offset + (first_ + t) * stride;
      for (int64_t i = 0; i < w.out; ++i) {
        std::memcpy(to + i * w.in, from + i * w.ld, w.in * sizeof(Real));
      }
    }
  }
  void export_bias(Real* out, int64_t stride, const LayerPlan& p, const BiasRef& b) const {
    for (int64_t t = 0; t < used_; ++t) {
      std::memcpy(out + p.bias_offset + (first_ + t) * stride, bias_of(b, t), b.out * sizeof(Real));
    }
  }
  void export_rows(Real* out, const R& r) const {
    for (int64_t i = 0; i < used_ * r.rows; ++i) {
      std::memcpy(out + (first_ * r.rows + i) * r.cols, r.p + i * r.ld, r.cols * sizeof(Real));
    }
  }
  /// Per-task leaf results are written straight to the caller's rows.
  Out result_weight(int l, Real*, Real* out, int64_t stride) const {
    const LayerPlan& p = plan_.layers[l];
    return {out + first_ * stride + p.weight_offset, p.weight_cols(), stride};
  }
  Out result_bias(int l, Real*, Real* out, int64_t stride) const {
    const LayerPlan& p = plan_.layers[l];
    return {out + first_ * stride + p.bias_offset, p.out, stride};
  }
  void publish(int, Real*, Real*, int64_t) const {}

 private:
  using Base::at, Base::head_columns;
  using Base::net_, Base::plan_, Base::problem_, Base::prepared_, Base::first_, Base::used_;
  using Base::sink_, Base::rate_sink_, Base::turned_, Base::head_;

  void load_biases(const Leaves& leaves, Real* block, bool only_per_task) {
    for (int l = 0; l < plan_.entries; ++l) {
      const LayerPlan& p = plan_.layers[l];
      if (p.bias_leaf >= 0 && (!only_per_task || p.bias_per_task)) load_bias_leaf(p, leaves, block);
    }
  }
  void load_bias_leaf(const LayerPlan& p, const Leaves& leaves, Real* block) {
    const int64_t stride = leaves.task_stride[p.bias_leaf];
    const Real* from = static_cast<const Real*>(leaves.data[p.bias_leaf]) + first_ * stride;
    for (int64_t t = 0; t < used_; ++t) {
      copy_padded(block + p.b + t * p.ld_out, p.ld_out, from + t * stride, p.out, 1, p.out);
    }
  }
  WeightRef leaf_weight(const LayerPlan& p, const Leaves& leaves) const {
    WeightRef w = empty_weight<Real>(p);
    w.ld = w.in;
    w.task_stride = leaves.task_stride[p.weight_leaf];
    w.own = static_cast<const Real*>(leaves.data[p.weight_leaf]) + first_ * w.task_stride;
    return w;
  }
};

}  // namespace INNERLOOP_LEVEL
}  // namespace innerloop
