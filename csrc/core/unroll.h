// The K-step inner loop of a group of tasks and its adjoint: losses, adapted parameters, and exact
// gradients of the query loss with respect to initial parameters and inner rates.
//
//   phi_{s+1} = phi_s - alpha_s * g_s,  g_s = grad l_support(phi_s),  L = l_query(phi_S)
//   lambda_S = grad l_query(phi_S),  lambda_s = lambda_{s+1} - H_s (alpha_s * lambda_{s+1})
//   dL/dalpha_s = -lambda_{s+1} * g_s;   order 1 drops the H_s term.
//
// Three kinds of weight:
//   stored    one copy per task and step; its lambda is a matrix per task.
//   implicit  the first layer when it pays: phi_s only through U = X_s W_s^T and
//             D = sum alpha delta, lambda only through M = X_s lambda^T and R0 = sum R{delta}.
//   fixed     not adapted: one copy for all steps; contributions go straight to the sum over tasks.
// Layers below the first adapted one are passed once, not once per step, in both directions.
#pragma once

#include "core/sweep.h"

namespace innerloop {

template <class E>
class Unroll {
 public:
  using Real = typename E::Real;
  using Elem = typename E::Elem;
  using PerTask = typename E::PerTask;  // one number for every task of the group
  using R = Rows<Elem>;
  using T = Tape<Elem>;
  using Out = Target<Elem>;

  IL_HD Unroll(E& engine, const Plan& plan, const MetaGradCall& call)
      : e_(engine), plan_(plan), call_(call), sweep_(engine, plan) {
    wants_grad_ = call.grads != nullptr;
    wants_rate_grad_ = wants_grad_ && call.out_rate_grad != nullptr;
    has_query_ = call.out_loss != nullptr;
    steps_ = call.steps;
    momentum_ = static_cast<Real>(call.solver.momentum);
    builds_ = call.rates.elementwise || momentum_ != 0;
    moves_ = plan.lowest < plan.depth && steps_ > 0;
    implicit_ = plan.implicit_first;
    implicit_moves_ = implicit_ && plan.first_adapts && steps_ > 0;
  }

  /// Lays out the workspace; over a null base it only counts.
  IL_CALL void carve(Carver<Elem>& c) {
    const int64_t n = call_.support.rows, q = call_.query.rows, g = plan_.copies;
    e_.carve(c);
    support_ = e_.carve_side(c, call_.support);
    if (has_query_) query_ = e_.carve_side(c, call_.query);
    const int64_t kept = wants_grad_ ? steps_ : smaller_of(steps_, 1);
    tape_stride_ = g * n * plan_.tape_row;
    tapes_ = c.take(kept, tape_stride_);
    query_tape_ = c.take(has_query_ ? g * q * plan_.tape_row : 0);
    initial_ = c.take(e_.initial_size());
    blocks_ = c.take(moves_ ? kept : 0, plan_.block);
    // phi_S is read for the last time before lambda_S is written
    lambda_ = wants_grad_ && moves_ ? block(steps_) : c.take(wants_grad_ ? plan_.block : 0);
    const bool elementwise = call_.rates.elementwise && moves_, builds = builds_ && moves_;
    direction_ = c.take(builds && wants_grad_ ? plan_.block : 0);
    gradient_ = c.take(builds ? plan_.block : 0);
    velocities_ = c.take(!moves_ || momentum_ == 0 ? 0
                         : wants_rate_grad_        ? steps_
                                                   : 1,
                         plan_.block);
    rates_ = c.take(elementwise ? 0 : steps_, plan_.leaves * g);
    rate_grads_ = c.take(wants_rate_grad_ && !elementwise ? steps_ : 0, plan_.leaves * g);
    losses_ = c.take(g);
    const bool second = wants_grad_ && moves_ && (call_.order == 2 || wants_rate_grad_);
    scratch_ = {c.take(second ? g * n : 0, plan_.scratch_row), n};
    const LayerPlan& below = plan_.layers[plan_.lowest > 0 ? plan_.lowest - 1 : 0];
    const bool has_body = second && call_.order == 2 && plan_.lowest > 0;
    body_ = {c.take(has_body ? g * n * below.ld_out : 0), n, below.out, below.ld_out};
    const LayerPlan& first = plan_.layers[0];
    const int64_t wide = implicit_ ? g * n * first.ld_out : 0;
    u_ = {c.take(wide), n, first.out, first.ld_out};
    const int64_t ld_gram = e_.pad(n);
    const bool with_query = implicit_moves_ && has_query_;
    gram_ = {c.take(implicit_moves_ ? g * n * ld_gram : 0), n, n, ld_gram};
    cross_ = {c.take(with_query ? g * q * ld_gram : 0), q, n, ld_gram};
    d_ = {c.take(with_query ? wide : 0), n, first.out, first.ld_out};
    m_ = {c.take(with_query && wants_grad_ ? wide : 0), n, first.out, first.ld_out};
    r0_ = {c.take(implicit_ && wants_grad_ ? wide : 0), n, first.out, first.ld_out};
  }

