// The operations without an inner loop: outputs, loss and gradient, Hessian-vector product, each
// for every task of a group on its own.
#pragma once

#include "core/sweep.h"

namespace innerloop {

/// Initial parameters as the sweeps read them.
template <class E>
struct InitialParams {
  using R = Rows<typename E::Elem>;
  E* engine;
  typename E::Elem* imported;
  IL_HD void nt(const R& c, const R& a, int l, bool add) const {
    engine->nt(c, a, engine->initial_weight(l, imported), nullptr, 1, add);
  }
  IL_HD void nn(const R& c, const R& a, int l, bool add) const {
    engine->nn(c, a, engine->initial_weight(l, imported), nullptr, 1, add);
  }
  IL_HD typename E::BiasRef bias(int l) const { return engine->initial_bias(l, imported); }
};

template <class E>
class ForwardPass {
 public:
  using Real = typename E::Real;
  using Elem = typename E::Elem;
  using R = Rows<Elem>;

  IL_HD ForwardPass(E& engine, const Plan& plan) : e_(engine), plan_(plan), sweep_(engine, plan) {}

  IL_HD void carve(Carver<Elem>& c, const Side& side) {
    e_.carve(c);
    side_ = e_.carve_side(c, side);
    tape_ = {c.take(plan_.copies * side.rows, plan_.tape_row), side.rows};
    params_ = {&e_, c.take(e_.initial_size())};
  }
  IL_HD void forward() {
    e_.load_params(params_.imported);
    for (int l = 0; l < plan_.depth; ++l) {
      sweep_.forward_layer(tape_, input(l), params_, l, nullptr);
    }
  }
  IL_HD R input(int l) const { return l ? sweep_.h(tape_, l - 1) : side_.x; }
  IL_HD R output() const { return sweep_.h(tape_, plan_.depth - 1); }

 protected:
  E& e_;
  const Plan& plan_;
  Sweep<E> sweep_;
  typename E::SideData side_{};
  Tape<Elem> tape_{};
  InitialParams<E> params_{};
};

template <class E>
class PredictPass : public ForwardPass<E> {
 public:
  using typename ForwardPass<E>::Real;
  using typename ForwardPass<E>::Elem;

  IL_HD PredictPass(E& engine, const Plan& plan, const PredictCall& call)
      : ForwardPass<E>(engine, plan), call_(call) {}
  IL_HD void carve(Carver<Elem>& c) {
    ForwardPass<E>::carve(c, Side{call_.rows, call_.x, 0, 0, 0});
  }
  IL_HD void run() {
    this->e_.load_inputs(this->side_.x, call_.x);
    this->forward();
    this->e_.export_rows(static_cast<Real*>(call_.out), this->output());
  }

 private:
  const PredictCall& call_;
};

template <class E>
class LossPass : public ForwardPass<E> {
 public:
  using typename ForwardPass<E>::Real;
  using typename ForwardPass<E>::Elem;

  IL_HD LossPass(E& engine, const Plan& plan, const LossAndGradCall& call)
      : ForwardPass<E>(engine, plan), call_(call) {}
  IL_HD void carve(Carver<Elem>& c) {
    ForwardPass<E>::carve(c, call_.side);
    losses_ = c.take(this->plan_.copies);
    result_ = c.take(E::kBuildsResults && call_.out_grad ? this->plan_.block : 0);
  }
  IL_HD void run() {
    E& e = this->e_;
    const Plan& plan = this->plan_;
    e.load_side(this->side_, call_.side, nullptr, false);
    this->forward();
    e.loss_gradient(this->side_, this->output(), this->sweep_.a(this->tape_, plan.depth - 1),
                    E::per_task(losses_));
    e.store_per_task(static_cast<Real*>(call_.out_loss), 1, 0, losses_);
    if (!call_.out_grad) return;
    this->sweep_.backward(this->tape_, this->params_, 0);
    Real* out = static_cast<Real*>(call_.out_grad);
    const int64_t stride = e.parameter_count();
    for (int l = 0; l < plan.depth; ++l) {
      const LayerPlan& p = plan.layers[l];
      const auto delta = this->sweep_.delta(this->tape_, l);
      e.tn(e.result_weight(l, result_, out, stride), nullptr, p, delta, this->input(l), nullptr,
           nullptr, nullptr, 1);
      if (p.bias_leaf >= 0) {
        e.column_sums(e.result_bias(l, result_, out, stride), nullptr, delta, nullptr, 1);
      }
      e.publish(l, result_, out, stride);
    }
  }

