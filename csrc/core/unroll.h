// The K-step inner loop of a group of tasks and its adjoint: losses, adapted parameters, and exact
// gradients of the query loss with respect to initial parameters and inner rates.
//
//   phi_{s+1} = phi_s - alpha_s * g_s,  g_s = grad l_support(phi_s),  L = l_query(phi_S)
//   lambda_S = grad l_query(phi_S),  lambda_s = lambda_{s+1} - H_s (alpha_s * lambda_{s+1})
//   dL/dalpha_s = -lambda_{s+1} * g_s;   order 1 drops the H_s term.
//
// and of the other solvers of core/solver.h the like of it (core/unroll/built_step.h).
//
// This is the recursion. How a leaf moves, and what its lambda is, say the kinds of weight
// (core/unroll/weight.h: stored, implicit, fixed) and the bias beside them. Layers below the first
// adapted one are passed once, not once per step, in both directions.
#pragma once

#include "core/unroll/bias.h"
#include "core/unroll/weight.h"

namespace innerloop {

template <class E>
class Unroll {
 public:
  using Real = typename E::Real;
  using Elem = typename E::Elem;
  using R = Rows<Elem>;
  using T = Tape<Elem>;
  using State = UnrollState<E>;

  IL_HD Unroll(E& engine, const Plan& plan, const MetaGradCall& call)
      : e_(engine), plan_(plan), call_(call), u_(engine, plan, call) {}

  /// Lays out the workspace; over a null base it only counts.
  IL_CALL void carve(Carver<Elem>& c) {
    u_.carve(c);
    ImplicitWeight<E>::carve(u_, c);
  }

  /// One group of tasks, already selected in the engine.
  IL_HD void run() {
    e_.load_side(u_.support, call_.support, nullptr, false);
    if (u_.has_parts) u_.whole_support = u_.support;
    // the query as late as possible: the nearest caches hold one side rather than both
    const bool early = u_.has_query && (ImplicitWeight<E>::moves(u_) || call_.out_query_loss);
    if (early) load_query();
    e_.load_params(u_.initial);
    if (!u_.elementwise) load_rates();
    ImplicitWeight<E>::prepare(u_);
    if (call_.adapted && call_.adapted_stepwise) export_adapted(0);
    for (int64_t s = 0; s < u_.steps; ++s) {
      inner_step(s);
      if (call_.adapted && call_.adapted_stepwise) export_adapted(s + 1);
    }
    if (call_.adapted && !call_.adapted_stepwise) export_adapted(u_.steps);
    if (!u_.has_query) return;
    if (!early) load_query();
    query_pass(u_.steps, call_.out_loss, 1, 0, u_.wants_grad);
    if (call_.out_query_loss) {
      e_.store_per_task(static_cast<Real*>(call_.out_query_loss), u_.steps + 1, u_.steps,
                        u_.losses);
    }
    if (u_.wants_grad) adjoint();
  }

 private:
  /// Parameters phi_s as the sweeps read them.
  struct Params {
    const State* u;
    int64_t step;
    IL_HD void nt(const R& c, const R& a, int l, bool add) const {
      u->e.nt(c, a, u->weight_at(step, l), nullptr, 1, add);
    }
    IL_HD void nn(const R& c, const R& a, int l, bool add) const {
      u->e.nn(c, a, u->weight_at(step, l), nullptr, 1, add);
    }
    IL_HD typename E::BiasRef bias(int l) const { return u->bias_at(step, l); }
  };

  IL_HD void load_query() {
    e_.load_side(u_.query, call_.query, call_.task_weight, true);
    if (u_.has_parts) u_.whole_query = u_.query;
  }
  IL_CALL void load_rates() {
    const Rates& r = call_.rates;
    for (int64_t s = 0; s < u_.steps; ++s) {
      for (int leaf = 0; leaf < plan_.leaves; ++leaf) {
        const int64_t offset = s * r.step_stride + leaf * r.leaf_stride;
        e_.load_per_task(u_.rate(s, leaf), static_cast<const Real*>(r.data) + offset,
                         r.task_stride);
      }
    }
  }

  // ---- forward ---------------------------------------------------------------------------------
  IL_CALL void inner_step(int64_t s) {
    if (call_.out_query_loss) query_pass(s, call_.out_query_loss, u_.steps + 1, s, false);
    each_part<E>(plan_, call_.support.rows, [&](const Part& part) {
      u_.enter(part, false);
      support_pass(s);
      if (!u_.moves) return;
      for (int l = plan_.lowest; l < plan_.entries; ++l) {
        with_weight(u_, l, [&](auto kind) { kind.update(u_, s, l); });
        UnrolledBias<E>::update(u_, s, l);
      }
    });
    if (call_.out_support_loss) {
      e_.store_per_task(static_cast<Real*>(call_.out_support_loss), u_.steps, s, u_.losses);
    }
  }
  /// Forward through step s, and back if the parameters move.
  IL_CALL void support_pass(int64_t s) {
    const T t = u_.support_tape(s);
    const Params params{&u_, s};
    for (int l = s ? plan_.lowest : 0; l < plan_.depth; ++l) {
      const R* linear = u_.is_implicit(l) ? ImplicitWeight<E>::support_product(u_, s) : nullptr;
      u_.sweep.forward_layer(t, u_.support_input(s, l), params, l, linear);
    }
    const T top = u_.support_tape_of(s, plan_.depth - 1);
    e_.loss_gradient(u_.support, u_.sweep.h(top, plan_.depth - 1), u_.free_at(s),
                     u_.sweep.a(t, plan_.depth - 1), u_.sweep.free_delta(t),
                     E::per_task(u_.losses));
    if (u_.moves) u_.sweep.backward(t, params, plan_.lowest);
  }