  /// One group of tasks, already selected in the engine.
  IL_HD void run() {
    e_.load_side(support_, call_.support, nullptr, false);
    // the query as late as possible: the nearest caches hold one side rather than both
    const bool early = has_query_ && (implicit_moves_ || call_.out_query_loss);
    if (early) e_.load_side(query_, call_.query, call_.task_weight, true);
    e_.load_params(initial_);
    if (!call_.rates.elementwise) load_rates();
    if (implicit_moves_) {
      e_.rows_nt(gram_, support_.x, support_.x);
      if (has_query_) {
        e_.rows_nt(cross_, query_.x, support_.x);
        e_.clear(d_);
      }
    }
    if (call_.adapted && call_.adapted_stepwise) export_adapted(0);
    for (int64_t s = 0; s < steps_; ++s) {
      inner_step(s);
      if (call_.adapted && call_.adapted_stepwise) export_adapted(s + 1);
    }
    if (call_.adapted && !call_.adapted_stepwise) export_adapted(steps_);
    if (!has_query_) return;
    if (!early) e_.load_side(query_, call_.query, call_.task_weight, true);
    query_forward(steps_, call_.out_loss, 1, 0);
    if (call_.out_query_loss) {
      e_.store_per_task(static_cast<Real*>(call_.out_query_loss), steps_ + 1, steps_, losses_);
    }
    if (wants_grad_) adjoint();
  }

 private:
  IL_HD static int64_t smaller_of(int64_t a, int64_t b) { return a < b ? a : b; }

  /// Parameters phi_s as the sweeps read them.
  struct Params {
    const Unroll* u;
    int64_t step;
    IL_HD void nt(const R& c, const R& a, int l, bool add) const {
      u->e_.nt(c, a, u->weight_at(step, l), nullptr, 1, add);
    }
    IL_HD void nn(const R& c, const R& a, int l, bool add) const {
      u->e_.nn(c, a, u->weight_at(step, l), nullptr, 1, add);
    }
    IL_HD typename E::BiasRef bias(int l) const { return u->bias_at(step, l); }
  };
  IL_HD bool is_implicit(int l) const { return implicit_ && l == 0; }
  IL_HD Elem* block(int64_t step) const {
    return blocks_ + (wants_grad_ ? step - 1 : 0) * plan_.block;
  }
  IL_HD typename E::WeightRef weight_at(int64_t step, int l) const {
    const LayerPlan& p = plan_.layers[l];
    if (step == 0 || !p.adapts_weight || is_implicit(l)) {
      return e_.initial_weight(l, initial_);
    }
    return e_.turned_weight(l, block(step));
  }
  IL_HD typename E::BiasRef bias_at(int64_t step, int l) const {
    const LayerPlan& p = plan_.layers[l];
    if (step == 0 || !p.adapts_bias) return e_.initial_bias(l, initial_);
    return e_.block_bias(l, block(step));
  }
  IL_HD typename E::BiasRef free_at(int64_t step) const {
    return sweep_.has_free() ? bias_at(step, plan_.depth) : typename E::BiasRef{};
  }
  IL_HD Out weight_in(Elem* b, int l) const { return e_.block_weight_target(l, b); }
  IL_HD Out bias_in(Elem* b, int l) const { return e_.block_bias_target(l, b); }
  /// A weight or bias of a block as rows.
  IL_HD R weight_rows(Elem* b, int l) const {
    const LayerPlan& p = plan_.layers[l];
    return {b + p.w, p.out, p.in, p.ld_in};
  }
  IL_HD R bias_rows(Elem* b, int l) const {
    const LayerPlan& p = plan_.layers[l];
    return {b + p.b, 1, p.out, p.ld_out};
  }

