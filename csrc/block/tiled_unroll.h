// The inner loop and its adjoint (core/unroll.h) for tasks with many rows: rows pass in tiles, and
// nothing of a tile outlives it, so the workspace holds the parameters of all steps and the
// activations of one tile. The backward pass of a step computes its activations again.
//
//   step       sum = sum over tiles of grad l_support(phi_s);  phi_{s+1} = phi_s - alpha_s * sum
//   query      sum = sum over tiles of grad l_query(phi_S);    lambda = sum
//   back       sum = sum over tiles of H_s (alpha_s * lambda); lambda = lambda - sum
//
// The blocks of a cluster share the tiles of a task, and add their sums after every line: each has
// all parameters. There are two sums in turn, so that a block may start on the next one while
// others read the last.
#pragma once

#include "core/sweep.h"

namespace innerloop {

template <class E>
class TiledUnroll {
 public:
  using Real = typename E::Real;
  using Elem = typename E::Elem;
  using PerTask = typename E::PerTask;
  using R = Rows<Elem>;
  using T = Tape<Elem>;

  IL_HD TiledUnroll(E& engine, const Plan& plan, const MetaGradCall& call)
      : e_(engine), plan_(plan), call_(call), sweep_(engine, plan) {
    wants_grad_ = call.grads != nullptr;
    wants_rate_grad_ = wants_grad_ && call.out_rate_grad != nullptr;
    has_query_ = call.out_loss != nullptr;
    steps_ = call.steps;
    moves_ = plan.lowest < plan.depth && steps_ > 0;
  }

  IL_CALL void carve(Carver<Elem>& c) {
    const int64_t g = plan_.copies, m = e_.tile_rows();
    e_.carve(c);
    Side tile = call_.support.rows > 0 ? call_.support : call_.query;
    tile.rows = m;
    side_ = e_.carve_side(c, tile);
    tape_ = {c.take(g * m, plan_.tape_row), m};
    const bool second = wants_grad_ && moves_ && (call_.order == 2 || wants_rate_grad_);
    scratch_ = {c.take(second ? g * m : 0, plan_.scratch_row), m};
    initial_ = c.take(e_.initial_size());
    const int64_t kept = wants_grad_ ? steps_ : steps_ > 0 ? 1 : 0;
    blocks_ = c.take(moves_ ? kept : 0, plan_.block);
    lambda_ = wants_grad_ && moves_ ? block(steps_) : c.take(wants_grad_ ? plan_.block : 0);
    for (Sum& sum : sums_) {
      sum.block = c.take(plan_.block);
      sum.loss = c.take(g);
      sum.rates = c.take(wants_rate_grad_ ? plan_.leaves * g : 0);
    }
    rates_ = c.take(steps_, plan_.leaves * g);
    rate_grads_ = c.take(wants_rate_grad_ ? steps_ : 0, plan_.leaves * g);
    of_tile_ = c.take(g);
  }

  /// One group of tasks, already selected in the engine.
  IL_HD void run() {
    e_.load_params(initial_);
    for (int64_t s = 0; s < steps_; ++s) {
      for (int leaf = 0; leaf < plan_.leaves; ++leaf) load_rate(s, leaf);
    }
    if (call_.adapted && call_.adapted_stepwise) export_adapted(0);
    for (int64_t s = 0; s < steps_; ++s) {
      inner_step(s);
      if (call_.adapted && call_.adapted_stepwise) export_adapted(s + 1);
    }
    if (call_.adapted && !call_.adapted_stepwise) export_adapted(steps_);
    if (!has_query_) return;
    query(steps_, wants_grad_, call_.out_loss, 1, 0);
    if (call_.out_query_loss) store_loss(call_.out_query_loss, steps_ + 1, steps_);
    if (wants_grad_) adjoint();
  }

 private:
  /// What the tiles of a block add up to.
  struct Sum {
    Elem* block;  // as parameters
    Elem* loss;   // per task
    Elem* rates;  // -<lambda, gradient> per leaf and task
  };

