// Engine: for small networks and many tasks: kLanes tasks side by side, every matrix element a
// vector over them. Data are interleaved on the way in; nothing is padded or reduced afterwards.
// Here: its workspace, leaves and results; its other parts are lane_group.h, lane_products.h,
// lane_maps.h, lane_objectives.h and lane_steps.h.
#pragma once

#include "cpu/lane_steps.h"

namespace innerloop {
namespace INNERLOOP_LEVEL {

template <class RealT>
class LaneEngine : public LaneSteps<RealT> {
 public:
  using Base = LaneSteps<RealT>;
  using Base::Base, Base::kWidth;
  using typename Base::Out, typename Base::WeightRef, typename Base::BiasRef;
  using typename Base::Real, typename Base::S, typename Base::V, typename Base::R;

  // ---- workspace and loading -------------------------------------------------------------------
  template <class C>
  void carve(C& c) {
    free_ = c.take(net_.free);
    r_free_ = c.take(net_.free);
    room_ = c.take(plan_.reads_in_place ? in_place_size<Real>(net_.first().in) : 0);
  }
  void load_params(V* initial) {
    for (int l = 0; l < plan_.entries; ++l) {
      const LayerPlan& p = plan_.layers[l];
      if (p.weight_per_task) {
        load_leaf(initial + p.w, problem_.params, p.weight_leaf, p.weight_size());
      }
      if (p.bias_per_task) load_leaf(initial + p.b, problem_.params, p.bias_leaf, p.out);
    }
  }
  void load_leaf(V* to, const Leaves& leaves, int leaf, int64_t size) {
    const int64_t stride = leaves.task_stride[leaf];
    interleave(reinterpret_cast<Real*>(to),
               static_cast<const Real*>(leaves.data[leaf]) + first_ * stride, stride, size, used_);
  }
  void load_per_task(Real* to, const Real* from, int64_t task_stride) const {
    for (int i = 0; i < kWidth; ++i) to[i] = i < used_ ? from[(first_ + i) * task_stride] : Real(0);
  }
  void store_per_task(Real* to, int64_t stride, int64_t index, const V* values) const {
    for (int i = 0; i < used_; ++i) to[(first_ + i) * stride + index] = (*values)[i];
  }
  void clear_per_task(Real* to) const { S::store(to, V{}); }

  // ---- leaves ----------------------------------------------------------------------------------
  WeightRef initial_weight(int l, V* initial) const {
    const LayerPlan& p = plan_.layers[l];
    if (p.weight_per_task) return block_weight(l, initial);
    WeightRef w = empty_weight(p);
    if (p.weight_leaf < 0) return w;
    w.shared = static_cast<const Real*>(problem_.params.data[p.weight_leaf]);
    return w;
  }
  BiasRef initial_bias(int l, V* initial) const {
    const LayerPlan& p = plan_.layers[l];
    if (p.bias_leaf < 0) return {};
    if (p.bias_per_task) return block_bias(l, initial);
    BiasRef b;
    b.shared = static_cast<const Real*>(problem_.params.data[p.bias_leaf]);
    b.out = p.out;
    return b;
  }
  WeightRef block_weight(int l, V* block) const {
    WeightRef w = empty_weight(plan_.layers[l]);
    w.own = block + plan_.layers[l].w;
    return w;
  }
  WeightRef turned_weight(int l, V* block) const { return block_weight(l, block); }
  BiasRef block_bias(int l, V* block) const {
    BiasRef b;
    b.own = block + plan_.layers[l].b;
    b.out = plan_.layers[l].out;
    return b;
  }
  Out block_weight_target(int l, V* block) const {
    return {block + plan_.layers[l].w, plan_.layers[l].weight_cols(), 0};
  }
  Out block_bias_target(int l, V* block) const {
    return {block + plan_.layers[l].b, plan_.layers[l].out, 0};
  }
  void turn(int, V*) {}
  /// A leaf of a direction given by the caller, shared or interleaved into `block`.
  WeightRef load_weight(int l, const Leaves& leaves, V* block) {
    const LayerPlan& p = plan_.layers[l];
    if (leaves.task_stride[p.weight_leaf]) {
      load_leaf(block + p.w, leaves, p.weight_leaf, p.weight_size());
    }
    return loaded_weight(l, leaves, block);
  }
  WeightRef loaded_weight(int l, const Leaves& leaves, V* block) const {
    const LayerPlan& p = plan_.layers[l];
    if (leaves.task_stride[p.weight_leaf]) return block_weight(l, block);
    WeightRef w = empty_weight(p);
    w.shared = static_cast<const Real*>(leaves.data[p.weight_leaf]);
    return w;
  }
  BiasRef load_bias(int l, const Leaves& leaves, V* block) {
    const LayerPlan& p = plan_.layers[l];
    if (p.bias_leaf < 0) return {};
    if (leaves.task_stride[p.bias_leaf]) {
      load_leaf(block + p.b, leaves, p.bias_leaf, p.out);
      return block_bias(l, block);
    }
    BiasRef b;
    b.shared = static_cast<const Real*>(leaves.data[p.bias_leaf]);
    b.out = p.out;
    return b;
  }

