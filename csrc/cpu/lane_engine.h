// The engine for small networks and many tasks: kLanes tasks side by side, every matrix element a
// vector over them. Data are interleaved on the way in; nothing is padded or reduced afterwards.
#pragma once

#include "core/activation.h"
#include "core/objectives/all.h"
#include "core/plan.h"
#include "core/side_rows.h"
#include "cpu/lane_products.h"
#include "cpu/row_values.h"
#include "cpu/vector_math.h"

namespace innerloop {
namespace INNERLOOP_LEVEL {

template <class RealT>
class LaneEngine {
 public:
  using Real = RealT;
  using S = Simd<Real>;
  using M = VectorMath<Real>;
  using V = typename S::V;
  using Elem = V;
  using PerTask = Real;
  using R = Rows<V>;
  using Out = Target<V>;
  using WeightRef = Weight<Real, V>;
  using BiasRef = Bias<Real, V>;
  using Row = TasksRow<Real>;
  static constexpr int kWidth = S::kLanes;
  static constexpr bool kBuildsResults = true;  // results are interleaved: built, then copied out

  struct SideData {
    R x;
    V* y;         // [rows, columns of the targets]
    V* weight;    // [rows]: of the loss
    V* gradient;  // [rows]: weight times the task's weight
    Objective objective;
    TargetLayout targets;
  };
  struct Shared {};  // this engine reads shared leaves where they are

  LaneEngine(const Problem& problem, const Plan& plan, const Shared&)
      : problem_(problem), net_(*problem.net), plan_(plan) {}

  static constexpr bool supports(LayerKind) { return true; }
  static int64_t pad(int64_t n) { return n; }
  static int64_t turned(int64_t, int64_t) { return 0; }
  static int64_t per_task_reals() { return kWidth; }
  static Real* per_task(V* values) { return reinterpret_cast<Real*>(values); }
  int64_t initial_size() const { return plan_.has_per_task_leaf ? plan_.block : 0; }
  int64_t direction_size() const { return plan_.block; }
  int64_t parameter_count() const { return net_.parameters; }
  int64_t row_count(const R& r) const { return r.rows; }
  Status status() const { return status_; }
  int64_t first() const { return first_; }

  void select(int64_t first, int64_t count) {
    first_ = first;
    used_ = static_cast<int>(count);
  }
  void set_sinks(V* sink, Real* rate_sink) {
    sink_ = sink;
    rate_sink_ = rate_sink;
  }
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

  // ---- workspace and loading -------------------------------------------------------------------
  template <class C>
  void carve(C& c) {
    free_ = c.take(net_.free);
    r_free_ = c.take(net_.free);
  }
  template <class C>
  SideData carve_side(C& c, const Side& side) const {
    const int64_t n = side.rows, in = net_.first().in;
    SideData d;
    d.objective = side.objective;
    d.targets = target_layout(side.objective, net_.last().out);
    d.x = {c.take(n * in), n, in, in};
    d.y = c.take(n * d.targets.columns);
    d.weight = c.take(n);
    d.gradient = c.take(n);
    return d;
  }