  IL_HD PerTask* rate(int64_t s, int leaf) const {
    return E::per_task(rates_ + (s * plan_.leaves + leaf) * plan_.copies);
  }
  IL_HD PerTask* rate_grad(int64_t s, int leaf) const {
    return E::per_task(rate_grads_ + (s * plan_.leaves + leaf) * plan_.copies);
  }
  IL_CALL void load_rates() {
    const Rates& r = call_.rates;
    for (int64_t s = 0; s < steps_; ++s) {
      for (int leaf = 0; leaf < plan_.leaves; ++leaf) {
        const int64_t offset = s * r.step_stride + leaf * r.leaf_stride;
        e_.load_per_task(rate(s, leaf), static_cast<const Real*>(r.data) + offset, r.task_stride);
      }
    }
  }
  IL_HD const Real* element_rates(int64_t s, int64_t leaf_offset) const {
    return static_cast<const Real*>(call_.rates.data) + s * call_.rates.step_stride + leaf_offset;
  }

  IL_HD T support_tape(int64_t s) const {
    return {tapes_ + (wants_grad_ ? s * tape_stride_ : 0), call_.support.rows};
  }
  IL_HD T query_tape() const { return {query_tape_, call_.query.rows}; }

  /// Output of layer l - 1 on the support at step s; layers below `lowest` ran at step 0 only.
  IL_HD R support_input(int64_t s, int l) const {
    if (l == 0) return support_.x;
    return sweep_.h(support_tape(l - 1 < plan_.lowest ? 0 : s), l - 1);
  }

  IL_HD const R& input(bool is_query) const { return is_query ? query_.x : support_.x; }
  /// c = X W_0^T of the implicit first layer.
  IL_CALL void initial_product(const R& c, bool is_query) {
    Params{this, 0}.nt(c, input(is_query), 0, false);
  }
  /// sign * cotangents^T X of the implicit first layer, to the sum over tasks.
  IL_CALL void sink_first(const R& cotangents, bool is_query, Real sign) {
    e_.sink_tn(plan_.layers[0], cotangents, input(is_query), nullptr, nullptr, sign);
  }

  IL_CALL void inner_step(int64_t s) {
    const T t = support_tape(s);
    const Params params{this, s};
    for (int l = s ? plan_.lowest : 0; l < plan_.depth; ++l) {
      if (is_implicit(l)) {
        if (s == 0) initial_product(u_, false);
        sweep_.forward_layer(t, support_.x, params, l, &u_);
      } else {
        sweep_.forward_layer(t, support_input(s, l), params, l, nullptr);
      }
    }
    const T top = support_tape(plan_.depth - 1 < plan_.lowest ? 0 : s);
    e_.loss_gradient(support_, sweep_.h(top, plan_.depth - 1), free_at(s),
                     sweep_.a(t, plan_.depth - 1), sweep_.free_delta(t), E::per_task(losses_));
    if (call_.out_support_loss) {
      e_.store_per_task(static_cast<Real*>(call_.out_support_loss), steps_, s, losses_);
    }
    if (call_.out_query_loss) query_forward(s, call_.out_query_loss, steps_ + 1, s);
    if (!moves_) return;
    sweep_.backward(t, params, plan_.lowest);
    for (int l = plan_.lowest; l < plan_.entries; ++l) update(s, l);
  }