  /// Parameters phi_s as the sweeps read them.
  struct Params {
    const TiledUnroll* u;
    int64_t step;
    IL_HD void nt(const R& c, const R& a, int l, bool add) const {
      u->e_.nt(c, a, u->weight_at(step, l), nullptr, 1, add);
    }
    IL_HD void nn(const R& c, const R& a, int l, bool add) const {
      u->e_.nn(c, a, u->weight_at(step, l), nullptr, 1, add);
    }
    IL_HD typename E::BiasRef bias(int l) const { return u->bias_at(step, l); }
  };
  IL_HD Elem* block(int64_t step) const {
    return blocks_ + (wants_grad_ ? step - 1 : 0) * plan_.block;
  }
  IL_HD typename E::WeightRef weight_at(int64_t step, int l) const {
    return step == 0 || !plan_.layers[l].adapts_weight ? e_.initial_weight(l, initial_)
                                                       : e_.block_weight(l, block(step));
  }
  IL_HD typename E::BiasRef bias_at(int64_t step, int l) const {
    return step == 0 || !plan_.layers[l].adapts_bias ? e_.initial_bias(l, initial_)
                                                     : e_.block_bias(l, block(step));
  }
  IL_HD PerTask* rate(int64_t s, int leaf) const {
    return E::per_task(rates_ + (s * plan_.leaves + leaf) * plan_.copies);
  }
  IL_HD PerTask* rate_grad(int64_t s, int leaf) const {
    return E::per_task(rate_grads_ + (s * plan_.leaves + leaf) * plan_.copies);
  }
  IL_HD PerTask* rate_sum(int leaf) const { return sum().rates + leaf * plan_.copies; }
  IL_HD void load_rate(int64_t s, int leaf) {
    const Rates& r = call_.rates;
    const int64_t offset = s * r.step_stride + leaf * r.leaf_stride;
    e_.load_per_task(rate(s, leaf), static_cast<const Real*>(r.data) + offset, r.task_stride);
  }

  // ---- tiles -----------------------------------------------------------------------------------
  IL_HD const Sum& sum() const { return sums_[e_.sum_turn()]; }
  /// f() for every tile of a side that is this block's, loaded into side_; sums start at zero and
  /// are complete in all blocks when this returns.
  template <class F>
  IL_HD void each_tile(const Side& side, bool is_query, F f) {
    e_.turn_sums();
    const Sum& s = sum();
    e_.clear_numbers(s.block, plan_.block);
    e_.clear_numbers(s.loss, plan_.copies);
    if (wants_rate_grad_) e_.clear_numbers(s.rates, plan_.leaves * plan_.copies);
    const int64_t m = e_.tile_rows();
    for (int64_t row = e_.rank() * m; row < side.rows; row += e_.ranks() * m) {
      e_.load_tile(side_, side, row, is_query ? call_.task_weight : nullptr, is_query);
      f();
    }
    e_.meet();
  }
  IL_HD R input(int l) const { return l ? sweep_.h(tape_, l - 1) : side_.x; }
  /// Outputs, losses and their gradients for the loaded tile.
  IL_CALL void forward(int64_t step) {
    const Params params{this, step};
    const int top = plan_.depth - 1;
    for (int l = 0; l <= top; ++l) sweep_.forward_layer(tape_, input(l), params, l, nullptr);
    e_.loss_gradient(side_, sweep_.h(tape_, top), sweep_.a(tape_, top), of_tile_);
    e_.add_per_task(sum().loss, of_tile_);
  }
  /// Adds gradients of layers, of all or of those that adapt.
  IL_CALL void add_gradients(bool all) {
    for (int l = 0; l < plan_.depth; ++l) {
      const LayerPlan& p = plan_.layers[l];
      if (!all && !p.adapts_weight && !p.adapts_bias) continue;
      add_products(l, sweep_.delta(tape_, l), nullptr, nullptr);
    }
  }
  /// Adds left^T in, and left2^T right2 if given, and the columns of left.
  IL_CALL void add_products(int l, const R& left, const R* left2, const R* right2) {
    const LayerPlan& p = plan_.layers[l];
    const typename E::WeightRef weight = e_.block_weight(l, sum().block);
    e_.tn(e_.block_weight_target(l, sum().block), &weight, p, left, input(l), left2, right2,
          nullptr, 1);
    if (p.bias_leaf < 0) return;
    const typename E::BiasRef bias = e_.block_bias(l, sum().block);
    e_.column_sums(e_.block_bias_target(l, sum().block), &bias, left, nullptr, 1);
  }
  IL_HD void store_loss(void* out, int64_t stride, int64_t index) {
    e_.total_per_task(of_tile_, sum().loss);
    e_.store_per_task(static_cast<Real*>(out), stride, index, of_tile_);
  }

