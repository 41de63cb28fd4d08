// What the recursion of core/unroll.h and the kinds of leaves beside it share: the facts of a call,
// the arrays of a group of tasks, and where a leaf lies at a step.
#pragma once

#include "core/sweep.h"

namespace innerloop {

/// The arrays of a weight that stays implicit: core/unroll/implicit_weight.h says what they hold.
template <class Elem>
struct ImplicitArrays {
  Rows<Elem> product, gram, cross, moved, lambda, cotangent;
};

/// `wants_grad`, `wants_rate_grad`: what the call asks for. `moves`: some leaf adapts. `builds`: a
/// step is not a product times a rate (core/unroll/built_step.h). `decays`: parameters are a part
/// of their own step.
template <class E>
struct UnrollState {
  using Real = typename E::Real;
  using Elem = typename E::Elem;
  using PerTask = typename E::PerTask;  // one number for every task of the group
  using R = Rows<Elem>;
  using T = Tape<Elem>;
  using Out = Target<Elem>;

  IL_HD UnrollState(E& engine, const Plan& the_plan, const MetaGradCall& the_call)
      : e(engine), plan(the_plan), call(the_call), sweep(engine, the_plan) {
    wants_grad = call.grads != nullptr;
    wants_rate_grad = wants_grad && call.out_rate_grad != nullptr;
    has_query = call.out_loss != nullptr;
    steps = call.steps;
    elementwise = call.rates.elementwise;
    builds = elementwise || !call.solver.is_plain();
    moves = plan.lowest < plan.depth && steps > 0;
    has_parts = E::kTakesParts && plan.part_rows > 0;
    decays = moves && call.solver.decay != 0;
  }

  /// Lays out the arrays; over a null base it only counts.
  IL_HD void carve(Carver<Elem>& c) {
    const int64_t n = call.support.rows, g = plan.copies;
    const int64_t part = rows_at_once(plan, n), query_part = rows_at_once(plan, call.query.rows);
    const int64_t kept = wants_grad ? steps : steps < 1 ? steps : 1;
    // a step that is taken part by part reads phi_s to its end
    blocks_kept = wants_grad || !has_parts ? kept : steps < 2 ? steps : 2;
    e.carve(c);
    support = e.carve_side(c, call.support);
    if (has_query) query = e.carve_side(c, call.query);
    tape_stride = g * (wants_grad ? n : part) * plan.tape_row;
    tapes = c.take(kept, tape_stride);
    query_tape_at = c.take(has_query ? g * query_part * plan.tape_row : 0);
    initial = c.take(e.initial_size());
    blocks = c.take(moves ? blocks_kept : 0, plan.block);
    // phi_S is read for the last time before lambda_S is written, unless the query comes in parts
    const bool in_place = moves && !has_parts;
    lambda = wants_grad && in_place ? block(steps) : c.take(wants_grad ? plan.block : 0);
    next_lambda = has_parts ? c.take(wants_grad ? plan.block : 0) : lambda;
    direction = c.take(builds && moves && wants_grad ? plan.block : 0);
    gradient = c.take(builds && moves ? plan.block : 0);
    const bool accelerates = moves && call.solver.has_velocity();
    velocities = c.take(!accelerates ? 0 : wants_rate_grad ? steps : 1, plan.block);
    carried = call.solver.mixes() ? c.take(moves && wants_grad ? plan.block : 0) : direction;
    const bool per_element = elementwise && moves;
    rates = c.take(per_element ? 0 : steps, plan.leaves * g);
    rate_grads = c.take(wants_rate_grad && !per_element ? steps : 0, plan.leaves * g);
    losses = c.take(g);
    const bool second = wants_grad && moves && (call.order == 2 || wants_rate_grad);
    scratch = {c.take(second ? g * part : 0, plan.scratch_row), part};
    const LayerPlan& below = plan.layers[plan.lowest > 0 ? plan.lowest - 1 : 0];
    const bool has_body = second && call.order == 2 && plan.lowest > 0;
    body = {c.take(has_body ? g * n * below.ld_out : 0), n, below.out, below.ld_out};
  }

  // ---- parts of a side -------------------------------------------------------------------------
  /// The part of a side that is worked on from here on.
  IL_HD void enter(const Part& at, bool is_query) {
    (is_query ? query_part : support_part) = at;
    if constexpr (E::kTakesParts) {
      if (!has_parts) return;
      adds = at.first > 0;
      const int64_t rows = is_query ? call.query.rows : call.support.rows;
      is_last = at.first + at.rows == rows;
      if (is_query) {
        query = e.part(whole_query, at.first, at.rows);
      } else {
        support = e.part(whole_support, at.first, at.rows);
        scratch.rows = at.rows;
      }
    }
  }
  /// f(to) where to is the gradient of a rate, which the parts of a side add up to.
  template <class F>
  IL_HD void sum_rate_grad(int64_t s, int leaf, F&& f) const {
    PerTask* to = rate_grad(s, leaf);
    if constexpr (E::kTakesParts) {
      if (adds) {  // of one task
        const PerTask before = *to;
        f(to);
        *to += before;
        return;
      }
    }
    f(to);
  }

