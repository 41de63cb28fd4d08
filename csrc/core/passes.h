// The operations without an inner loop: outputs, loss and gradient, products with the Hessian and
// with the Gauss-Newton matrix, each for every task of a group on its own.
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

  IL_HD void carve(Carver<Elem>& c, const Side& side, bool has_tape = false) {
    e_.carve(c);
    side_ = e_.carve_side(c, side);
    const int64_t rows = rows_at_once(plan_, side.rows);
    tape_ = {c.take(has_tape ? 0 : plan_.copies * rows, plan_.tape_row), rows};
    params_ = {&e_, c.take(e_.initial_size())};
  }
  /// f() for each part of the side, with its rows and its tape in place.
  template <class F>
  IL_HD void each(F&& f) {
    const typename E::SideData whole = side_;
    const int64_t rows = side_.x.rows;
    each_part<E>(plan_, rows, [&](const Part& part) {
      if constexpr (E::kTakesParts) {
        if (part.rows < rows) side_ = e_.part(whole, part.first, part.rows);
        adds_ = part.first > 0;
        tape_.rows = part.rows;
        first_row_ = part.first;
      }
      f();
    });
    if constexpr (E::kTakesParts) side_ = whole;
  }
  IL_HD void forward() {
    for (int l = 0; l < plan_.depth; ++l) {
      sweep_.forward_layer(tape_, input(l), params_, l, nullptr);
    }
  }
  IL_HD R input(int l) const { return l ? sweep_.h(tape_, l - 1) : side_.x; }
  IL_HD R leaf_input(int l) const { return sweep_.leaf_input(tape_, l, input(l)); }
  IL_HD R output() const { return sweep_.h(tape_, plan_.depth - 1); }
  IL_HD typename E::BiasRef free() const {
    return sweep_.has_free() ? params_.bias(plan_.depth) : typename E::BiasRef{};
  }
  /// Losses, with their gradients in outputs and free leaf.
  IL_HD void loss_gradient(Elem* losses) {
    e_.loss_gradient(side_, output(), free(), sweep_.a(tape_, plan_.depth - 1),
                     sweep_.free_delta(tape_), E::per_task(losses));
  }

  /// The cotangents of outputs and free leaf, back to all leaves, to the tasks' rows of `out`.
  IL_CALL void export_gradient(Elem* result, Real* out) {
    sweep_.backward(tape_, params_, 0);
    const int64_t stride = e_.parameter_count();
    for (int l = 0; l < plan_.entries; ++l) {
      const LayerPlan& p = plan_.layers[l];
      const auto delta = sweep_.delta(tape_, l);
      if (p.weight_leaf >= 0) {
        export_weight(e_.result_weight(l, result, out, stride), p, delta, leaf_input(l), nullptr,
                      nullptr);
      }
      if (p.bias_leaf >= 0) export_bias(e_.result_bias(l, result, out, stride), p, delta);
      e_.publish(l, result, out, stride);
    }
  }

 protected:
  /// a^T b + a2^T b2, and sums of columns: of this part of the side, added to those before.
  IL_CALL void export_weight(const Target<Elem>& to, const LayerPlan& p, const R& a, const R& b,
                             const R* a2, const R* b2) {
    if constexpr (E::kTakesParts) {
      if (adds_) {
        typename E::WeightRef from;
        from.own = to.p;
        from.out = p.weight_rows();
        from.in = p.weight_cols();
        from.ld = to.ld;
        from.task_stride = to.task_stride;
        return e_.tn(to, &from, p, a, b, a2, b2, nullptr, 1);
      }
    }
    e_.tn(to, nullptr, p, a, b, a2, b2, nullptr, 1);
  }
  IL_CALL void export_bias(const Target<Elem>& to, const LayerPlan& p, const R& delta) {
    if constexpr (E::kTakesParts) {
      if (adds_) {
        typename E::BiasRef from;
        from.own = to.p;
        from.out = p.out;
        from.task_stride = to.task_stride;
        return e_.column_sums(to, &from, delta, nullptr, 1);
      }
    }
    e_.column_sums(to, nullptr, delta, nullptr, 1);
  }

  E& e_;
  const Plan& plan_;
  Sweep<E> sweep_;
  typename E::SideData side_{};  // of the part that is worked on
  bool adds_ = false;            // results of this part to those before
  int64_t first_row_ = 0;
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
    ForwardPass<E>::carve(c, Side{call_.rows, call_.x, nullptr, nullptr, nullptr, {}});
  }
  IL_HD void run() {
    this->e_.load_inputs(this->side_.x, call_.x);
    this->e_.load_params(this->params_.imported);
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
    e.load_side(this->side_, call_.side, nullptr, false);
    e.load_params(this->params_.imported);
    this->each([&] {
      this->forward();
      this->loss_gradient(losses_);
      if (call_.out_grad) this->export_gradient(result_, static_cast<Real*>(call_.out_grad));
    });
    e.store_per_task(static_cast<Real*>(call_.out_loss), 1, 0, losses_);
  }

 private:
  const LossAndGradCall& call_;
  Elem *losses_ = nullptr, *result_ = nullptr;
};

/// What products with a vector share: what comes before it, and the pass along it.
template <class E>
class VectorPass : public ForwardPass<E> {
 public:
  using typename ForwardPass<E>::Real;
  using typename ForwardPass<E>::Elem;