  // ---- results ---------------------------------------------------------------------------------
  /// Writes the lane sums of the accumulator to `to`.
  static void finish_sink(Real* to, const V* sink, int64_t size) {
    int64_t i = 0;
    for (; i + kWidth <= size; i += kWidth) {
      V r[kWidth];
      for (int k = 0; k < kWidth; ++k) r[k] = sink[i + k];
      S::store(to + i, reduce_tile<Real>(r));
    }
    for (; i < size; ++i) to[i] = S::sum(sink[i]);
  }
  void finish_weight(const LayerPlan& p, const Out& lambda, const MetaGradCall& call) {
    finish(p.weight_per_task, p.weight_leaf, p.sink_w, p.weight_size(), lambda, call);
  }
  void finish_bias(const LayerPlan& p, const Out& lambda, const MetaGradCall& call) {
    finish(p.bias_per_task, p.bias_leaf, p.sink_b, p.out, lambda, call);
  }
  void finish_rate(const MetaGradCall& call, int64_t offset, const Real* values) {
    if (call.rates.task_stride) {
      Real* out = static_cast<Real*>(call.out_rate_grad);
      for (int i = 0; i < used_; ++i) {
        out[(first_ + i) * call.rates.task_stride + offset] += values[i];
      }
      return;
    }
    double total = 0;
    for (int i = 0; i < used_; ++i) total += values[i];
    rate_sink_[offset] += static_cast<Real>(total);
  }
  void export_weight(Real* out, int64_t stride, const LayerPlan& p, const WeightRef& w) const {
    export_values(out + p.weight_offset, stride, w.own, w.shared, w.out * w.in);
  }
  void export_bias(Real* out, int64_t stride, const LayerPlan& p, const BiasRef& b) const {
    export_values(out + p.bias_offset, stride, b.own, b.shared, b.out);
  }
  void export_rows(Real* out, const R& r) const {
    const int64_t size = r.rows * r.cols;
    deinterleave(out + first_ * size, size, reinterpret_cast<const Real*>(r.p), size, used_);
  }
  /// Where a per-task leaf result is built before `publish` hands it to the caller.
  Out result_weight(int l, V* block, Real*, int64_t) const { return block_weight_target(l, block); }
  Out result_bias(int l, V* block, Real*, int64_t) const { return block_bias_target(l, block); }
  void publish(int l, V* block, Real* out, int64_t stride) const {
    const LayerPlan& p = plan_.layers[l];
    if (p.weight_leaf >= 0) export_weight(out, stride, p, block_weight(l, block));
    if (p.bias_leaf >= 0) export_bias(out, stride, p, block_bias(l, block));
  }

 private:
  using Base::net_, Base::plan_, Base::problem_, Base::first_, Base::used_;
  using Base::sink_, Base::rate_sink_, Base::room_, Base::free_, Base::r_free_;

  static WeightRef empty_weight(const LayerPlan& p) {
    WeightRef w;
    w.out = p.weight_rows();
    w.in = p.weight_cols();
    w.ld = p.weight_cols();
    w.diagonal = p.diagonal;
    return w;
  }
  void finish(bool per_task, int leaf, int64_t sink, int64_t n, const Out& lambda,
              const MetaGradCall& call) {
    if (per_task) {
      const int64_t stride = call.grad_strides[leaf];
      deinterleave(static_cast<Real*>(call.grads[leaf]) + first_ * stride, stride,
                   reinterpret_cast<const Real*>(lambda.p), n, used_);
    } else {
      for (int64_t i = 0; i < n; ++i) sink_[sink + i] += lambda.p[i];
    }
  }
  void export_values(Real* out, int64_t stride, const V* own, const Real* shared, int64_t n) const {
    Real* to = out + first_ * stride;
    if (own) {
      deinterleave(to, stride, reinterpret_cast<const Real*>(own), n, used_);
    } else if (shared) {
      for (int i = 0; i < used_; ++i) std::memcpy(to + i * stride, shared, n * sizeof(Real));
    }
  }
};

}  // namespace INNERLOOP_LEVEL
}  // namespace innerloop