 private:
  const LossAndGradCall& call_;
  Elem *losses_ = nullptr, *result_ = nullptr;
};

template <class E>
class HvpPass : public ForwardPass<E> {
 public:
  using typename ForwardPass<E>::Real;
  using typename ForwardPass<E>::Elem;

  IL_HD HvpPass(E& engine, const Plan& plan, const HvpCall& call)
      : ForwardPass<E>(engine, plan), call_(call) {}
  IL_HD void carve(Carver<Elem>& c) {
    ForwardPass<E>::carve(c, call_.side);
    losses_ = c.take(this->plan_.copies);
    vector_ = c.take(this->e_.direction_size());
    result_ = c.take(E::kBuildsResults ? this->plan_.block : 0);
    scratch_ = {c.take(this->plan_.copies * call_.side.rows, this->plan_.scratch_row),
                call_.side.rows};
  }
  IL_HD void run() {
    E& e = this->e_;
    const Plan& plan = this->plan_;
    const auto& sweep = this->sweep_;
    const auto& tape = this->tape_;
    const int top = plan.depth - 1;
    e.load_side(this->side_, call_.side, nullptr, false);
    this->forward();
    e.loss_gradient(this->side_, this->output(), sweep.a(tape, top), E::per_task(losses_));
    this->sweep_.backward(tape, this->params_, 0);
    for (int l = 0; l <= top; ++l) {
      const auto r_in = l ? sweep.rh(scratch_, l - 1) : Rows<Elem>{};
      this->sweep_.r_forward_layer(tape, scratch_, this->input(l), l ? &r_in : nullptr,
                                   this->params_, direction(l, true), l, true, false);
    }
    e.loss_curvature(this->side_, this->output(), sweep.rh(scratch_, top),
                     sweep.rdelta(scratch_, top));
    this->sweep_.r_activation_backward(tape, scratch_, top);
    for (int l = top; l > 0; --l) {
      this->sweep_.r_backward_input(sweep.rdelta(scratch_, l - 1), tape, scratch_, this->params_,
                                    direction(l, false), l, true, false);
      this->sweep_.r_activation_backward(tape, scratch_, l - 1);
    }
    Real* out = static_cast<Real*>(call_.out);
    const int64_t stride = e.parameter_count();
    for (int l = 0; l <= top; ++l) {
      const LayerPlan& p = plan.layers[l];
      const auto rd = sweep.rdelta(scratch_, l), d = sweep.delta(tape, l);
      const auto r_in = l ? sweep.rh(scratch_, l - 1) : Rows<Elem>{};
      e.tn(e.result_weight(l, result_, out, stride), nullptr, p, rd, this->input(l),
           l ? &d : nullptr, l ? &r_in : nullptr, nullptr, 1);
      if (p.bias_leaf >= 0) {
        e.column_sums(e.result_bias(l, result_, out, stride), nullptr, rd, nullptr, 1);
      }
      e.publish(l, result_, out, stride);
    }
  }

 private:
  IL_HD Direction<E> direction(int l, bool loads) {
    Direction<E> v;
    v.weight = loads ? this->e_.load_weight(l, call_.vector, vector_)
                     : this->e_.loaded_weight(l, call_.vector, vector_);
    if (loads) v.bias = this->e_.load_bias(l, call_.vector, vector_);
    return v;
  }

  const HvpCall& call_;
  Elem *losses_ = nullptr, *vector_ = nullptr, *result_ = nullptr;
  Tape<Elem> scratch_{};
};

}  // namespace innerloop