  /// The query's losses at phi_s, and lambda_S if asked.
  IL_CALL void query_pass(int64_t s, void* out, int64_t stride, int64_t index, bool back) {
    each_part<E>(plan_, call_.query.rows, [&](const Part& part) {
      u_.enter(part, true);
      query_forward(s);
      if (back) query_backward(s);
    });
    e_.store_per_task(static_cast<Real*>(out), stride, index, u_.losses);
  }
  IL_CALL void query_forward(int64_t s) {
    const T t = u_.query_tape();
    const Params params{&u_, s};
    for (int l = 0; l < plan_.depth; ++l) {
      const R linear = u_.sweep.z(t, l);
      if (u_.is_implicit(l)) ImplicitWeight<E>::query_product(u_, s, linear);
      u_.sweep.forward_layer(t, u_.query_input(l), params, l,
                             u_.is_implicit(l) ? &linear : nullptr);
    }
    e_.loss_gradient(u_.query, u_.sweep.h(t, plan_.depth - 1), u_.free_at(s),
                     u_.sweep.a(t, plan_.depth - 1), u_.sweep.free_delta(t),
                     E::per_task(u_.losses));
  }

  // ---- adjoint ---------------------------------------------------------------------------------
  IL_CALL void query_backward(int64_t s) {
    const T t = u_.query_tape();
    u_.sweep.backward(t, Params{&u_, s}, 0);
    for (int l = 0; l < plan_.entries; ++l) {
      const R delta = u_.sweep.delta(t, l);
      with_weight(u_, l, [&](auto kind) {
        kind.start(u_, l, delta, u_.sweep.leaf_input(t, l, u_.query_input(l)));
      });
      UnrolledBias<E>::start(u_, l, delta);
    }
  }
  IL_CALL void adjoint() {
    if (u_.body.p) e_.clear(u_.body);
    if (u_.moves && (call_.order == 2 || u_.wants_rate_grad || u_.decays)) {
      for (int64_t s = u_.steps - 1; s >= 0; --s) reverse_step(s);
    } else {
      for (int64_t s = 0; s < u_.steps; ++s) {
        for (int leaf = 0; leaf < plan_.leaves; ++leaf) u_.clear_rate_grad(s, leaf);
      }
    }
    if (u_.body.p) reverse_body();
    for (int l = 0; l < plan_.entries; ++l) {
      with_weight(u_, l, [&](auto kind) { kind.finish(u_, l); });
      UnrolledBias<E>::finish(u_, l);
    }
    if (u_.wants_rate_grad && !u_.elementwise) {
      for (int64_t s = 0; s < u_.steps; ++s) {
        for (int leaf = 0; leaf < plan_.leaves; ++leaf) {
          e_.finish_rate(call_, s * call_.rates.step_stride + leaf * call_.rates.leaf_stride,
                         u_.rate_grad(s, leaf));
        }
      }
    }
  }

  IL_HD Direction<E> direction(int64_t s, int l) const {
    Direction<E> v;
    with_weight(u_, l, [&](auto kind) { kind.direction(u_, s, l, v); });
    UnrolledBias<E>::direction(u_, s, l, v);
    return v;
  }
  /// The rates' gradients at step s; returns whether rz_l holds in_l V_l^T after that.
  IL_HD bool seed(int64_t s, int l) {
    bool seeded = false;
    UnrolledBias<E>::rate_gradient(u_, s, l);
    with_weight(u_, l, [&](auto kind) { seeded = kind.seed(u_, s, l); });
    return seeded;
  }