  // ---- leaves at a step ------------------------------------------------------------------------
  IL_HD Elem* block(int64_t step) const {
    return blocks + (wants_grad ? step - 1 : (step - 1) % blocks_kept) * plan.block;
  }
  IL_HD bool is_implicit(int l) const { return plan.implicit_first && l == 0; }
  IL_HD typename E::WeightRef weight_at(int64_t step, int l) const {
    if (step == 0 || !plan.layers[l].adapts_weight || is_implicit(l)) {
      return e.initial_weight(l, initial);
    }
    return e.turned_weight(l, block(step));
  }
  IL_HD typename E::BiasRef bias_at(int64_t step, int l) const {
    if (step == 0 || !plan.layers[l].adapts_bias) return e.initial_bias(l, initial);
    return e.block_bias(l, block(step));
  }
  IL_HD typename E::BiasRef free_at(int64_t step) const {
    return sweep.has_free() ? bias_at(step, plan.depth) : typename E::BiasRef{};
  }

  // ---- rates -----------------------------------------------------------------------------------
  IL_HD PerTask* rate(int64_t s, int leaf) const {
    return E::per_task(rates + (s * plan.leaves + leaf) * plan.copies);
  }
  IL_HD PerTask* rate_grad(int64_t s, int leaf) const {
    return E::per_task(rate_grads + (s * plan.leaves + leaf) * plan.copies);
  }
  /// Where the rates of a leaf's elements lie, and their gradients.
  IL_HD int64_t element_offset(int64_t s, int64_t leaf_offset) const {
    return s * call.rates.step_stride + leaf_offset;
  }
  IL_HD const Real* element_rates(int64_t s, int64_t leaf_offset) const {
    return static_cast<const Real*>(call.rates.data) + element_offset(s, leaf_offset);
  }
  /// The gradient of the rate of a leaf that no step moves; -1: there is no such leaf.
  IL_HD void clear_rate_grad(int64_t s, int leaf) const {
    if (wants_rate_grad && !elementwise && leaf >= 0) e.clear_per_task(rate_grad(s, leaf));
  }

  // ---- passes ----------------------------------------------------------------------------------
  IL_HD T support_tape(int64_t s) const {
    const int64_t at = s * tape_stride + support_part.first * plan.tape_row;
    return {tapes + (wants_grad ? at : 0), support_part.rows};
  }
  IL_HD T query_tape() const { return {query_tape_at, query_part.rows}; }
  /// Layers below `lowest` ran on the support at step 0 only.
  IL_HD T support_tape_of(int64_t s, int l) const { return support_tape(l < plan.lowest ? 0 : s); }
  /// Output of layer l - 1, and what meets the weight of layer l.
  IL_HD R support_input(int64_t s, int l) const {
    return l ? sweep.h(support_tape_of(s, l - 1), l - 1) : support.x;
  }
  IL_HD R support_leaf_input(int64_t s, int l) const {
    return sweep.leaf_input(support_tape_of(s, l), l, support_input(s, l));
  }
  IL_HD R query_input(int l) const { return l ? sweep.h(query_tape(), l - 1) : query.x; }

  E& e;
  const Plan& plan;
  const MetaGradCall& call;
  Sweep<E> sweep;
  bool wants_grad, wants_rate_grad, has_query, moves, elementwise, builds, decays, has_parts;
  bool adds = false, is_last = true;  // this part's sums to those before; the last of its side
  int64_t steps, tape_stride = 0, blocks_kept = 1;
  Part support_part{}, query_part{};
  typename E::SideData support{}, query{};  // of the part
  typename E::SideData whole_support{}, whole_query{};
  Elem *tapes = nullptr, *query_tape_at = nullptr, *initial = nullptr, *losses = nullptr;
  Elem *blocks = nullptr, *lambda = nullptr, *next_lambda = nullptr;      // parameters
  Elem *direction = nullptr, *gradient = nullptr, *velocities = nullptr;  // where a step is built
  Elem* carried = nullptr;  // m_s of core/unroll/built_step.h
  Elem *rates = nullptr, *rate_grads = nullptr;
  T scratch{};
  R body{};  // the sum over steps of what goes into layers below `lowest`
  ImplicitArrays<Elem> first{};
};

}  // namespace innerloop
