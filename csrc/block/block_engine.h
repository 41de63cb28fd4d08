// The engine for a block of threads: a group of tasks lies in the block's workspace as matrices
// with one number per element, and every step of a pass is a phase that all threads share.
//
// Layout: row-major, rows padded to an odd length, so that neighbouring threads that read down a
// column meet different banks of shared memory; padding is neither read nor written. Tasks of the
// group are stacked. Shared leaves are copied into the workspace once per group, but for the weight
// of a first layer that stays implicit, which is read where the caller keeps it. Sums over tasks
// grow in a sink that belongs to the block, in task order.
#pragma once

#include "block/block_results.h"
#include "core/side_rows.h"

namespace innerloop {

template <class BlockType, class RealType>
class BlockEngine : public BlockResults<BlockType, RealType> {
 public:
  using Base = BlockResults<BlockType, RealType>;
  using Base::Base;
  using typename Base::BiasRef;
  using typename Base::Elem;
  using typename Base::Numbers;
  using typename Base::Out;
  using typename Base::PerTask;
  using typename Base::R;
  using typename Base::Real;
  using typename Base::SideData;
  using typename Base::WeightRef;

  // ---- workspace and loading -------------------------------------------------------------------
  IL_HD void carve(Carver<Elem>& c) {
    partial_ = c.take(options_.threads > plan_.copies ? options_.threads : plan_.copies);
    r_free_ = c.take(plan_.copies, free_size());
  }
  IL_HD SideData carve_side(Carver<Elem>& c, const Side& side) const {
    const int64_t n = side.rows, all = plan_.copies * n;
    const int64_t columns = plan_.layers[0].in, ld = Base::pad(columns);
    SideData d{};
    d.x = {c.take(all, ld), n, columns, ld};
    if (!side.y) return d;
    d.objective = side.objective;
    d.targets = target_layout(side.objective, outputs());
    d.y = c.take(all, d.targets.columns);
    d.weight = c.take(all);
    d.gradient = c.take(all);
    d.losses = c.take(all);
    return d;
  }
  IL_CALL void load_side(const SideData& d, const Side& side, const void* task_weight,
                         bool is_query) {
    const int64_t* labels = d.targets.has_classes ? static_cast<const int64_t*>(side.y) : nullptr;
    block_.spread(used_, extent(d.x.rows), [&](int t, int i) {
      const int64_t task = first_ + t, at = t * d.x.rows + i;
      Real w = row_weight(d, side, task, i);
      if (labels) {
        const int64_t label = labels[task * side.rows + i];
        if (w != Real(0) && (label < 0 || label >= outputs())) w = not_a_number();
        d.y[at] = static_cast<Real>(label);
      }
      const Real scale = !is_query     ? Real(1)
                         : task_weight ? static_cast<const Real*>(task_weight)[task]
                                       : Real(1) / static_cast<Real>(problem_.tasks);
      d.weight[at] = w;
      d.gradient[at] = w * scale;
    });
    block_.barrier();
    // NaN in rows out of use must not meet a product
    const int rows = used_ * extent(d.x.rows);
    const int64_t first_row = first_ * side.rows;
    const Real* x = static_cast<const Real*>(side.x) + first_row * d.x.cols;
    block_.spread(rows, extent(d.x.cols), [&](int r, int j) {
      d.x.p[r * d.x.ld + j] = d.weight[r] != Real(0) ? x[r * d.x.cols + j] : Real(0);
    });
    if (!labels) {
      const int64_t columns = d.targets.columns;
      const Real* y = static_cast<const Real*>(side.y) + first_row * columns;
      block_.spread(rows, extent(columns), [&](int r, int j) {
        d.y[r * columns + j] = d.weight[r] != Real(0) ? y[r * columns + j] : Real(0);
      });
    }
    block_.barrier();
  }
  IL_CALL void load_inputs(const R& x, const void* data) const {
    const Real* from = static_cast<const Real*>(data) + first_ * x.rows * x.cols;
    block_.spread(used_ * extent(x.rows), extent(x.cols),
                  [&](int r, int j) { x.p[r * x.ld + j] = from[r * x.cols + j]; });
    block_.barrier();
  }
  IL_CALL void load_params(Elem* initial) const {
    for (int l = 0; l < plan_.entries; ++l) {
      const LayerPlan& p = plan_.layers[l];
      if (p.weight_leaf >= 0 && stages_weight(l)) {
        load_leaf(initial + p.initial_w, problem_.params, p.weight_leaf, p.out, p.in, p.ld_in);
      }
      if (p.bias_leaf >= 0) {
        load_leaf(initial + p.initial_b, problem_.params, p.bias_leaf, 1, p.out, p.ld_out);
      }
    }
    block_.barrier();
  }
  IL_CALL void load_per_task(PerTask* to, const Real* from, int64_t task_stride) const {
    block_.spread(1, used_, [&](int, int t) { to[t] = from[(first_ + t) * task_stride]; });
    block_.barrier();
  }
  IL_CALL void store_per_task(Real* to, int64_t stride, int64_t index,
                              const PerTask* values) const {
    block_.spread(1, used_, [&](int, int t) { to[(first_ + t) * stride + index] = values[t]; });
    block_.barrier();
  }
  IL_CALL void clear_per_task(PerTask* to) const {
    block_.spread(1, used_, [&](int, int t) { to[t] = Real(0); });
    block_.barrier();
  }

