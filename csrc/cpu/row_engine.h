// The engine for wide networks, few tasks or many rows: matrices are row-major with rows padded to
// whole vectors, products have vectors along the outputs. Tasks of a group are stacked, so that a
// product with weights that all of them share is one product.
#pragma once

#include "core/activation.h"
#include "core/objectives/all.h"
#include "core/plan.h"
#include "core/side_rows.h"
#include "cpu/row_products.h"
#include "cpu/vector_math.h"

namespace innerloop {
namespace INNERLOOP_LEVEL {

template <class RealT>
class RowEngine {
 public:
  using Real = RealT;
  using S = Simd<Real>;
  using M = VectorMath<Real>;
  using V = typename S::V;
  using Elem = Real;
  using PerTask = Real;
  using R = Rows<Real>;
  using Out = Target<Real>;
  using WeightRef = Weight<Real, Real>;
  using BiasRef = Bias<Real, Real>;
  using Row = PaddedRow<Real>;
  static constexpr int kWidth = S::kLanes;
  static constexpr bool kBuildsResults = false;  // results are written in place
  static constexpr int64_t kFewRows = 8;  // up to here a dot product beats turning the weights

  struct SideData {
    R x;
    const Real* y;
    const int64_t* classes;
    Real* weight;    // [tasks * rows], padded with zeros to whole vectors
    Real* gradient;  // weight times the task's weight
    Real* losses;    // one per row
    Objective objective;
    TargetLayout targets;
  };
  using Shared = const PreparedLeaf<Real>*;

  RowEngine(const Problem& problem, const Plan& plan, Shared prepared)
      : problem_(problem), net_(*problem.net), plan_(plan), prepared_(prepared) {}

  static constexpr bool supports(LayerKind) { return true; }
  static int64_t pad(int64_t n) { return round_up(n, kWidth); }
  static int64_t turned(int64_t out, int64_t in) { return turned_size<Real>(out, in); }
  int64_t per_task_reals() const { return plan_.copies; }
  static Real* per_task(Real* values) { return values; }
  int64_t initial_size() const { return plan_.has_per_task_leaf ? plan_.block : 0; }
  int64_t direction_size() const { return plan_.block; }
  int64_t parameter_count() const { return net_.parameters; }
  int64_t row_count(const R& r) const { return used_ * r.rows; }
  Status status() const { return status_; }
  int64_t first() const { return first_; }

  void select(int64_t first, int64_t count) {
    first_ = first;
    used_ = count;
  }
  void set_sinks(Real* sink, Real* rate_sink) {
    sink_ = sink;
    rate_sink_ = rate_sink;
  }

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
  template <class C>
  SideData carve_side(C& c, const Side& side) const {
    const int64_t n = side.rows, in = net_.first().in, all = plan_.copies * n;
    const bool copies = side.weight || side.count;
    SideData d{};
    d.objective = side.objective;
    d.targets = target_layout(side.objective, net_.last().out);
    d.x = {copies ? c.take(round_up(all * in, kWidth)) : nullptr, n, in, in};
    d.weight = c.take(round_up(all, kWidth));
    d.gradient = c.take(round_up(all, kWidth));
    d.losses = c.take(round_up(all, kWidth));
    return d;
  }