  /// lambda_s from lambda_{s+1}, and the gradients of the rates of step s.
  IL_CALL void reverse_step(int64_t s) {
    const int low = plan_.lowest;
    for (int l = 0; l < low; ++l) {
      u_.clear_rate_grad(s, plan_.layers[l].weight_leaf);
      u_.clear_rate_grad(s, plan_.layers[l].bias_leaf);
    }
    if (u_.builds && (call_.order == 2 || u_.decays)) {
      for (int l = low; l < plan_.entries; ++l) {
        with_weight(u_, l, [&](auto kind) { kind.build_direction(u_, s, l); });
        UnrolledBias<E>::build_direction(u_, s, l);
      }
    }
    const R kept{u_.lambda, 1, plan_.block, plan_.block};
    if (u_.has_parts) e_.copy_scaled(R{u_.next_lambda, 1, plan_.block, plan_.block}, kept, nullptr);
    each_part<E>(plan_, call_.support.rows, [&](const Part& part) {
      u_.enter(part, false);
      reverse_pass(s);
    });
    if (u_.has_parts) {
      u_.lambda = u_.next_lambda;
      u_.next_lambda = kept.p;
    }
  }
  IL_CALL void reverse_pass(int64_t s) {
    const T t = u_.support_tape(s), r = u_.scratch;
    const Params params{&u_, s};
    const int low = plan_.lowest, top = plan_.depth - 1;
    for (int l = low; l <= top; ++l) {
      const bool seeded = seed(s, l);
      if (call_.order == 1) continue;
      const R r_in = l > low ? u_.sweep.rh(r, l - 1) : R{};
      u_.sweep.r_forward_layer(t, r, u_.support_input(s, l), l > low ? &r_in : nullptr, params,
                               direction(s, l), l, seeded);
    }
    if (u_.sweep.has_free()) seed(s, plan_.depth);
    if (u_.decays) {
      for (int l = low; l < plan_.entries; ++l) {
        with_weight(u_, l, [&](auto kind) { kind.decay(u_, l); });
        UnrolledBias<E>::decay(u_, l);
      }
    }
    if (call_.order == 1) return;
    const Direction<E> free = u_.sweep.has_free() ? direction(s, plan_.depth) : Direction<E>{};
    e_.loss_curvature(u_.support, u_.sweep.h(t, top), u_.free_at(s), u_.sweep.rh(r, top), free,
                      false, u_.sweep.rdelta(r, top), u_.sweep.free_rdelta(r));
    u_.sweep.r_activation_backward(t, r, top);
    for (int l = top; l > low; --l) {
      r_backward_input(s, l, u_.sweep.rdelta(r, l - 1), true, false);
      u_.sweep.r_activation_backward(t, r, l - 1);
    }
    if (u_.body.p) r_backward_input(s, low, u_.body, false, true);
    for (int l = low; l < plan_.entries; ++l) {
      const R rd = u_.sweep.rdelta(r, l), delta = u_.sweep.delta(t, l);
      with_weight(u_, l, [&](auto kind) {
        const R r_in = l > low ? u_.sweep.r_leaf_input(r, l) : R{};
        kind.accumulate(u_, s, l, rd, u_.support_leaf_input(s, l), l > low ? &delta : nullptr,
                        l > low ? &r_in : nullptr);
      });
      UnrolledBias<E>::accumulate(u_, l, rd);
    }
  }

  IL_CALL void r_backward_input(int64_t s, int l, const R& to, bool moves, bool add) {
    u_.sweep.r_backward_input(to, u_.support_tape(s), u_.scratch, Params{&u_, s}, direction(s, l),
                              l, moves, add);
  }

  /// Layers below `lowest` saw the same inputs at every step: one backward pass for the sum of
  /// their cotangents.
  IL_CALL void reverse_body() {
    const T t = u_.support_tape(0), r = u_.scratch;
    const Params params{&u_, 0};
    for (int l = plan_.lowest - 1; l >= 0; --l) {
      const R cotangent = u_.sweep.rdelta(r, l);
      if (l == plan_.lowest - 1) {
        e_.copy_scaled(cotangent, u_.body, nullptr);
      } else {
        u_.sweep.backward_input(t, r, params, l + 1, u_.sweep.rdelta(r, l + 1), cotangent);
      }
      e_.activation_backward(cotangent, cotangent, u_.sweep.z(t, l), u_.sweep.h(t, l),
                             plan_.layers[l]);
      with_weight(u_, l, [&](auto kind) {
        kind.accumulate(u_, 0, l, cotangent, u_.support_leaf_input(0, l), nullptr, nullptr);
      });
      UnrolledBias<E>::accumulate(u_, l, cotangent);
    }
  }

  IL_CALL void export_adapted(int64_t s) {
    const int64_t copies = call_.adapted_stepwise ? u_.steps + 1 : 1;
    Real* out =
        static_cast<Real*>(call_.adapted) + (call_.adapted_stepwise ? s : 0) * e_.parameter_count();
    const int64_t stride = copies * e_.parameter_count();
    for (int l = 0; l < plan_.entries; ++l) {
      const LayerPlan& p = plan_.layers[l];
      if (p.weight_leaf >= 0) e_.export_weight(out, stride, p, u_.weight_at(s, l));
      if (p.bias_leaf >= 0) e_.export_bias(out, stride, p, u_.bias_at(s, l));
    }
  }

  E& e_;
  const Plan& plan_;
  const MetaGradCall& call_;
  State u_;
};

}  // namespace innerloop