  // ---- forwards --------------------------------------------------------------------------------
  IL_CALL void inner_step(int64_t s) {
    if (call_.out_query_loss) query(s, false, call_.out_query_loss, steps_ + 1, s);
    each_tile(call_.support, false, [&] {
      forward(s);
      if (!moves_) return;
      sweep_.backward(tape_, Params{this, s}, plan_.lowest);
      add_gradients(false);
    });
    if (call_.out_support_loss) store_loss(call_.out_support_loss, steps_, s);
    for (int l = plan_.lowest; moves_ && l < plan_.depth; ++l) {
      const LayerPlan& p = plan_.layers[l];
      Elem* to = block(s + 1);
      if (p.adapts_weight) {
        e_.move_weight(e_.block_weight_target(l, to), weight_at(s, l), p,
                       e_.block_weight_target(l, sum().block), rate(s, p.weight_leaf), -1);
      }
      if (p.adapts_bias) {
        e_.move_bias(e_.block_bias_target(l, to), bias_at(s, l), p,
                     e_.block_bias_target(l, sum().block), rate(s, p.bias_leaf), -1);
      }
    }
  }
  IL_CALL void query(int64_t s, bool with_gradient, void* out, int64_t stride, int64_t index) {
    each_tile(call_.query, true, [&] {
      forward(s);
      if (!with_gradient) return;
      sweep_.backward(tape_, Params{this, s}, 0);
      add_gradients(true);
    });
    store_loss(out, stride, index);
  }
  IL_CALL void export_adapted(int64_t s) {
    const int64_t copies = call_.adapted_stepwise ? steps_ + 1 : 1, size = e_.parameter_count();
    Real* out = static_cast<Real*>(call_.adapted) + (call_.adapted_stepwise ? s * size : 0);
    for (int l = 0; l < plan_.depth; ++l) {
      const LayerPlan& p = plan_.layers[l];
      e_.export_weight(out, copies * size, p, weight_at(s, l));
      if (p.bias_leaf >= 0) e_.export_bias(out, copies * size, p, bias_at(s, l));
    }
  }

