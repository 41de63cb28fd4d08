// The engine for a block of threads: a group of tasks lies in the block's workspace as matrices
// with one number per element, and every step of a pass is a phase that all threads share.
//
// Layout: row-major, rows padded to an odd length, so that neighbouring threads that read down a
// column meet different banks of shared memory; padding is neither read nor written. Tasks of the
// group are stacked. Shared leaves are copied into the workspace once per group when that is cheap
// to read (`stages`), otherwise read where the caller keeps them. Sums over tasks grow in a sink
// that belongs to the block, in task order.
#pragma once

#include "block/scalar_math.h"
#include "block/tensor_product.h"
#include "core/activation.h"
#include "core/loss.h"
#include "core/plan.h"

namespace innerloop {

/// What an engine is told besides the call.
struct BlockOptions {
  int threads;
  bool stages;
  bool tf32;  // products of float32 may run on tensor cores
  int64_t parameters;
};

template <class BlockType, class RealType>
class BlockEngine {
 public:
  using Block = BlockType;
  using Real = RealType;
  using Elem = typename Block::template Cell<Real>;
  using PerTask = Elem;
  using M = ScalarMath<Real, Elem>;
  using R = Rows<Elem>;
  using Out = Target<Elem>;
  using WeightRef = Weight<Real, Elem>;
  using BiasRef = Bias<Real, Elem>;
  using Numbers = Source<Real, Elem>;
  using Product = BlockProduct<Real, Elem>;
  static constexpr bool kBuildsResults = true;  // in the workspace; copied out in whole rows

  struct SideData {
    R x;
    Elem* y;         // [tasks, rows, K] targets or [tasks, rows] class indices
    Elem* weight;    // [tasks, rows]: of the loss
    Elem* gradient;  // [tasks, rows]: weight times the task's weight
    Elem* losses;    // [tasks, rows]
  };

  IL_HD BlockEngine(const Block& block, const Problem& problem, const Plan& plan,
                    const BlockOptions& options)
      : block_(block), problem_(problem), plan_(plan), options_(options) {}

  IL_HD static int64_t pad(int64_t n) { return n | 1; }
  IL_HD static int64_t turned(int64_t, int64_t) { return 0; }
  IL_HD int64_t per_task_reals() const { return plan_.copies; }
  IL_HD static PerTask* per_task(Elem* values) { return values; }
  IL_HD int64_t initial_size() const { return options_.stages ? plan_.initial : 0; }
  IL_HD static int64_t direction_size() { return 0; }
  IL_HD int64_t parameter_count() const { return options_.parameters; }