  void load_side(SideData& d, const Side& side, const void* task_weight, bool is_query) {
    load_inputs(d.x, side.x);
    load_row_weights(d, side, task_weight, is_query);
    load_targets(d, side);
    if (!side.weight && !side.count) return;
    const int64_t columns = d.targets.columns;
    for (int64_t i = 0; i < side.rows; ++i) {  // NaN in ignored rows must not meet a product
      for (int64_t j = 0; j < d.x.cols; ++j) keep_if_weighted(d.x.p[i * d.x.ld + j], d.weight[i]);
      for (int64_t j = 0; j < columns; ++j) keep_if_weighted(d.y[i * columns + j], d.weight[i]);
    }
  }
  void load_inputs(const R& x, const void* data) {
    const int64_t size = x.rows * x.cols;
    interleave(reinterpret_cast<Real*>(x.p), static_cast<const Real*>(data) + first_ * size, size,
               size, used_);
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

  // ---- parameters ------------------------------------------------------------------------------
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

  // ---- products --------------------------------------------------------------------------------
  void nt(const R& c, const R& a, const WeightRef& w, const Real* rate, Real sign, bool add) {
    if (w.diagonal) return lane_scale_columns<Real>(c, a, w, rate, sign, add);
    lane_weight_product<Real>(c, a.rows, w.out, w.in, a.p, a.ld, 1, w, 1, w.ld, rate, sign, add);
  }
  void nn(const R& c, const R& a, const WeightRef& w, const Real* rate, Real sign, bool add) {
    if (w.diagonal) return lane_scale_columns<Real>(c, a, w, rate, sign, add);
    lane_weight_product<Real>(c, a.rows, w.in, w.out, a.p, a.ld, 1, w, w.ld, 1, rate, sign, add);
  }
  void tn(const Out& to, const WeightRef* from, const LayerPlan& p, const R& a, const R& b,
          const R* a2, const R* b2, const Real* rate, Real sign) {
    if (p.diagonal) {
      const WeightRef base = from ? *from : WeightRef{};
      return lane_column_products<Real>(to.p, base.own, base.shared, a, b, a2, b2, rate, sign);
    }
    LaneProduct<Real> x = lane_outer<Real>(p, a, b, a2, b2);
    x.c = to.p;
    x.c_row = to.ld;
    if (from) {
      x.c0 = from->own;
      x.c0_shared = from->own ? nullptr : from->shared;
    }
    x.rate = rate;
    x.sign = sign;
    lane_multiply(x);
  }
  void sink_tn(const LayerPlan& p, const R& a, const R& b, const R* a2, const R* b2, Real sign) {
    if (p.diagonal) {
      V* sink = sink_ + p.sink_w;
      return lane_column_products<Real>(sink, sink, nullptr, a, b, a2, b2, nullptr, sign);
    }
    LaneProduct<Real> x = lane_outer<Real>(p, a, b, a2, b2);
    x.c = sink_ + p.sink_w;
    x.c_row = p.in;
    x.c0 = x.c;
    x.sign = sign;
    lane_multiply(x);
  }
  void rows_nt(const R& c, const R& a, const R& b) {
    lane_rows_product<Real>(c, a.rows, b.rows, a.cols, a.p, a.ld, 1, b.p, 1, b.ld, nullptr, 1,
                            false);
  }
  void rows_nn(const R& c, const R& a, const R& b, const Real* rate, Real sign, bool add) {
    lane_rows_product<Real>(c, a.rows, b.cols, a.cols, a.p, a.ld, 1, b.p, b.ld, 1, rate, sign, add);
  }
  void rows_tn(const R& c, const R& a, const R& b) {
    lane_rows_product<Real>(c, a.cols, b.cols, a.rows, a.p, 1, a.ld, b.p, b.ld, 1, nullptr, 1,
                            false);
  }

  // ---- elementwise -----------------------------------------------------------------------------
  void bias_activation(const R& z, const R& h, const R& from, const BiasRef& b,
                       const LayerPlan& p) {
    if (!b && p.activation == Activation::kIdentity && from.p == h.p) return;
    const V slope = S::set(static_cast<Real>(p.slope));
    with_activation<M>(p.activation, [&](auto act) {
      using A = decltype(act);
      for (int64_t i = 0; i < z.rows; ++i) {
        for (int64_t j = 0; j < z.cols; ++j) {
          const V value = from.p[i * from.ld + j] + bias_at(b, j);
          z.p[i * z.ld + j] = value;
          h.p[i * h.ld + j] = A::value(value, slope);
        }
      }
    });
  }
  void activation_backward(const R& delta, const R& a, const R& z, const R& h, const LayerPlan& p) {
    if (p.activation == Activation::kIdentity && delta.p == a.p) return;
    const V slope = S::set(static_cast<Real>(p.slope));
    const int64_t n = delta.rows * delta.ld;
    with_activation<M>(p.activation, [&](auto act) {
      using A = decltype(act);
      for (int64_t i = 0; i < n; ++i) delta.p[i] = A::chain(a.p[i], z.p[i], h.p[i], slope);
    });
  }
  void r_activation(const R& rh, const R& rz, const BiasRef& b, const Real* rate, const R& z,
                    const R& h, const LayerPlan& p) {
    if (!b && p.activation == Activation::kIdentity && rz.p == rh.p) return;
    const V slope = S::set(static_cast<Real>(p.slope));
    const V scale = rate ? S::load(rate) : S::set(1);
    with_activation<M>(p.activation, [&](auto act) {
      using A = decltype(act);
      for (int64_t i = 0; i < rz.rows; ++i) {
        for (int64_t j = 0; j < rz.cols; ++j) {
          const int64_t at = i * rz.ld + j;
          const V value = rz.p[at] + scale * bias_at(b, j);
          rz.p[at] = value;
          rh.p[at] = A::chain(value, z.p[at], h.p[at], slope);
        }
      }
    });
  }
  /// rdelta, holding R{a}, becomes R{delta} = R{a} act' + a act'' R{z}.
  void r_activation_backward(const R& rdelta, const R& rz, const R& a, const R& z, const R& h,
                             const LayerPlan& p) {
    if (p.activation == Activation::kIdentity) return;
    const V slope = S::set(static_cast<Real>(p.slope));
    const int64_t n = rdelta.rows * rdelta.ld;
    with_activation<M>(p.activation, [&](auto act) {
      using A = decltype(act);
      for (int64_t i = 0; i < n; ++i) {
        V value = A::chain(rdelta.p[i], z.p[i], h.p[i], slope);
        if constexpr (A::kCurved) {
          value += a.p[i] * A::second(z.p[i], h.p[i], slope) * rz.p[i];
        }
        rdelta.p[i] = value;
      }
    });
  }
  void clear(const R& r) {
    for (int64_t i = 0; i < r.rows * r.ld; ++i) r.p[i] = V{};
  }
  void add_scaled(const R& to, const R& from, const Real* rate) {
    const V scale = rate ? S::load(rate) : S::set(1);
    for (int64_t i = 0; i < to.rows * to.ld; ++i) to.p[i] += scale * from.p[i];
  }
  void copy_scaled(const R& to, const R& from, const Real* rate) {
    const V scale = rate ? S::load(rate) : S::set(1);
    for (int64_t i = 0; i < to.rows * to.ld; ++i) to.p[i] = scale * from.p[i];
  }
  void column_sums(const Out& to, const BiasRef* from, const R& r, const Real* rate, Real sign) {
    const V scale = rate ? sign * S::load(rate) : S::set(sign);
    sum_columns<Real>(
        r, [&](int64_t j, V total) { to.p[j] = (from ? bias_at(*from, j) : V{}) + scale * total; });
  }
  /// -<a, b> for every task, in several sums: shorter chains of roundings and of latencies.
  void minus_dot(Real* to, const LayerPlan&, const R& a, const R& b) {
    constexpr int kParts = 8;
    V part[kParts] = {};
    const int64_t size = a.rows * a.ld, whole = size - size % kParts;
    int64_t i = 0;
    for (; i < whole; i += kParts) {
#pragma GCC unroll 8
      for (int k = 0; k < kParts; ++k) {
        part[k] = add_product<Real>(part[k], a.p[i + k], b.p[i + k]);
      }
    }
    for (int k = 0; i + k < size; ++k) {
      part[k] = add_product<Real>(part[k], a.p[i + k], b.p[i + k]);
    }
#pragma GCC unroll 4
    for (int half = kParts / 2; half > 0; half /= 2) {
#pragma GCC unroll 4
      for (int k = 0; k < half; ++k) part[k] += part[k + half];
    }
    S::store(to, -part[0]);
  }
  void minus_dot_bias(Real* to, const LayerPlan&, const R& delta, const Out& lambda) {
    V total{};
    sum_columns<Real>(delta, [&](int64_t j, V sum) { total -= lambda.p[j] * sum; });
    S::store(to, total);
  }

  // ---- losses ----------------------------------------------------------------------------------
  void loss_gradient(const SideData& d, const R& out, const BiasRef& free, const R& gradient,
                     const R& free_gradient, Real* losses) {
    V total{};
    const V zero{};
    load_free(free_, free, nullptr);
    with_objective<M>(d.objective, [&](const auto& objective) {
      for (int64_t i = 0; i < out.rows; ++i) {
        V* g = gradient.p + i * gradient.ld;
        V* g_free = free_gradient.p + i * free_gradient.ld;
        const V value = objective.gradient(sample(d, out, i), g, g_free);
        const V w = d.weight[i], gw = d.gradient[i];
        total += w == zero ? zero : w * value;
        for (int64_t k = 0; k < out.cols; ++k) g[k] = w == zero ? zero : gw * g[k];
        for (int64_t k = 0; k < free_gradient.cols; ++k) {
          g_free[k] = w == zero ? zero : gw * g_free[k];
        }
      }
    });
    S::store(losses, total);
  }
  template <class Direction>
  void loss_curvature(const SideData& d, const R& out, const BiasRef& free, const R& r_out,
                      const Direction& r_free, bool metric, const R& r_gradient,
                      const R& r_free_gradient) {
    const V zero{};
    load_free(free_, free, nullptr);
    load_free(r_free_, r_free.bias, r_free.bias_rate);
    with_objective<M>(d.objective, [&](const auto& objective) {
      for (int64_t i = 0; i < out.rows; ++i) {
        V* g = r_gradient.p + i * r_gradient.ld;
        V* g_free = r_free_gradient.p + i * r_free_gradient.ld;
        const Sample<M> s = sample(d, out, i);
        const V* rz = r_out.p + i * r_out.ld;
        if (metric) {
          objective.metric(s, rz, r_free_, g, g_free);
        } else {
          objective.curvature(s, rz, r_free_, g, g_free);
        }
        const V w = d.weight[i], gw = d.gradient[i];
        for (int64_t k = 0; k < out.cols; ++k) g[k] = w == zero ? zero : gw * g[k];
        for (int64_t k = 0; k < r_free_gradient.cols; ++k) {
          g_free[k] = w == zero ? zero : gw * g_free[k];
        }
      }
    });
  }

  // ---- rates per parameter ---------------------------------------------------------------------
  /// to = keep * from + sign * rate * x; `from` is not read where keep is 0.
  void combine_weight(const Out& to, const WeightRef& from, Real keep, const Out& x,
                      const PerTask* rate, Real sign, const LayerPlan& p) {
    combine(to, from.own, from.shared, keep, x, rate, sign, p.weight_size());
  }
  void combine_bias(const Out& to, const BiasRef& from, Real keep, const Out& x,
                    const PerTask* rate, Real sign, const LayerPlan& p) {
    combine(to, from.own, from.shared, keep, x, rate, sign, p.out);
  }
  void step_weight(const Out& to, const WeightRef& from, const Out& g, const LayerPlan& p,
                   const Real* rates, int64_t task_stride) {
    for (int64_t i = 0; i < p.weight_size(); ++i) {
      const V base = from.own ? from.own[i] : S::set(from.shared[i]);
      to.p[i] = base - element_rate(rates + i, task_stride) * g.p[i];
    }
  }
  void step_bias(const Out& to, const BiasRef& from, const Out& g, const LayerPlan& p,
                 const Real* rates, int64_t task_stride) {
    for (int64_t i = 0; i < p.out; ++i) {
      to.p[i] = bias_at(from, i) - element_rate(rates + i, task_stride) * g.p[i];
    }
  }
  void scale_weight(const Out& to, const Out& from, const LayerPlan& p, const Real* rates,
                    int64_t task_stride) {
    scale(to, from, p.weight_size(), rates, task_stride);
  }
  void scale_bias(const Out& to, const Out& from, const LayerPlan& p, const Real* rates,
                  int64_t task_stride) {
    scale(to, from, p.out, rates, task_stride);
  }
  void rate_grad_weight(const MetaGradCall& call, int64_t offset, const LayerPlan& p,
                        const Out& lambda, const Out& g) {
    rate_grad(call, offset, p.weight_size(), lambda, g);
  }
  void rate_grad_bias(const MetaGradCall& call, int64_t offset, const LayerPlan& p,
                      const Out& lambda, const Out& g) {
    rate_grad(call, offset, p.out, lambda, g);
  }

  // ---- results ---------------------------------------------------------------------------------
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
  /// The free leaf of each lane's task, times its rate; zero where there is none to be read.
  void load_free(V* to, const BiasRef& from, const Real* rate) const {
    const V scale = rate ? S::load(rate) : S::set(1);
    for (int64_t k = 0; k < net_.free; ++k)
      to[k] = rate ? scale * bias_at(from, k) : bias_at(from, k);
  }
  static void keep_if_weighted(V& value, V weight) { value = weight == V{} ? V{} : value; }
  static V bias_at(const BiasRef& b, int64_t j) {
    return b.own ? b.own[j] : b.shared ? S::set(b.shared[j]) : V{};
  }
  static WeightRef empty_weight(const LayerPlan& p) {
    WeightRef w;
    w.out = p.weight_rows();
    w.in = p.weight_cols();
    w.ld = p.weight_cols();
    w.diagonal = p.diagonal;
    return w;
  }
  Sample<M> sample(const SideData& d, const R& out, int64_t i) const {
    return {out.p + i * out.ld, d.y + i * d.targets.columns, out.cols, free_};
  }

  void load_row_weights(SideData& d, const Side& side, const void* task_weight, bool is_query) {
    V scale = S::set(1);
    if (is_query) {
      for (int i = 0; i < kWidth; ++i) {
        scale[i] = i >= used_    ? Real(0)
                   : task_weight ? static_cast<const Real*>(task_weight)[first_ + i]
                                 : Real(1) / static_cast<Real>(problem_.tasks);
      }
    }
    V even{};
    const bool plain = !side.weight && !side.count;
    int64_t counts[kWidth] = {};
    for (int i = 0; i < used_; ++i) {
      counts[i] = row_count(side, first_ + i);
      even[i] = even_weight<Real>(side, d.targets, net_.last().out, first_ + i, counts[i]);
    }
    for (int64_t r = 0; r < side.rows; ++r) {
      V w = even;
      if (!plain) {
        for (int i = 0; i < used_; ++i) {
          w[i] = row_weight(side, first_ + i, r, counts[i], even[i]);
        }
      }
      d.weight[r] = w;
      d.gradient[r] = w * scale;
    }
  }
  int64_t row_count(const Side& side, int64_t task) {
    if (!side.count) return side.rows;
    const int64_t count = side.count[task];
    if (count >= 0 && count <= side.rows) return count;
    status_ = Status::kBadCount;
    return 0;
  }
  Real row_weight(const Side& side, int64_t task, int64_t row, int64_t count, Real even) const {
    if (row >= count) return 0;
    if (side.weight) return static_cast<const Real*>(side.weight)[task * side.rows + row];
    return even;
  }
  void load_targets(SideData& d, const Side& side) {
    if (!d.targets.has_classes) {
      const int64_t size = side.rows * d.targets.columns;
      interleave(reinterpret_cast<Real*>(d.y), static_cast<const Real*>(side.y) + first_ * size,
                 size, size, used_);
      return;
    }
    const int64_t* labels = static_cast<const int64_t*>(side.y) + first_ * side.rows;
    for (int64_t r = 0; r < side.rows; ++r) {
      V y{};
      for (int i = 0; i < used_; ++i) {
        const int64_t label = labels[i * side.rows + r];
        if (d.weight[r][i] != 0 && (label < 0 || label >= net_.last().out)) {
          status_ = Status::kBadLabel;
        }
        y[i] = static_cast<Real>(label);
      }
      d.y[r] = y;
    }
  }

  static void combine(const Out& to, const V* own, const Real* shared, Real keep, const Out& x,
                      const PerTask* rate, Real sign, int64_t n) {
    const V scale = rate ? S::set(sign) * S::load(rate) : S::set(sign);
    for (int64_t i = 0; i < n; ++i) {
      const V base = keep == 0 ? V{} : S::set(keep) * (own ? own[i] : S::set(shared[i]));
      to.p[i] = base + scale * x.p[i];
    }
  }
  V element_rate(const Real* rate, int64_t task_stride) const {
    if (!task_stride) return S::set(*rate);
    V v{};
    for (int i = 0; i < used_; ++i) v[i] = rate[(first_ + i) * task_stride];
    return v;
  }
  void scale(const Out& to, const Out& from, int64_t n, const Real* rates, int64_t task_stride) {
    for (int64_t i = 0; i < n; ++i) to.p[i] = element_rate(rates + i, task_stride) * from.p[i];
  }
  void rate_grad(const MetaGradCall& call, int64_t offset, int64_t n, const Out& lambda,
                 const Out& g) {
    for (int64_t i = 0; i < n; ++i) {
      const V value = lambda.p[i] * g.p[i];
      if (call.rates.task_stride) {
        Real* out = static_cast<Real*>(call.out_rate_grad) + offset + i;
        for (int t = 0; t < used_; ++t) out[(first_ + t) * call.rates.task_stride] -= value[t];
      } else {
        rate_sink_[offset + i] -= S::sum(value);
      }
    }
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

  const Problem& problem_;
  const Net& net_;
  const Plan& plan_;
  int64_t first_ = 0;
  int used_ = 0;
  V* sink_ = nullptr;
  V *free_ = nullptr, *r_free_ = nullptr;  // the free leaf of the tasks, and a direction in it
  Real* rate_sink_ = nullptr;
  Status status_ = Status::kOk;
};

}  // namespace INNERLOOP_LEVEL
}  // namespace innerloop