  IL_CALL void update(int64_t s, int l) {
    const LayerPlan& p = plan_.layers[l];
    const T t = support_tape(s);
    const R delta = sweep_.delta(t, l), in = support_input(s, l);
    const bool elementwise = call_.rates.elementwise;
    if (p.adapts_weight && is_implicit(l)) {
      const PerTask* alpha = rate(s, p.weight_leaf);
      if (s + 1 < steps_) e_.rows_nn(u_, gram_, delta, alpha, -1, true);
      if (has_query_) e_.add_scaled(d_, delta, alpha);
    } else if (p.adapts_weight) {
      const Out to = weight_in(block(s + 1), l);
      if (builds_) {
        const Out g = weight_in(gradient_, l);
        e_.tn(g, nullptr, p, delta, in, nullptr, nullptr, nullptr, 1);
        const Out v = accelerated_weight(s, l, g);
        if (elementwise) {
          e_.step_weight(to, weight_at(s, l), v, p, element_rates(s, p.weight_offset),
                         call_.rates.task_stride);
        } else {
          e_.combine_weight(to, weight_at(s, l), 1, v, rate(s, p.weight_leaf), -1, p);
        }
      } else {
        const typename E::WeightRef from = weight_at(s, l);
        e_.tn(to, &from, p, delta, in, nullptr, nullptr, rate(s, p.weight_leaf), -1);
      }
      e_.turn(l, block(s + 1));
    }
    if (p.adapts_bias) {
      const Out to = bias_in(block(s + 1), l);
      if (builds_) {
        const Out g = bias_in(gradient_, l);
        e_.column_sums(g, nullptr, delta, nullptr, 1);
        const Out v = accelerated_bias(s, l, g);
        if (elementwise) {
          e_.step_bias(to, bias_at(s, l), v, p, element_rates(s, p.bias_offset),
                       call_.rates.task_stride);
        } else {
          e_.combine_bias(to, bias_at(s, l), 1, v, rate(s, p.bias_leaf), -1, p);
        }
      } else {
        const typename E::BiasRef from = bias_at(s, l);
        e_.column_sums(to, &from, delta, rate(s, p.bias_leaf), -1);
      }
    }
  }

  /// v_{s+1} = momentum v_s + g; g itself without momentum.
  IL_CALL Out accelerated_weight(int64_t s, int l, const Out& g) {
    if (momentum_ == 0) return g;
    const Out v = weight_in(velocity(s), l);
    const Real kept = s > 0 ? momentum_ : Real(0);
    e_.combine_weight(v, e_.block_weight(l, velocity(s - 1)), kept, g, nullptr, 1, plan_.layers[l]);
    return v;
  }
  IL_CALL Out accelerated_bias(int64_t s, int l, const Out& g) {
    if (momentum_ == 0) return g;
    const Out v = bias_in(velocity(s), l);
    const Real kept = s > 0 ? momentum_ : Real(0);
    e_.combine_bias(v, e_.block_bias(l, velocity(s - 1)), kept, g, nullptr, 1, plan_.layers[l]);
    return v;
  }
  /// Where v_{s+1} lies: each of its own if rates have gradients.
  IL_HD Elem* velocity(int64_t s) const {
    return velocities_ + (wants_rate_grad_ && s > 0 ? s : 0) * plan_.block;
  }