  IL_HD void select(int64_t first, int64_t count) {
    first_ = first;
    used_ = static_cast<int>(count);
  }
  /// sink: [plan.sink]; rate_sink: laid out as the rates.
  IL_HD void set_sinks(Elem* sink, Elem* rate_sink) {
    sink_ = sink;
    rate_sink_ = rate_sink;
  }
  IL_CALL void clear_sinks(int64_t rate_size) {
    block_.spread(1, extent(plan_.sink), [&](int, int i) { sink_[i] = Real(0); });
    block_.spread(1, extent(rate_size), [&](int, int i) { rate_sink_[i] = Real(0); });
    block_.barrier();
  }
  /// Writes the block's sums to `to`: leaves in the flat [P] order, then the rates.
  IL_CALL void export_sinks(Real* to, int64_t rate_size) const {
    for (int l = 0; l < plan_.depth; ++l) {
      const LayerPlan& p = plan_.layers[l];
      const Elem *weight = sink_ + p.sink_w, *bias = sink_ + p.sink_b;
      block_.spread(extent(p.out), extent(p.in), [&](int i, int j) {
        to[p.weight_offset + i * p.in + j] = weight[i * p.ld_in + j];
      });
      if (p.bias_leaf < 0) continue;
      block_.spread(1, extent(p.out), [&](int, int j) { to[p.bias_offset + j] = bias[j]; });
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

  // ---- workspace and loading -------------------------------------------------------------------
  IL_HD void carve(Carver<Elem>& c) {
    partial_ = c.take(options_.threads > plan_.copies ? options_.threads : plan_.copies);
  }
  IL_HD SideData carve_side(Carver<Elem>& c, const Side& side) const {
    const int64_t n = side.rows, in = plan_.layers[0].in, all = plan_.copies * n;
    SideData d{};
    d.x = {c.take(all, pad(in)), n, in, pad(in)};
    if (!side.y) return d;
    d.y = c.take(all, target_columns());
    d.weight = c.take(all);
    d.gradient = c.take(all);
    d.losses = c.take(all);
    return d;
  }
  IL_CALL void load_side(const SideData& d, const Side& side, const void* task_weight,
                         bool is_query) {
    const int n = extent(side.rows);
    const Real* given = static_cast<const Real*>(side.weight);
    const int64_t* labels =
        has_classes() ? static_cast<const int64_t*>(side.y) + first_ * n : nullptr;
    block_.spread(used_, n, [&](int t, int i) {
      const int64_t task = first_ + t, count = side.count ? side.count[task] : n;
      Real w = i >= count ? Real(0) : given ? given[task * n + i] : Real(1) / Real(count);
      const int64_t at = static_cast<int64_t>(t) * n + i;
      if (labels) {
        if (w != Real(0) && (labels[at] < 0 || labels[at] >= outputs())) w = not_a_number();
        d.y[at] = static_cast<Real>(labels[at]);
      }
      if (count < 0 || count > n) w = not_a_number();
      const Real scale = !is_query     ? Real(1)
                         : task_weight ? static_cast<const Real*>(task_weight)[task]
                                       : Real(1) / static_cast<Real>(problem_.tasks);
      d.weight[at] = w;
      d.gradient[at] = w * scale;
    });
    block_.barrier();
    // NaN in ignored rows must not meet a product
    const Real* x = static_cast<const Real*>(side.x) + first_ * n * d.x.cols;
    block_.spread(used_ * n, extent(d.x.cols), [&](int r, int j) {
      d.x.p[r * d.x.ld + j] = d.weight[r] != Real(0) ? x[r * d.x.cols + j] : Real(0);
    });
    if (!labels) {
      const int64_t columns = outputs();
      const Real* y = static_cast<const Real*>(side.y) + first_ * n * columns;
      block_.spread(used_ * n, extent(columns), [&](int r, int j) {
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
    if (!options_.stages) return;
    for (int l = 0; l < plan_.depth; ++l) {
      const LayerPlan& p = plan_.layers[l];
      if (stages_weight(l)) {
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
    if (options_.stages) {
      b.own = initial + p.initial_b;
      b.task_stride = p.bias_per_task ? p.ld_out : 0;
    } else {
      b.task_stride = problem_.params.task_stride[p.bias_leaf];
      b.shared = leaf(problem_.params, p.bias_leaf);
    }
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

  // ---- products --------------------------------------------------------------------------------
  IL_CALL void nt(const R& c, const R& a, const WeightRef& w, const PerTask* rate, Real sign,
                  bool add) const {
    Product x = product_into(c, a, rate, sign, add);
    x.m = extent(a.rows);
    x.n = extent(w.out);
    x.k = extent(w.in);
    x.a_row = a.ld;
    x.a_col = 1;
    x.b = {w.own, w.shared};
    x.b_task = w.task_stride;
    x.b_row = 1;
    x.b_col = w.ld;
    multiply(block_, x);
  }
  IL_CALL void nn(const R& c, const R& a, const WeightRef& w, const PerTask* rate, Real sign,
                  bool add) const {
    Product x = product_into(c, a, rate, sign, add);
    x.m = extent(a.rows);
    x.n = extent(w.in);
    x.k = extent(w.out);
    x.a_row = a.ld;
    x.a_col = 1;
    x.b = {w.own, w.shared};
    x.b_task = w.task_stride;
    x.b_row = w.ld;
    x.b_col = 1;
    multiply(block_, x);
  }
  IL_CALL void tn(const Out& to, const WeightRef* from, const LayerPlan& p, const R& a, const R& b,
                  const R* a2, const R* b2, const PerTask* rate, Real sign) const {
    Product x = outer(p, a, b, a2, b2);
    x.tasks = used_;
    x.k = extent(a.rows);
    x.c = to.p;
    x.c_task = to.task_stride;
    x.c_row = to.ld;
    if (from) {
      x.c0 = {from->own, from->shared};
      x.c0_task = from->task_stride;
      x.c0_row = from->ld;
    }
    x.rate = rate;
    x.sign = sign;
    multiply(block_, x);
  }
  /// One product over the stacked rows of all tasks of the group.
  IL_CALL void sink_tn(const LayerPlan& p, const R& a, const R& b, const R* a2, const R* b2,
                       Real sign) const {
    Product x = outer(p, a, b, a2, b2);
    x.k = used_ * extent(a.rows);
    x.c = sink_ + p.sink_w;
    x.c_row = p.ld_in;
    x.c0 = {x.c, nullptr};
    x.c0_row = p.ld_in;
    x.sign = sign;
    multiply(block_, x);
  }
  IL_CALL void rows_nt(const R& c, const R& a, const R& b) const {
    Product x = product_into(c, a, nullptr, 1, false);
    x.m = extent(a.rows);
    x.n = extent(b.rows);
    x.k = extent(a.cols);
    x.a_row = a.ld;
    x.a_col = 1;
    x.b = {b.p, nullptr};
    x.b_task = b.rows * b.ld;
    x.b_row = 1;
    x.b_col = b.ld;
    multiply(block_, x);
  }
  IL_CALL void rows_nn(const R& c, const R& a, const R& b, const PerTask* rate, Real sign,
                       bool add) const {
    Product x = product_into(c, a, rate, sign, add);
    x.m = extent(a.rows);
    x.n = extent(b.cols);
    x.k = extent(a.cols);
    x.a_row = a.ld;
    x.a_col = 1;
    x.b = {b.p, nullptr};
    x.b_task = b.rows * b.ld;
    x.b_row = b.ld;
    x.b_col = 1;
    multiply(block_, x);
  }
  IL_CALL void rows_tn(const R& c, const R& a, const R& b) const {
    Product x = product_into(c, a, nullptr, 1, false);
    x.m = extent(a.cols);
    x.n = extent(b.cols);
    x.k = extent(a.rows);
    x.a_row = 1;
    x.a_col = a.ld;
    x.b = {b.p, nullptr};
    x.b_task = b.rows * b.ld;
    x.b_row = b.ld;
    x.b_col = 1;
    multiply(block_, x);
  }

  // ---- elementwise -----------------------------------------------------------------------------
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
        delta.p[at] = a.p[at] * A::first(A::kNeedsZ ? Real(z.p[at]) : Real(0), h.p[at], slope);
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
        rh.p[at] = value * A::first(A::kNeedsZ ? Real(z.p[at]) : Real(0), h.p[at], slope);
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
        Real value = rdelta.p[at] * A::first(zi, hi, slope);
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
  IL_CALL void minus_dot(PerTask* to, const R& a, const R& b) const {
    sum_per_task(to, -1, a.rows, a.cols, [&](int64_t row, int j) {
      return static_cast<Real>(a.p[row * a.ld + j]) * static_cast<Real>(b.p[row * b.ld + j]);
    });
  }
  IL_CALL void minus_dot_bias(PerTask* to, const R& delta, const Out& lambda) const {
    const int rows = extent(delta.rows);
    sum_per_task(to, -1, delta.rows, delta.cols, [&](int64_t row, int j) {
      return static_cast<Real>(delta.p[row * delta.ld + j]) *
             static_cast<Real>(lambda.p[row / rows * lambda.task_stride + j]);
    });
  }

  // ---- losses: a row to a thread ---------------------------------------------------------------
  IL_CALL void loss_gradient(const SideData& d, const R& out, const R& gradient,
                             PerTask* losses) const {
    with_loss<M>(problem_.loss, [&](auto loss) {
      block_.spread(used_, extent(out.rows), [&](int t, int i) {
        const int64_t r = t * out.rows + i;
        Elem* g = gradient.p + r * gradient.ld;
        const Real value = decltype(loss)::gradient(sample(d, out, r), g);
        const Real w = d.weight[r], gw = d.gradient[r];
        d.losses[r] = w == Real(0) ? Real(0) : w * value;
        for (int64_t k = 0; k < out.cols; ++k) g[k] = w == Real(0) ? Real(0) : gw * g[k];
      });
    });
    block_.barrier();
    sum_per_task(losses, 1, out.rows, 1,
                 [&](int64_t row, int) { return static_cast<Real>(d.losses[row]); });
  }
  IL_CALL void loss_curvature(const SideData& d, const R& out, const R& r_out,
                              const R& r_gradient) const {
    with_loss<M>(problem_.loss, [&](auto loss) {
      block_.spread(used_, extent(out.rows), [&](int t, int i) {
        const int64_t r = t * out.rows + i;
        Elem* g = r_gradient.p + r * r_gradient.ld;
        decltype(loss)::curvature(sample(d, out, r), r_out.p + r * r_out.ld, g);
        const Real w = d.weight[r], gw = d.gradient[r];
        for (int64_t k = 0; k < out.cols; ++k) g[k] = w == Real(0) ? Real(0) : gw * g[k];
      });
    });
    block_.barrier();
  }

  // ---- rates per parameter ---------------------------------------------------------------------
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
    finish(p.weight_per_task, p.weight_leaf, p.sink_w, p.out, p.in, p.ld_in, lambda, call);
  }
  IL_CALL void finish_bias(const LayerPlan& p, const Out& lambda, const MetaGradCall& call) const {
    finish(p.bias_per_task, p.bias_leaf, p.sink_b, 1, p.out, p.ld_out, lambda, call);
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
  IL_CALL void export_weight(Real* out, int64_t stride, const WeightRef& w) const {
    write_out(out, stride, {w.own, w.shared}, w.task_stride, w.ld, w.out, w.in);
  }
  IL_CALL void export_bias(Real* out, int64_t stride, const BiasRef& b) const {
    write_out(out, stride, numbers(b), b.task_stride, 0, 1, b.out);
  }
  IL_CALL void export_rows(Real* out, const R& r) const {
    Real* to = out + first_ * r.rows * r.cols;
    block_.spread(used_ * extent(r.rows), extent(r.cols),
                  [&](int i, int j) { to[i * r.cols + j] = r.p[i * r.ld + j]; });
    block_.barrier();
  }
  IL_HD Out result_weight(int l, Elem* block, Real*, int64_t) const {
    return block_weight_target(l, block);
  }
  IL_HD Out result_bias(int l, Elem* block, Real*, int64_t) const {
    return block_bias_target(l, block);
  }
  IL_HD void publish(int l, Elem* block, Real* out, int64_t stride) const {
    const LayerPlan& p = plan_.layers[l];
    export_weight(out + p.weight_offset, stride, block_weight(l, block));
    if (p.bias_leaf >= 0) export_bias(out + p.bias_offset, stride, block_bias(l, block));
  }

 private:
  /// Sizes of one task's arrays fit 32 bits (block/operations.h); products of two of them may not.
  IL_HD static int extent(int64_t n) { return static_cast<int>(n); }
  IL_HD static Real not_a_number() { return static_cast<Real>(NAN); }
  IL_HD bool has_classes() const { return problem_.loss == LossKind::kCrossEntropy; }
  IL_HD int64_t outputs() const { return plan_.layers[plan_.depth - 1].out; }
  IL_HD int64_t target_columns() const { return has_classes() ? 1 : outputs(); }
  IL_HD static Numbers numbers(const BiasRef& b) { return {b.own, b.shared}; }
  IL_HD static Real factor(const PerTask* rate, int task) {
    return rate ? static_cast<Real>(rate[task]) : Real(1);
  }
  IL_HD bool stages_weight(int l) const {
    return options_.stages && (l > 0 || !plan_.implicit_first);
  }
  /// Task `first_`'s part of a leaf.
  IL_HD const Real* leaf(const Leaves& leaves, int index) const {
    return static_cast<const Real*>(leaves.data[index]) + first_ * leaves.task_stride[index];
  }
  IL_HD static WeightRef empty_weight(const LayerPlan& p) {
    WeightRef w;
    w.out = p.out;
    w.in = p.in;
    return w;
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

  IL_HD Product product_into(const R& c, const R& a, const PerTask* rate, Real sign,
                             bool add) const {
    Product x;
    x.tasks = used_;
    x.a = a.p;
    x.a_task = a.rows * a.ld;
    x.c = c.p;
    x.c_task = c.rows * c.ld;
    x.c_row = c.ld;
    if (add) {
      x.c0 = {c.p, nullptr};
      x.c0_task = x.c_task;
      x.c0_row = x.c_row;
    }
    x.rate = rate;
    x.sign = sign;
    return x;
  }
  IL_HD static Product outer(const LayerPlan& p, const R& a, const R& b, const R* a2, const R* b2) {
    Product x;
    x.m = extent(p.out);
    x.n = extent(p.in);
    x.a = a.p;
    x.a_task = a.rows * a.ld;
    x.a_row = 1;
    x.a_col = a.ld;
    x.b = {b.p, nullptr};
    x.b_task = b.rows * b.ld;
    x.b_row = b.ld;
    x.b_col = 1;
    x.a2 = a2 ? a2->p : nullptr;
    x.b2 = b2 ? b2->p : nullptr;
    return x;
  }

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

  IL_HD Sample<M> sample(const SideData& d, const R& out, int64_t r) const {
    return {out.p + r * out.ld, d.y + r * target_columns(), out.cols,
            static_cast<Real>(problem_.loss_parameter)};
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
  IL_HD void finish(bool per_task, int index, int64_t sink, int64_t rows, int64_t cols, int64_t ld,
                    const Out& lambda, const MetaGradCall& call) const {
    const int64_t stride = per_task ? call.grad_strides[index] : 0;
    Real* out = per_task ? static_cast<Real*>(call.grads[index]) + first_ * stride : nullptr;
    block_.spread(extent(rows), extent(cols), [&](int i, int j) {
      Real total = 0;
      for (int t = 0; t < used_; ++t) {
        const Real value = lambda.p[t * lambda.task_stride + i * lambda.ld + j];
        total += value;
        if (per_task) out[t * stride + i * cols + j] = value;
      }
      if (!per_task) {
        Elem& sum = sink_[sink + i * ld + j];
        sum = sum + total;
      }
    });
    block_.barrier();
  }
  IL_HD void write_out(Real* out, int64_t stride, const Numbers& from, int64_t from_task,
                       int64_t from_ld, int64_t rows, int64_t cols) const {
    Real* to = out + first_ * stride;
    for (int t = 0; t < used_; ++t) {
      block_.spread(extent(rows), extent(cols), [&](int i, int j) {
        to[t * stride + i * cols + j] = from.at(t * from_task + i * from_ld + j);
      });
    }
    block_.barrier();
  }

  Block block_;
  const Problem& problem_;
  const Plan& plan_;
  const BlockOptions& options_;
  int64_t first_ = 0;
  int used_ = 0;
  Elem *sink_ = nullptr, *rate_sink_ = nullptr, *partial_ = nullptr;
};

}  // namespace innerloop