  void load_side(SideData& d, const Side& side, const void* task_weight, bool is_query) {
    const int64_t n = side.rows, in = d.x.cols;
    load_row_weights(d, side, task_weight, is_query);
    const int64_t outputs = net_.last().out;
    if (d.targets.has_classes) {
      d.classes = static_cast<const int64_t*>(side.y) + first_ * n;
      for (int64_t r = 0; r < used_ * n; ++r) {
        if (d.weight[r] != 0 && (d.classes[r] < 0 || d.classes[r] >= outputs)) {
          status_ = Status::kBadLabel;
        }
      }
    } else {
      d.y = static_cast<const Real*>(side.y) + first_ * n * d.targets.columns;
    }
    const Real* x = static_cast<const Real*>(side.x) + first_ * n * in;
    if (!side.weight && !side.count) {
      d.x.p = const_cast<Real*>(x);
      return;
    }
    for (int64_t r = 0; r < used_ * n; ++r) {  // NaN in ignored rows must not meet a product
      if (d.weight[r] != 0) {
        std::memcpy(d.x.p + r * in, x + r * in, in * sizeof(Real));
      } else {
        std::memset(d.x.p + r * in, 0, in * sizeof(Real));
      }
    }
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

  // ---- parameters ------------------------------------------------------------------------------
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

  // ---- products --------------------------------------------------------------------------------
  void nt(const R& c, const R& a, const WeightRef& w, const Real* rate, Real sign, bool add) {
    if (w.diagonal) return scale_columns(c, a, w, rate, sign, add);
    const int64_t rows = a.rows;
    if (w.shared) {
      turned_product(c, used_ * rows, a, 0, w.shared_turned, w, sign, add);
      return;
    }
    for (int64_t t = 0; t < used_; ++t) {
      const Real factor = rate ? sign * rate[t] : sign;
      if (w.own_turned) {
        turned_product(c, rows, a, t, w.own_turned + t * w.turned_stride, w, factor, add);
      } else if (rows <= kFewRows) {
        dot_product<Real>(rows_at(c, t), c.ld, rows, w.out, w.in, rows_at(a, t), a.ld,
                          w.own + t * w.task_stride, w.ld, factor, add);
      } else {
        pack_transposed(turned_, w.own + t * w.task_stride, w.ld, w.out, w.in);
        turned_product(c, rows, a, t, turned_, w, factor, add);
      }
    }
  }
  void nn(const R& c, const R& a, const WeightRef& w, const Real* rate, Real sign, bool add) {
    if (w.diagonal) return scale_columns(c, a, w, rate, sign, add);
    const int64_t n = w.ld >= c.ld ? c.ld : w.in;
    if (w.shared) {
      flat_product<Real>(rows_at(c, 0), c.ld, used_ * a.rows, n, w.out, rows_at(a, 0), a.ld, 1,
                         w.shared, w.ld, sign, add);
      return;
    }
    for (int64_t t = 0; t < used_; ++t) {
      flat_product<Real>(rows_at(c, t), c.ld, a.rows, n, w.out, rows_at(a, t), a.ld, 1,
                         w.own + t * w.task_stride, w.ld, rate ? sign * rate[t] : sign, add);
    }
  }
  void tn(const Out& to, const WeightRef* from, const LayerPlan& p, const R& a, const R& b,
          const R* a2, const R* b2, const Real* rate, Real sign) {
    if (p.diagonal) {
      for (int64_t t = 0; t < used_; ++t) {
        const Real* base = from ? weight_of(*from, t) : nullptr;
        column_products(to.p + t * to.task_stride, to.ld, base, t * a.rows, a.rows, a, b, a2, b2,
                        rate ? sign * rate[t] : sign);
      }
      return;
    }
    for (int64_t t = 0; t < used_; ++t) {
      Product<Real> x = outer_product(p, a, b, a2, b2, t, a.rows);
      const bool whole = to.ld >= p.ld_in && b.ld >= p.ld_in && (!from || from->ld >= p.ld_in);
      x.n = whole ? p.ld_in : p.in;
      x.c = to.p + t * to.task_stride;
      x.c_row = to.ld;
      if (from) {
        x.c0 = weight_of(*from, t);
        x.c0_row = from->ld;
      }
      x.alpha = rate ? sign * rate[t] : sign;
      multiply(x);
    }
  }
  void sink_tn(const LayerPlan& p, const R& a, const R& b, const R* a2, const R* b2, Real sign) {
    if (p.diagonal) {
      Real* sink = sink_ + p.sink_w;
      return column_products<Real>(sink, p.weight_ld(), sink, 0, used_ * a.rows, a, b, a2, b2,
                                   sign);
    }
    Product<Real> x = outer_product(p, a, b, a2, b2, 0, used_ * a.rows);
    x.n = b.ld >= p.ld_in ? p.ld_in : p.in;
    x.c = sink_ + p.sink_w;
    x.c_row = p.ld_in;
    x.c0 = x.c;
    x.c0_row = p.ld_in;
    x.alpha = sign;
    multiply(x);
  }
  void rows_nt(const R& c, const R& a, const R& b) {
    for (int64_t t = 0; t < used_; ++t) {
      dot_product<Real>(rows_at(c, t), c.ld, a.rows, b.rows, a.cols, rows_at(a, t), a.ld,
                        rows_at(b, t), b.ld, 1, false);
    }
  }
  void rows_nn(const R& c, const R& a, const R& b, const Real* rate, Real sign, bool add) {
    for (int64_t t = 0; t < used_; ++t) {
      flat_product<Real>(rows_at(c, t), c.ld, a.rows, c.ld, a.cols, rows_at(a, t), a.ld, 1,
                         rows_at(b, t), b.ld, rate ? sign * rate[t] : sign, add);
    }
  }
  void rows_tn(const R& c, const R& a, const R& b) {
    for (int64_t t = 0; t < used_; ++t) {
      flat_product<Real>(rows_at(c, t), c.ld, a.cols, c.ld, a.rows, rows_at(a, t), 1, a.ld,
                         rows_at(b, t), b.ld, 1, false);
    }
  }

  // ---- elementwise -----------------------------------------------------------------------------
  void bias_activation(const R& z, const R& h, const R& from, const BiasRef& b,
                       const LayerPlan& p) {
    if (!b && p.activation == Activation::kIdentity && from.p == h.p) return;
    const V slope = S::set(static_cast<Real>(p.slope));
    with_activation<M>(p.activation, [&](auto act) {
      using A = decltype(act);
      for (int64_t r = 0; r < used_ * z.rows; ++r) {
        const Real* bias = bias_of(b, r / z.rows);
        for (int64_t j = 0; j < z.ld; j += kWidth) {
          const int64_t at = r * z.ld + j;
          V value = S::load(from.p + at);
          if (bias) value += S::load(bias + j);
          S::store(z.p + at, value);
          S::store(h.p + at, A::value(value, slope));
        }
      }
    });
  }
  void activation_backward(const R& delta, const R& a, const R& z, const R& h, const LayerPlan& p) {
    if (p.activation == Activation::kIdentity && delta.p == a.p) return;
    const V slope = S::set(static_cast<Real>(p.slope));
    with_activation<M>(p.activation, [&](auto act) {
      using A = decltype(act);
      for (int64_t i = 0; i < size(delta); i += kWidth) {
        S::store(delta.p + i,
                 A::chain(S::load(a.p + i), S::load(z.p + i), S::load(h.p + i), slope));
      }
    });
  }
  void r_activation(const R& rh, const R& rz, const BiasRef& b, const Real* rate, const R& z,
                    const R& h, const LayerPlan& p) {
    if (!b && p.activation == Activation::kIdentity && rz.p == rh.p) return;
    const V slope = S::set(static_cast<Real>(p.slope));
    with_activation<M>(p.activation, [&](auto act) {
      using A = decltype(act);
      for (int64_t r = 0; r < used_ * rz.rows; ++r) {
        const int64_t task = r / rz.rows;
        const Real* bias = bias_of(b, task);
        const V scale = S::set(rate ? rate[task] : Real(1));
        for (int64_t j = 0; j < rz.ld; j += kWidth) {
          const int64_t at = r * rz.ld + j;
          V value = S::load(rz.p + at);
          if (bias) value += scale * S::load(bias + j);
          S::store(rz.p + at, value);
          S::store(rh.p + at, A::chain(value, S::load(z.p + at), S::load(h.p + at), slope));
        }
      }
    });
  }
  /// rdelta, holding R{a}, becomes R{delta} = R{a} act' + a act'' R{z}.
  void r_activation_backward(const R& rdelta, const R& rz, const R& a, const R& z, const R& h,
                             const LayerPlan& p) {
    if (p.activation == Activation::kIdentity) return;
    const V slope = S::set(static_cast<Real>(p.slope));
    with_activation<M>(p.activation, [&](auto act) {
      using A = decltype(act);
      for (int64_t i = 0; i < size(rdelta); i += kWidth) {
        const V zi = S::load(z.p + i), hi = S::load(h.p + i);
        V value = A::chain(S::load(rdelta.p + i), zi, hi, slope);
        if constexpr (A::kCurved) {
          value += S::load(a.p + i) * A::second(zi, hi, slope) * S::load(rz.p + i);
        }
        S::store(rdelta.p + i, value);
      }
    });
  }
  void clear(const R& r) {
    if (size(r) > 0) std::memset(r.p, 0, size(r) * sizeof(Real));  // no rows: r.p is null
  }
  void add_scaled(const R& to, const R& from, const Real* rate) { scaled(to, from, rate, true); }
  void copy_scaled(const R& to, const R& from, const Real* rate) { scaled(to, from, rate, false); }
  void column_sums(const Out& to, const BiasRef* from, const R& r, const Real* rate, Real sign) {
    for (int64_t t = 0; t < used_; ++t) {
      const V scale = S::set(rate ? sign * rate[t] : sign);
      const Real* base = from ? bias_of(*from, t) : nullptr;
      Real* out = to.p + t * to.task_stride;
      for (int64_t j = 0; j < r.cols; j += kWidth) {
        V total{};
        for (int64_t i = 0; i < r.rows; ++i) total += S::load(rows_at(r, t) + i * r.ld + j);
        const V value = (base ? S::load(base + j) : V{}) + scale * total;
        if (j + kWidth <= to.ld) {
          S::store(out + j, value);
        } else {
          S::store_part(out + j, value, to.ld - j);
        }
      }
    }
  }
  /// -<a, b> for every task, over true columns: padding may hold anything finite.
  void minus_dot(Real* to, const LayerPlan&, const R& a, const R& b) {
    for (int64_t t = 0; t < used_; ++t) {
      V total{};
      for (int64_t i = 0; i < a.rows; ++i) {
        const Real *x = rows_at(a, t) + i * a.ld, *y = rows_at(b, t) + i * b.ld;
        for (int64_t j = 0; j < a.cols; j += kWidth) {
          const int64_t n = smaller(kWidth, a.cols - j);
          total = add_product<Real>(total, S::load_part(x + j, n), S::load_part(y + j, n));
        }
      }
      to[t] = -S::sum(total);
    }
  }
  void minus_dot_bias(Real* to, const LayerPlan&, const R& delta, const Out& lambda) {
    for (int64_t t = 0; t < used_; ++t) {
      V total{};
      for (int64_t i = 0; i < delta.rows; ++i) {
        for (int64_t j = 0; j < delta.cols; j += kWidth) {
          const int64_t n = smaller(kWidth, delta.cols - j);
          total += S::load_part(rows_at(delta, t) + i * delta.ld + j, n) *
                   S::load_part(lambda.p + t * lambda.task_stride + j, n);
        }
      }
      to[t] = -S::sum(total);
    }
  }

  // ---- losses: rows become lanes ---------------------------------------------------------------
  void loss_gradient(const SideData& d, const R& out, const BiasRef& free, const R& gradient,
                     const R& free_gradient, Real* losses) {
    const V zero{};
    V *g = heads(2), *g_free = net_.free > 0 ? heads(6) : nullptr;
    with_objective<M>(d.objective, [&](const auto& objective) {
      for (int64_t r = 0; r < used_ * out.rows; r += kWidth) {
        const int n = static_cast<int>(smaller(kWidth, used_ * out.rows - r));
        const V value = objective.gradient(sample(d, out, free, r, n), g, g_free);
        const V w = S::load(d.weight + r), gw = S::load(d.gradient + r);
        S::store(d.losses + r, w == zero ? zero : w * value);
        store_rows(gradient, r, n, g, w, gw);
        if (g_free) store_rows(free_gradient, r, n, g_free, w, gw);
      }
    });
    for (int64_t t = 0; t < used_; ++t) {
      double total = 0;
      for (int64_t i = 0; i < out.rows; ++i) total += d.losses[t * out.rows + i];
      losses[t] = static_cast<Real>(total);
    }
    clear_padding(gradient);
    clear_padding(free_gradient);
  }
  template <class Direction>
  void loss_curvature(const SideData& d, const R& out, const BiasRef& free, const R& r_out,
                      const Direction& r_free, bool metric, const R& r_gradient,
                      const R& r_free_gradient) {
    V *g = heads(2), *rz = heads(3), *g_free = net_.free > 0 ? heads(6) : nullptr;
    with_objective<M>(d.objective, [&](const auto& objective) {
      for (int64_t r = 0; r < used_ * out.rows; r += kWidth) {
        const int n = static_cast<int>(smaller(kWidth, used_ * out.rows - r));
        const Sample<M> s = sample(d, out, free, r, n);
        interleave(reinterpret_cast<Real*>(rz), r_out.p + r * r_out.ld, r_out.ld, r_out.cols, n);
        V* rf = g_free ? free_head(5, r_free.bias, r_free.bias_rate, out.rows, r, n) : nullptr;
        if (metric) {
          objective.metric(s, rz, rf, g, g_free);
        } else {
          objective.curvature(s, rz, rf, g, g_free);
        }
        const V w = S::load(d.weight + r), gw = S::load(d.gradient + r);
        store_rows(r_gradient, r, n, g, w, gw);
        if (g_free) store_rows(r_free_gradient, r, n, g_free, w, gw);
      }
    });
    clear_padding(r_gradient);
    clear_padding(r_free_gradient);
  }

  // ---- rates per parameter ---------------------------------------------------------------------
  /// to = keep * from + sign * rate * x; `from` is not read where keep is 0.
  void combine_weight(const Out& to, const WeightRef& from, Real keep, const Out& x,
                      const PerTask* rate, Real sign, const LayerPlan& p) {
    for (int64_t t = 0; t < used_; ++t) {
      const Real* base = weight_of(from, t);
      for (int64_t i = 0; i < p.weight_rows(); ++i) {
        accelerate(at(to, t, i), base + i * from.ld, keep, at(x, t, i),
                   rate ? sign * rate[t] : sign, p.weight_cols(), p.weight_ld());
      }
    }
  }
  void combine_bias(const Out& to, const BiasRef& from, Real keep, const Out& x,
                    const PerTask* rate, Real sign, const LayerPlan& p) {
    for (int64_t t = 0; t < used_; ++t) {
      accelerate(at(to, t, 0), bias_of(from, t), keep, at(x, t, 0), rate ? sign * rate[t] : sign,
                 p.out, p.ld_out);
    }
  }
  void step_weight(const Out& to, const WeightRef& from, const Out& g, const LayerPlan& p,
                   const Real* rates, int64_t task_stride) {
    for (int64_t t = 0; t < used_; ++t) {
      for (int64_t i = 0; i < p.weight_rows(); ++i) {
        const Real* base = weight_of(from, t) + i * from.ld;
        const Real* rate = rates + (first_ + t) * task_stride + i * p.weight_cols();
        combine(at(to, t, i), base, rate, at(g, t, i), p.weight_cols());
      }
    }
  }
  void step_bias(const Out& to, const BiasRef& from, const Out& g, const LayerPlan& p,
                 const Real* rates, int64_t task_stride) {
    for (int64_t t = 0; t < used_; ++t) {
      combine(at(to, t, 0), bias_of(from, t), rates + (first_ + t) * task_stride, at(g, t, 0),
              p.out);
    }
  }
  void scale_weight(const Out& to, const Out& from, const LayerPlan& p, const Real* rates,
                    int64_t task_stride) {
    for (int64_t t = 0; t < used_; ++t) {
      for (int64_t i = 0; i < p.weight_rows(); ++i) {
        const Real* rate = rates + (first_ + t) * task_stride + i * p.weight_cols();
        for (int64_t j = 0; j < p.weight_cols(); ++j) at(to, t, i)[j] = rate[j] * at(from, t, i)[j];
        for (int64_t j = p.weight_cols(); j < p.weight_ld(); ++j) at(to, t, i)[j] = 0;
      }
    }
  }
  void scale_bias(const Out& to, const Out& from, const LayerPlan& p, const Real* rates,
                  int64_t task_stride) {
    for (int64_t t = 0; t < used_; ++t) {
      const Real* rate = rates + (first_ + t) * task_stride;
      for (int64_t j = 0; j < p.out; ++j) at(to, t, 0)[j] = rate[j] * at(from, t, 0)[j];
      for (int64_t j = p.out; j < p.ld_out; ++j) at(to, t, 0)[j] = 0;
    }
  }
  void rate_grad_weight(const MetaGradCall& call, int64_t offset, const LayerPlan& p,
                        const Out& lambda, const Out& g) {
    for (int64_t t = 0; t < used_; ++t) {
      for (int64_t i = 0; i < p.weight_rows(); ++i) {
        rate_grad(call, offset + i * p.weight_cols(), t, p.weight_cols(), at(lambda, t, i),
                  at(g, t, i));
      }
    }
  }
  void rate_grad_bias(const MetaGradCall& call, int64_t offset, const LayerPlan& p,
                      const Out& lambda, const Out& g) {
    for (int64_t t = 0; t < used_; ++t) {
      rate_grad(call, offset, t, p.out, at(lambda, t, 0), at(g, t, 0));
    }
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
  static Real* at(const Out& o, int64_t task, int64_t row) {
    return o.p + task * o.task_stride + row * o.ld;
  }
  int64_t size(const R& r) const { return used_ * r.rows * r.ld; }
  /// Numbers of rows as lanes. Targets of a policy are three times the outputs and one.
  int64_t head_columns() const { return net_.free > 0 ? 3 * net_.last().out + 1 : net_.last().out; }
  V* heads(int i) const { return reinterpret_cast<V*>(head_ + i * kWidth * head_columns()); }
  /// The free leaf of the task of each of n rows, times its rate.
  V* free_head(int i, const BiasRef& free, const Real* rate, int64_t rows, int64_t r, int n) const {
    V* to = heads(i);
    for (int64_t k = 0; k < net_.free; ++k) {
      V value{};
      for (int j = 0; j < n; ++j) {
        const int64_t task = (r + j) / rows;
        const Real* from = bias_of(free, task);
        value[j] = from ? (rate ? rate[task] * from[k] : from[k]) : Real(0);
      }
      to[k] = value;
    }
    return to;
  }
  /// Stores a weighted gradient of n rows.
  static void store_rows(const R& to, int64_t r, int n, V* g, V w, V gw) {
    const V zero{};
    for (int64_t j = 0; j < to.cols; ++j) g[j] = w == zero ? zero : gw * g[j];
    deinterleave(to.p + r * to.ld, to.ld, reinterpret_cast<Real*>(g), to.cols, n);
  }
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

  void load_row_weights(SideData& d, const Side& side, const void* task_weight, bool is_query) {
    const int64_t n = side.rows;
    for (int64_t t = 0; t < used_; ++t) {
      int64_t count = n;
      if (side.count) {
        count = side.count[first_ + t];
        if (count < 0 || count > n) {
          status_ = Status::kBadCount;
          count = 0;
        }
      }
      const Real* given =
          side.weight ? static_cast<const Real*>(side.weight) + (first_ + t) * n : nullptr;
      Real scale = 1;
      if (is_query) {
        scale = task_weight ? static_cast<const Real*>(task_weight)[first_ + t]
                            : Real(1) / static_cast<Real>(problem_.tasks);
      }
      const Real even =
          count ? even_weight<Real>(side, d.targets, net_.last().out, first_ + t, count) : Real(0);
      for (int64_t i = 0; i < n; ++i) {
        const Real w = i >= count ? Real(0) : given ? given[i] : even;
        d.weight[t * n + i] = w;
        d.gradient[t * n + i] = w * scale;
      }
    }
    for (int64_t i = used_ * n; i < round_up(used_ * n, kWidth); ++i) {
      d.weight[i] = 0;
      d.gradient[i] = 0;
    }
  }

  /// Outputs and targets of rows r .. r + n - 1 as lanes.
  Sample<M> sample(const SideData& d, const R& out, const BiasRef& free, int64_t r, int n) const {
    V *z = heads(0), *y = heads(1);
    interleave(reinterpret_cast<Real*>(z), out.p + r * out.ld, out.ld, out.cols, n);
    if (d.classes) {
      V label{};
      for (int i = 0; i < n; ++i) label[i] = static_cast<Real>(d.classes[r + i]);
      y[0] = label;
    } else {
      const int64_t columns = d.targets.columns;
      interleave(reinterpret_cast<Real*>(y), d.y + r * columns, columns, columns, n);
    }
    return {z, y, out.cols, free_head(4, free, nullptr, out.rows, r, n)};
  }
  void clear_padding(const R& r) const {
    if (r.ld == r.cols) return;
    for (int64_t i = 0; i < used_ * r.rows; ++i) {
      for (int64_t j = r.cols; j < r.ld; ++j) r.p[i * r.ld + j] = 0;
    }
  }

  /// c = sign * rate * a diag(w), where w may be empty: the identity.
  void scale_columns(const R& c, const R& a, const WeightRef& w, const Real* rate, Real sign,
                     bool add) const {
    const Row row(a.cols);
    for (int64_t r = 0; r < row_count(a); ++r) {
      const int64_t task = r / a.rows;
      const V scale = S::set(rate ? sign * rate[task] : sign);
      const Real* weight = weight_of(w, task);
      const Real* from = a.p + r * a.ld;
      Real* to = c.p + r * c.ld;
      row.each([&](int64_t i) {
        V value = scale * row.load(from, i);
        if (weight) value *= row.load(weight, i);
        row.store(to, i, add ? row.load(to, i) + value : value);
      });
    }
  }
  void scaled(const R& to, const R& from, const Real* rate, bool add) {
    const int64_t n = to.rows * to.ld;
    for (int64_t t = 0; t < used_; ++t) {
      const V scale = S::set(rate ? rate[t] : Real(1));
      for (int64_t i = t * n; i < (t + 1) * n; i += kWidth) {
        const V value = scale * S::load(from.p + i);
        S::store(to.p + i, add ? S::load(to.p + i) + value : value);
      }
    }
  }
  void rate_grad(const MetaGradCall& call, int64_t offset, int64_t task, int64_t n,
                 const Real* lambda, const Real* g) {
    Real* out = call.rates.task_stride ? static_cast<Real*>(call.out_rate_grad) +
                                             (first_ + task) * call.rates.task_stride + offset
                                       : rate_sink_ + offset;
    for (int64_t i = 0; i < n; ++i) out[i] -= lambda[i] * g[i];
  }

  const Problem& problem_;
  const Net& net_;
  const Plan& plan_;
  Shared prepared_;
  int64_t first_ = 0, used_ = 0;
  Real *sink_ = nullptr, *rate_sink_ = nullptr, *turned_ = nullptr, *head_ = nullptr;
  Status status_ = Status::kOk;
};

}  // namespace INNERLOOP_LEVEL
}  // namespace innerloop