  IL_CALL void query_forward(int64_t s, void* out, int64_t stride, int64_t index) {
    const T t = query_tape();
    const Params params{this, s};
    for (int l = 0; l < plan_.depth; ++l) {
      if (is_implicit(l)) {
        const R linear = sweep_.z(t, 0);
        initial_product(linear, true);
        if (implicit_moves_ && s > 0) e_.rows_nn(linear, cross_, d_, nullptr, -1, true);
        sweep_.forward_layer(t, query_.x, params, l, &linear);
      } else {
        sweep_.forward_layer(t, l ? sweep_.h(t, l - 1) : query_.x, params, l, nullptr);
      }
    }
    e_.loss_gradient(query_, sweep_.h(t, plan_.depth - 1), free_at(s), sweep_.a(t, plan_.depth - 1),
                     sweep_.free_delta(t), E::per_task(losses_));
    e_.store_per_task(static_cast<Real*>(out), stride, index, losses_);
  }

  /// Does the per-task lambda of this weight exist? It does when a later product needs it, or when
  /// the leaf's gradient is wanted per task.
  IL_HD bool keeps_lambda(int l) const {
    const LayerPlan& p = plan_.layers[l];
    return p.weight_per_task || (p.adapts_weight && !is_implicit(l) && moves_);
  }
  /// May a contribution at step s skip lambda and go to the sum over tasks?
  IL_HD bool goes_to_sink(int64_t s, int l) const {
    const LayerPlan& p = plan_.layers[l];
    return !keeps_lambda(l) || (s == 0 && !p.weight_per_task);
  }
  IL_CALL void accumulate(int64_t s, int l, const R& left, const R& right, const R* left2,
                          const R* right2, Real sign) {
    const LayerPlan& p = plan_.layers[l];
    if (goes_to_sink(s, l)) {
      e_.sink_tn(p, left, right, left2, right2, sign);
    } else {
      const Out to = weight_in(lambda_, l);
      const typename E::WeightRef from = e_.block_weight(l, lambda_);
      e_.tn(to, &from, p, left, right, left2, right2, nullptr, sign);
    }
  }

  IL_CALL void adjoint() {
    const T t = query_tape();
    const Params last{this, steps_};
    sweep_.backward(t, last, 0);
    for (int l = 0; l < plan_.entries; ++l) {
      const LayerPlan& p = plan_.layers[l];
      const R delta = sweep_.delta(t, l), in = l ? sweep_.h(t, l - 1) : query_.x;
      if (keeps_lambda(l)) {
        e_.tn(weight_in(lambda_, l), nullptr, p, delta, in, nullptr, nullptr, nullptr, 1);
      } else if (is_implicit(l)) {
        sink_first(delta, true, 1);
      } else if (p.weight_leaf >= 0) {
        e_.sink_tn(p, delta, in, nullptr, nullptr, 1);
      }
      if (p.bias_leaf >= 0) e_.column_sums(bias_in(lambda_, l), nullptr, delta, nullptr, 1);
    }
    if (implicit_moves_) e_.rows_tn(m_, cross_, sweep_.delta(t, 0));
    if (implicit_) e_.clear(r0_);
    if (body_.p) e_.clear(body_);
    if (moves_ && (call_.order == 2 || wants_rate_grad_)) {
      for (int64_t s = steps_ - 1; s >= 0; --s) reverse_step(s);
    } else if (wants_rate_grad_) {
      clear_rate_grads();
    }
    if (body_.p) reverse_body();
    if (implicit_ && moves_ && call_.order == 2 && plan_.lowest == 0) {
      sink_first(r0_, false, -1);
    }
    for (int l = 0; l < plan_.entries; ++l) {
      const LayerPlan& p = plan_.layers[l];
      if (keeps_lambda(l)) e_.finish_weight(p, weight_in(lambda_, l), call_);
      if (p.bias_leaf >= 0) e_.finish_bias(p, bias_in(lambda_, l), call_);
    }
    if (wants_rate_grad_ && !call_.rates.elementwise) {
      for (int64_t s = 0; s < steps_; ++s) {
        for (int leaf = 0; leaf < plan_.leaves; ++leaf) {
          e_.finish_rate(call_, s * call_.rates.step_stride + leaf * call_.rates.leaf_stride,
                         rate_grad(s, leaf));
        }
      }
    }
  }