  // ---- parameters ------------------------------------------------------------------------------
  IL_HD WeightRef initial_weight(int l, Elem* initial) const {
    const LayerPlan& p = plan_.layers[l];
    if (!stages_weight(l)) return leaf_weight(p, problem_.params);
    WeightRef w = empty_weight(p);
    w.own = initial + p.initial_w;
    w.ld = p.ld_in;
    w.task_stride = p.weight_per_task ? p.out * p.ld_in : 0;
    return w;
  }
  IL_HD BiasRef initial_bias(int l, Elem* initial) const {
    const LayerPlan& p = plan_.layers[l];
    BiasRef b;
    if (p.bias_leaf < 0) return b;
    b.out = p.out;
    b.own = initial + p.initial_b;
    b.task_stride = p.bias_per_task ? p.ld_out : 0;
    return b;
  }
  IL_HD WeightRef block_weight(int l, Elem* block) const {
    const LayerPlan& p = plan_.layers[l];
    WeightRef w = empty_weight(p);
    w.own = block + p.w;
    w.ld = p.ld_in;
    w.task_stride = p.out * p.ld_in;
    return w;
  }
  IL_HD WeightRef turned_weight(int l, Elem* block) const { return block_weight(l, block); }
  IL_HD BiasRef block_bias(int l, Elem* block) const {
    const LayerPlan& p = plan_.layers[l];
    BiasRef b;
    b.own = block + p.b;
    b.out = p.out;
    b.task_stride = p.ld_out;
    return b;
  }
  IL_HD Out block_weight_target(int l, Elem* block) const {
    const LayerPlan& p = plan_.layers[l];
    return {block + p.w, p.ld_in, p.out * p.ld_in};
  }
  IL_HD Out block_bias_target(int l, Elem* block) const {
    const LayerPlan& p = plan_.layers[l];
    return {block + p.b, p.ld_out, p.ld_out};
  }
  IL_HD void turn(int, Elem*) const {}
  /// A leaf of a direction given by the caller is read where it lies.
  IL_HD WeightRef load_weight(int l, const Leaves& leaves, Elem*) const {
    return leaf_weight(plan_.layers[l], leaves);
  }
  IL_HD WeightRef loaded_weight(int l, const Leaves& leaves, Elem*) const {
    return leaf_weight(plan_.layers[l], leaves);
  }
  IL_HD BiasRef load_bias(int l, const Leaves& leaves, Elem*) const {
    const LayerPlan& p = plan_.layers[l];
    BiasRef b;
    if (p.bias_leaf < 0) return b;
    b.out = p.out;
    b.task_stride = leaves.task_stride[p.bias_leaf];
    b.shared = leaf(leaves, p.bias_leaf);
    return b;
  }

  // ---- results of a task -----------------------------------------------------------------------
  IL_HD Out result_weight(int l, Elem* block, Real*, int64_t) const {
    return block_weight_target(l, block);
  }
  IL_HD Out result_bias(int l, Elem* block, Real*, int64_t) const {
    return block_bias_target(l, block);
  }
  IL_HD void publish(int l, Elem* block, Real* out, int64_t stride) const {
    const LayerPlan& p = plan_.layers[l];
    this->export_weight(out, stride, p, block_weight(l, block));
    if (p.bias_leaf >= 0) this->export_bias(out, stride, p, block_bias(l, block));
  }

 protected:
  using Base::block_;
  using Base::empty_weight;
  using Base::extent;
  using Base::first_;
  using Base::free_size;
  using Base::not_a_number;
  using Base::options_;
  using Base::outputs;
  using Base::partial_;
  using Base::plan_;
  using Base::problem_;
  using Base::r_free_;
  using Base::used_;

 private:
  /// The weight of row i in the task's loss: 0 beyond the task's count, NaN where the count is not
  /// one.
  IL_HD Real row_weight(const SideData& d, const Side& side, int64_t task, int64_t i) const {
    const int64_t count = side.count ? side.count[task] : side.rows;
    if (count < 0 || count > side.rows) return not_a_number();
    if (i >= count) return Real(0);
    const Real* given = static_cast<const Real*>(side.weight);
    if (given) return given[task * side.rows + i];
    return even_weight<Real>(side, d.targets, outputs(), task, count);
  }
  IL_HD bool stages_weight(int l) const { return l > 0 || !plan_.implicit_first; }
  /// Task `first_`'s part of a leaf.
  IL_HD const Real* leaf(const Leaves& leaves, int index) const {
    return static_cast<const Real*>(leaves.data[index]) + first_ * leaves.task_stride[index];
  }
  IL_HD WeightRef leaf_weight(const LayerPlan& p, const Leaves& leaves) const {
    WeightRef w = empty_weight(p);
    w.shared = leaf(leaves, p.weight_leaf);
    w.ld = p.in;
    w.task_stride = leaves.task_stride[p.weight_leaf];
    return w;
  }
  /// Copies a leaf, once or for every task. No barrier: leaves follow one another.
  IL_HD void load_leaf(Elem* to, const Leaves& leaves, int index, int64_t rows, int64_t cols,
                       int64_t ld) const {
    const int64_t stride = leaves.task_stride[index], size = rows * ld;
    const Real* from = leaf(leaves, index);
    for (int t = 0; t < (stride ? used_ : 1); ++t) {
      block_.spread(extent(rows), extent(cols), [&](int i, int j) {
        to[t * size + i * ld + j] = from[t * stride + i * cols + j];
      });
    }
  }
};

}  // namespace innerloop