  IL_HD VectorPass(E& engine, const Plan& plan, const HvpCall& call)
      : ForwardPass<E>(engine, plan), call_(call) {}
  IL_HD void carve(Carver<Elem>& c) {
    ForwardPass<E>::carve(c, call_.side, call_.tape != nullptr);
    losses_ = c.take(this->plan_.copies);
    vector_ = c.take(this->e_.direction_size());
    result_ = c.take(E::kBuildsResults ? this->plan_.block : 0);
    const int64_t rows = rows_at_once(this->plan_, call_.side.rows);
    scratch_ = {c.take(this->plan_.copies * rows, this->plan_.scratch_row), rows};
  }

 protected:
  IL_HD void load() {
    this->e_.load_side(this->side_, call_.side, nullptr, false);
    this->e_.load_params(this->params_.imported);
  }
  /// The part's tape, if the caller keeps it. Says whether the tape is to be written.
  IL_HD bool begin() {
    scratch_.rows = this->tape_.rows;
    if (!call_.tape) return true;
    // a task's rows are as long in Reals in every engine, whether Elems are one task's or several
    const int64_t row = this->e_.first() * call_.side.rows + this->first_row_;
    this->tape_.p =
        reinterpret_cast<Elem*>(static_cast<Real*>(call_.tape) + row * this->plan_.tape_row);
    return !call_.out;
  }
  /// R{.} of all outputs.
  IL_CALL void r_forward() {
    for (int l = 0; l < this->plan_.depth; ++l) {
      const auto r_in = l ? this->sweep_.rh(scratch_, l - 1) : Rows<Elem>{};
      this->sweep_.r_forward_layer(this->tape_, scratch_, this->input(l), l ? &r_in : nullptr,
                                   this->params_, direction(l, true), l, false);
    }
  }
  IL_HD Direction<E> direction(int l, bool loads) {
    Direction<E> v;
    if (this->plan_.layers[l].weight_leaf >= 0) {
      v.weight = loads ? this->e_.load_weight(l, call_.vector, vector_)
                       : this->e_.loaded_weight(l, call_.vector, vector_);
    }
    if (loads) v.bias = this->e_.load_bias(l, call_.vector, vector_);
    return v;
  }
  IL_HD Direction<E> free_direction() {
    Direction<E> v;
    if (this->sweep_.has_free()) {
      v.bias = this->e_.load_bias(this->plan_.depth, call_.vector, vector_);
    }
    return v;
  }

  const HvpCall& call_;
  Elem *losses_ = nullptr, *vector_ = nullptr, *result_ = nullptr;
  Tape<Elem> scratch_{};
};

template <class E>
class HvpPass : public VectorPass<E> {
 public:
  using typename ForwardPass<E>::Real;
  using typename ForwardPass<E>::Elem;
  using VectorPass<E>::VectorPass;

  IL_HD void run() {
    this->load();
    this->each([&] { pass(); });
  }

 private:
  IL_CALL void pass() {
    E& e = this->e_;
    const Plan& plan = this->plan_;
    const auto& sweep = this->sweep_;
    const auto &tape = this->tape_, &scratch = this->scratch_;
    const int top = plan.depth - 1;
    if (this->begin()) {
      this->forward();
      this->loss_gradient(this->losses_);
      this->sweep_.backward(tape, this->params_, 0);
    }
    if (!this->call_.out) return;
    this->r_forward();
    e.loss_curvature(this->side_, this->output(), this->free(), sweep.rh(scratch, top),
                     this->free_direction(), false, sweep.rdelta(scratch, top),
                     sweep.free_rdelta(scratch));
    this->sweep_.r_activation_backward(tape, scratch, top);
    for (int l = top; l > 0; --l) {
      this->sweep_.r_backward_input(sweep.rdelta(scratch, l - 1), tape, scratch, this->params_,
                                    this->direction(l, false), l, true, false);
      this->sweep_.r_activation_backward(tape, scratch, l - 1);
    }
    Real* out = static_cast<Real*>(this->call_.out);
    const int64_t stride = e.parameter_count();
    for (int l = 0; l < plan.entries; ++l) {
      const LayerPlan& p = plan.layers[l];
      const auto rd = sweep.rdelta(scratch, l), d = sweep.delta(tape, l);
      if (p.weight_leaf >= 0) {
        const auto r_in = l ? sweep.r_leaf_input(scratch, l) : Rows<Elem>{};
        this->export_weight(e.result_weight(l, this->result_, out, stride), p, rd,
                            this->leaf_input(l), l ? &d : nullptr, l ? &r_in : nullptr);
      }
      if (p.bias_leaf >= 0) {
        this->export_bias(e.result_bias(l, this->result_, out, stride), p, rd);
      }
      e.publish(l, this->result_, out, stride);
    }
  }
};

/// F v with the Gauss-Newton matrix F = J^T G J: forward along v, through the objective's metric G,
/// and back.
template <class E>
class MetricPass : public VectorPass<E> {
 public:
  using typename ForwardPass<E>::Real;
  using VectorPass<E>::VectorPass;

  IL_HD void run() {
    this->load();
    this->each([&] { pass(); });
  }

 private:
  IL_CALL void pass() {
    E& e = this->e_;
    const int top = this->plan_.depth - 1;
    if (this->begin()) this->forward();
    if (!this->call_.out) return;
    this->r_forward();
    e.loss_curvature(this->side_, this->output(), this->free(),
                     this->sweep_.rh(this->scratch_, top), this->free_direction(), true,
                     this->sweep_.a(this->tape_, top), this->sweep_.free_delta(this->tape_));
    this->export_gradient(this->result_, static_cast<Real*>(this->call_.out));
  }
};

}  // namespace innerloop