  IL_CALL void clear_rate_grads() {
    if (call_.rates.elementwise) return;
    for (int64_t i = 0; i < steps_ * plan_.leaves; ++i) {
      e_.clear_per_task(rate_grad(0, 0) + i * e_.per_task_reals());
    }
  }

  IL_HD Direction<E> direction(int64_t s, int l) const {
    const LayerPlan& p = plan_.layers[l];
    Direction<E> v;
    Elem* from = builds_ ? direction_ : lambda_;
    if (p.adapts_weight && !is_implicit(l)) {
      v.weight = e_.block_weight(l, from);
      if (!builds_) v.weight_rate = rate(s, p.weight_leaf);
    }
    if (p.adapts_bias) {
      v.bias = e_.block_bias(l, from);
      if (!builds_) v.bias_rate = rate(s, p.bias_leaf);
    }
    return v;
  }

  /// Seeds rz_l with in_l V_l^T and takes the rate's gradient -<lambda, g> on the way, since
  /// <lambda, delta^T in> = <delta, in lambda^T>.
  IL_CALL bool seed(int64_t s, int l) {
    const LayerPlan& p = plan_.layers[l];
    const T t = support_tape(s);
    const R delta = sweep_.delta(t, l), in = support_input(s, l), r = sweep_.rz(scratch_, l);
    if (p.adapts_bias && wants_rate_grad_) {
      if (call_.rates.elementwise) {
        const Out g = bias_in(momentum_ == 0 ? gradient_ : velocity(s), l);
        if (momentum_ == 0) e_.column_sums(g, nullptr, delta, nullptr, 1);
        e_.rate_grad_bias(call_, element_offset(s, p.bias_offset), p, bias_in(lambda_, l), g);
      } else if (builds_) {
        e_.minus_dot(rate_grad(s, p.bias_leaf), p, bias_rows(lambda_, l),
                     bias_rows(velocity(s), l));
      } else {
        e_.minus_dot_bias(rate_grad(s, p.bias_leaf), p, delta, bias_in(lambda_, l));
      }
    } else if (wants_rate_grad_ && !call_.rates.elementwise && p.bias_leaf >= 0) {
      e_.clear_per_task(rate_grad(s, p.bias_leaf));
    }
    if (!p.adapts_weight) {
      if (wants_rate_grad_ && !call_.rates.elementwise && p.weight_leaf >= 0) {
        e_.clear_per_task(rate_grad(s, p.weight_leaf));
      }
      return false;
    }
    if (builds_ && !call_.rates.elementwise) {
      if (wants_rate_grad_) {
        e_.minus_dot(rate_grad(s, p.weight_leaf), p, weight_rows(lambda_, l),
                     weight_rows(velocity(s), l));
      }
      return false;
    }
    if (call_.rates.elementwise) {
      if (wants_rate_grad_) {
        const Out g = weight_in(momentum_ == 0 ? gradient_ : velocity(s), l);
        if (momentum_ == 0) e_.tn(g, nullptr, p, delta, in, nullptr, nullptr, nullptr, 1);
        e_.rate_grad_weight(call_, element_offset(s, p.weight_offset), p, weight_in(lambda_, l), g);
      }
      return false;
    }
    const PerTask* alpha = rate(s, p.weight_leaf);
    if (is_implicit(l)) {
      if (wants_rate_grad_) e_.minus_dot(rate_grad(s, p.weight_leaf), p, delta, m_);
      e_.copy_scaled(r, m_, alpha);
      return true;
    }
    if (!wants_rate_grad_) return false;
    e_.nt(r, in, e_.block_weight(l, lambda_), nullptr, 1, false);
    e_.minus_dot(rate_grad(s, p.weight_leaf), p, delta, r);
    e_.copy_scaled(r, r, alpha);
    return true;
  }
  IL_HD int64_t element_offset(int64_t s, int64_t leaf_offset) const {
    return s * call_.rates.step_stride + leaf_offset;
  }