  // ---- backwards -------------------------------------------------------------------------------
  /// lambda = from + sign * sum, from = null: 0.
  IL_CALL void move_lambda(Elem* from, Real sign) {
    for (int l = 0; l < plan_.depth; ++l) {
      const LayerPlan& p = plan_.layers[l];
      typename E::WeightRef weight;
      typename E::BiasRef bias;
      if (from) {
        weight = e_.block_weight(l, from);
        bias = e_.block_bias(l, from);
      }
      e_.move_weight(e_.block_weight_target(l, lambda_), weight, p,
                     e_.block_weight_target(l, sum().block), nullptr, sign);
      if (p.bias_leaf < 0) continue;
      e_.move_bias(e_.block_bias_target(l, lambda_), bias, p, e_.block_bias_target(l, sum().block),
                   nullptr, sign);
    }
  }
  IL_CALL void adjoint() {
    move_lambda(nullptr, 1);
    const bool back = moves_ && (call_.order == 2 || wants_rate_grad_);
    for (int64_t s = steps_ - 1; back && s >= 0; --s) reverse_step(s);
    for (int l = 0; l < plan_.depth; ++l) {
      const LayerPlan& p = plan_.layers[l];
      e_.finish_weight(p, e_.block_weight_target(l, lambda_), call_);
      if (p.bias_leaf >= 0) e_.finish_bias(p, e_.block_bias_target(l, lambda_), call_);
    }
    if (!wants_rate_grad_) return;
    for (int64_t s = 0; s < steps_; ++s) {
      for (int leaf = 0; leaf < plan_.leaves; ++leaf) {
        if (!back) e_.clear_per_task(rate_grad(s, leaf));
        e_.finish_rate(call_, s * call_.rates.step_stride + leaf * call_.rates.leaf_stride,
                       rate_grad(s, leaf));
      }
    }
  }
  IL_CALL void reverse_step(int64_t s) {
    each_tile(call_.support, false, [&] {
      forward(s);
      sweep_.backward(tape_, Params{this, s}, plan_.lowest);
      for (int l = plan_.lowest; l < plan_.depth; ++l) r_forward(s, l);
      if (call_.order == 2) r_backward(s);
    });
    if (call_.order == 2) move_lambda(lambda_, -1);
    for (int leaf = 0; wants_rate_grad_ && leaf < plan_.leaves; ++leaf) {
      e_.total_per_task(rate_grad(s, leaf), rate_sum(leaf));
    }
  }
  IL_HD Direction<E> direction(int64_t s, int l) const {
    const LayerPlan& p = plan_.layers[l];
    Direction<E> v;
    if (p.adapts_weight) {
      v.weight = e_.block_weight(l, lambda_);
      v.weight_rate = rate(s, p.weight_leaf);
    }
    if (p.adapts_bias) {
      v.bias = e_.block_bias(l, lambda_);
      v.bias_rate = rate(s, p.bias_leaf);
    }
    return v;
  }
  /// R{h_l} in the direction alpha * lambda, and the tile's part of the rates' gradients:
  /// <lambda, delta^T in> = <delta, in lambda^T>.
  IL_CALL void r_forward(int64_t s, int l) {
    const LayerPlan& p = plan_.layers[l];
    const R delta = sweep_.delta(tape_, l), r = sweep_.rz(scratch_, l);
    if (wants_rate_grad_ && p.adapts_bias) {
      e_.minus_dot_bias(of_tile_, p, delta, e_.block_bias_target(l, lambda_));
      e_.add_per_task(rate_sum(p.bias_leaf), of_tile_);
    }
    const bool seeds = wants_rate_grad_ && p.adapts_weight;
    if (seeds) {
      e_.nt(r, input(l), e_.block_weight(l, lambda_), nullptr, 1, false);
      e_.minus_dot(of_tile_, p, delta, r);
      e_.add_per_task(rate_sum(p.weight_leaf), of_tile_);
      e_.copy_scaled(r, r, rate(s, p.weight_leaf));
    }
    if (call_.order == 1) return;
    const R r_in = l > plan_.lowest ? sweep_.rh(scratch_, l - 1) : R{};
    sweep_.r_forward_layer(tape_, scratch_, input(l), l > plan_.lowest ? &r_in : nullptr,
                           Params{this, s}, direction(s, l), l, p.adapts_weight, seeds);
  }
  IL_CALL void r_backward(int64_t s) {
    const Params params{this, s};
    const int top = plan_.depth - 1, low = plan_.lowest;
    e_.loss_curvature(side_, sweep_.h(tape_, top), sweep_.rh(scratch_, top),
                      sweep_.rdelta(scratch_, top));
    sweep_.r_activation_backward(tape_, scratch_, top);
    for (int l = top; l > 0; --l) {
      const R to = sweep_.rdelta(scratch_, l - 1);
      const bool has_direction = l >= low && plan_.layers[l].adapts_weight;
      sweep_.r_backward_input(to, tape_, scratch_, params, direction(s, l), l, has_direction,
                              false);
      if (l > low) {
        sweep_.r_activation_backward(tape_, scratch_, l - 1);
      } else {  // nothing below moves
        e_.activation_backward(to, to, sweep_.z(tape_, l - 1), sweep_.h(tape_, l - 1),
                               plan_.layers[l - 1]);
      }
    }
    for (int l = 0; l <= top; ++l) {
      const R delta = sweep_.delta(tape_, l), r_in = l > low ? sweep_.rh(scratch_, l - 1) : R{};
      add_products(l, sweep_.rdelta(scratch_, l), l > low ? &delta : nullptr,
                   l > low ? &r_in : nullptr);
    }
  }

  E& e_;
  const Plan& plan_;
  const MetaGradCall& call_;
  Sweep<E> sweep_;
  bool wants_grad_, wants_rate_grad_, has_query_, moves_;
  int64_t steps_;
  typename E::SideData side_{};
  T tape_{}, scratch_{};
  Sum sums_[2] = {};
  Elem *initial_ = nullptr, *blocks_ = nullptr, *lambda_ = nullptr, *rates_ = nullptr;
  Elem *rate_grads_ = nullptr, *of_tile_ = nullptr;
};

}  // namespace innerloop