  IL_CALL void reverse_step(int64_t s) {
    const T t = support_tape(s), r = scratch_;
    const Params params{this, s};
    const int low = plan_.lowest, top = plan_.depth - 1;
    if (wants_rate_grad_ && !call_.rates.elementwise) {
      for (int l = 0; l < low; ++l) {
        e_.clear_per_task(rate_grad(s, plan_.layers[l].weight_leaf));
        if (plan_.layers[l].bias_leaf >= 0) {
          e_.clear_per_task(rate_grad(s, plan_.layers[l].bias_leaf));
        }
      }
    }
    if (builds_ && call_.order == 2) build_direction(s);
    for (int l = low; l <= top; ++l) {
      const LayerPlan& p = plan_.layers[l];
      const bool seeded = seed(s, l);
      if (call_.order == 1) continue;
      const R r_in = l > low ? sweep_.rh(r, l - 1) : R{};
      sweep_.r_forward_layer(t, r, support_input(s, l), l > low ? &r_in : nullptr, params,
                             direction(s, l), l, p.adapts_weight, seeded);
    }
    if (sweep_.has_free()) seed(s, plan_.depth);
    if (call_.order == 1) return;
    const Direction<E> free = sweep_.has_free() ? direction(s, plan_.depth) : Direction<E>{};
    e_.loss_curvature(support_, sweep_.h(t, top), free_at(s), sweep_.rh(r, top), free, false,
                      sweep_.rdelta(r, top), sweep_.free_rdelta(r));
    sweep_.r_activation_backward(t, r, top);
    for (int l = top; l > low; --l) {
      r_backward_input(s, l, sweep_.rdelta(r, l - 1), false);
      sweep_.r_activation_backward(t, r, l - 1);
    }
    if (body_.p) {
      r_backward_input(s, low, body_, true);
    }
    for (int l = low; l < plan_.entries; ++l) {
      const LayerPlan& p = plan_.layers[l];
      const R rd = sweep_.rdelta(r, l);
      if (p.weight_leaf < 0) {
        // a free leaf has no weight
      } else if (is_implicit(l)) {
        if (s > 0 && p.adapts_weight) e_.rows_nn(m_, gram_, rd, nullptr, -1, true);
        e_.add_scaled(r0_, rd, nullptr);
      } else if (l > low) {
        const R delta = sweep_.delta(t, l), r_in = sweep_.rh(r, l - 1);
        accumulate(s, l, rd, support_input(s, l), &delta, &r_in, -1);
      } else {
        accumulate(s, l, rd, support_input(s, l), nullptr, nullptr, -1);
      }
      if (p.bias_leaf >= 0) {
        const typename E::BiasRef from = e_.block_bias(l, lambda_);
        e_.column_sums(bias_in(lambda_, l), &from, rd, nullptr, -1);
      }
    }
  }

  IL_CALL void r_backward_input(int64_t s, int l, const R& to, bool add) {
    sweep_.r_backward_input(to, support_tape(s), scratch_, Params{this, s}, direction(s, l), l,
                            plan_.layers[l].adapts_weight, add);
  }

  /// The direction p_s = alpha_s lambda_{s+1} + momentum p_{s+1} of the product with H_s.
  IL_CALL void build_direction(int64_t s) {
    const Real kept = s + 1 < steps_ ? momentum_ : Real(0);
    for (int l = plan_.lowest; l < plan_.entries; ++l) {
      const LayerPlan& p = plan_.layers[l];
      if (p.adapts_weight) build_weight_direction(s, l, kept);
      if (p.adapts_bias) build_bias_direction(s, l, kept);
    }
  }
  IL_CALL void build_weight_direction(int64_t s, int l, Real kept) {
    const LayerPlan& p = plan_.layers[l];
    const Out to = weight_in(direction_, l), lambda = weight_in(lambda_, l);
    const typename E::WeightRef before = e_.block_weight(l, direction_);
    if (!call_.rates.elementwise) {
      e_.combine_weight(to, before, kept, lambda, rate(s, p.weight_leaf), 1, p);
      return;
    }
    const Out scaled = momentum_ == 0 ? to : weight_in(gradient_, l);
    e_.scale_weight(scaled, lambda, p, element_rates(s, p.weight_offset), call_.rates.task_stride);
    if (momentum_ != 0) e_.combine_weight(to, before, kept, scaled, nullptr, 1, p);
  }
  IL_CALL void build_bias_direction(int64_t s, int l, Real kept) {
    const LayerPlan& p = plan_.layers[l];
    const Out to = bias_in(direction_, l), lambda = bias_in(lambda_, l);
    const typename E::BiasRef before = e_.block_bias(l, direction_);
    if (!call_.rates.elementwise) {
      e_.combine_bias(to, before, kept, lambda, rate(s, p.bias_leaf), 1, p);
      return;
    }
    const Out scaled = momentum_ == 0 ? to : bias_in(gradient_, l);
    e_.scale_bias(scaled, lambda, p, element_rates(s, p.bias_offset), call_.rates.task_stride);
    if (momentum_ != 0) e_.combine_bias(to, before, kept, scaled, nullptr, 1, p);
  }

  /// Layers below `lowest` saw the same inputs at every step: one backward pass for the sum of
  /// their cotangents.
  IL_CALL void reverse_body() {
    const T t = support_tape(0), r = scratch_;
    const Params params{this, 0};
    for (int l = plan_.lowest - 1; l >= 0; --l) {
      const R cotangent = sweep_.rdelta(r, l);
      if (l == plan_.lowest - 1) {
        e_.copy_scaled(cotangent, body_, nullptr);
      } else {
        params.nn(cotangent, sweep_.rdelta(r, l + 1), l + 1, false);
      }
      e_.activation_backward(cotangent, cotangent, sweep_.z(t, l), sweep_.h(t, l), plan_.layers[l]);
      if (is_implicit(l)) {
        sink_first(cotangent, false, -1);
      } else {
        accumulate(0, l, cotangent, l ? sweep_.h(t, l - 1) : support_.x, nullptr, nullptr, -1);
      }
      if (plan_.layers[l].bias_leaf >= 0) {
        const typename E::BiasRef from = e_.block_bias(l, lambda_);
        e_.column_sums(bias_in(lambda_, l), &from, cotangent, nullptr, -1);
      }
    }
  }

  IL_CALL void export_adapted(int64_t s) {
    const int64_t copies = call_.adapted_stepwise ? steps_ + 1 : 1;
    Real* out =
        static_cast<Real*>(call_.adapted) + (call_.adapted_stepwise ? s : 0) * e_.parameter_count();
    const int64_t stride = copies * e_.parameter_count();
    for (int l = 0; l < plan_.entries; ++l) {
      const LayerPlan& p = plan_.layers[l];
      if (p.weight_leaf >= 0) e_.export_weight(out, stride, p, weight_at(s, l));
      if (p.bias_leaf >= 0) e_.export_bias(out, stride, p, bias_at(s, l));
    }
  }

  E& e_;
  const Plan& plan_;
  const MetaGradCall& call_;
  Sweep<E> sweep_;
  bool wants_grad_, wants_rate_grad_, has_query_, moves_, implicit_, implicit_moves_;
  int64_t steps_, tape_stride_ = 0;
  typename E::SideData support_{}, query_{};
  Elem *tapes_ = nullptr, *query_tape_ = nullptr, *initial_ = nullptr, *blocks_ = nullptr;
  Elem *lambda_ = nullptr, *direction_ = nullptr, *gradient_ = nullptr, *rates_ = nullptr;
  Elem *rate_grads_ = nullptr, *losses_ = nullptr;
  T scratch_{};
  Elem* velocities_ = nullptr;
  Real momentum_ = 0;
  bool builds_ = false;  // updates and directions, where they are no product times a rate
  R body_{}, u_{}, gram_{}, cross_{}, d_{}, m_{}, r0_{};
};

}  // namespace innerloop
