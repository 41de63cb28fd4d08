// A step that is not a product times a rate: with a velocity, a decay, or a rate for each element,
// the gradient is built before the leaf moves, and the direction of the adjoint before it is used.
// With the numbers of the solver (core/solver.h: mu, a, b, w) and G_s = g_s + w phi_s:
//
//   v_{s+1} = mu v_s + G_s,   u_s = a G_s + b v_{s+1},   phi_{s+1} = phi_s - alpha_s * u_s
//   m_s = mu m_{s+1} + b alpha_s * lambda_{s+1},         p_s = m_s + a alpha_s * lambda_{s+1}
//   lambda_s = lambda_{s+1} - H_s p_s - w p_s,           dL/dalpha_s = -lambda_{s+1} * u_s
#pragma once

#include "core/unroll/leaf.h"

namespace innerloop {

template <class E, class Leaf>
struct BuiltStep {
  using State = UnrollState<E>;
  using Real = typename E::Real;
  using Elem = typename E::Elem;
  using Out = Target<Elem>;

  IL_CALL static void update(const State& u, int64_t s, int l) {
    const LayerPlan& p = u.plan.layers[l];
    const Out to = Leaf::target(u, l, u.block(s + 1)), g = Leaf::target(u, l, u.gradient);
    gradient(u, g, s, l);
    const Out taken = accelerated(u, s, l, g);
    if (u.elementwise) {
      Leaf::step(u, to, Leaf::at(u, s, l), taken, p, u.element_rates(s, Leaf::offset(p)));
    } else {
      Leaf::combine(u, to, Leaf::at(u, s, l), 1, taken, u.rate(s, Leaf::index(p)), -1, p);
    }
  }

  /// -lambda * u: of the sum over the leaf, or of each element.
  IL_CALL static void rate_gradient(const State& u, int64_t s, int l) {
    const LayerPlan& p = u.plan.layers[l];
    if (!u.wants_rate_grad) return;
    Elem* const taken = step_taken(u, s, l);
    if (u.elementwise) {
      Leaf::rate_grad(u, u.element_offset(s, Leaf::offset(p)), p, Leaf::target(u, l, u.lambda),
                      Leaf::target(u, l, taken));
    } else {
      u.e.minus_dot(u.rate_grad(s, Leaf::index(p)), p, Leaf::rows(p, u.lambda),
                    Leaf::rows(p, taken));
    }
  }

  IL_CALL static void build_direction(const State& u, int64_t s, int l) {
    const LayerPlan& p = u.plan.layers[l];
    const Solver& solver = u.call.solver;
    const bool has_velocity = solver.has_velocity();
    const Out to = Leaf::target(u, l, u.direction), lambda = Leaf::target(u, l, u.lambda);
    const typename E::PerTask* rate = u.elementwise ? nullptr : u.rate(s, Leaf::index(p));
    Out x = lambda;
    if (u.elementwise) {
      x = has_velocity ? Leaf::target(u, l, u.gradient) : to;
      Leaf::scale(u, x, lambda, p, u.element_rates(s, Leaf::offset(p)));
    }
    if (!has_velocity) {
      if (!u.elementwise) Leaf::combine(u, to, Leaf::in_block(u, l, u.direction), 0, x, rate, 1, p);
      return;
    }
    const typename Leaf::Ref carried = Leaf::in_block(u, l, u.carried);
    Leaf::combine(u, Leaf::target(u, l, u.carried), carried,
                  s + 1 < u.steps ? real(solver.momentum) : Real(0), x, rate,
                  real(solver.velocity_share), p);
    if (solver.mixes()) Leaf::combine(u, to, carried, 1, x, rate, real(solver.gradient_share), p);
  }
  /// lambda - w p: what the adjoint of the decay is.
  IL_CALL static void decay(const State& u, int l) {
    Leaf::combine(u, Leaf::target(u, l, u.lambda), Leaf::in_block(u, l, u.lambda), 1,
                  Leaf::target(u, l, u.direction), nullptr, -real(u.call.solver.decay),
                  u.plan.layers[l]);
  }

 private:
  IL_HD static Real real(double number) { return static_cast<Real>(number); }

  /// G_s
  IL_CALL static void gradient(const State& u, const Out& to, int64_t s, int l) {
    Leaf::gradient(u, to, s, l);
    if (!u.decays) return;
    Leaf::combine(u, to, Leaf::at(u, s, l), real(u.call.solver.decay), to, nullptr, 1,
                  u.plan.layers[l]);
  }
  /// u_s, given G_s, in whose place it may be.
  IL_CALL static Out accelerated(const State& u, int64_t s, int l, const Out& g) {
    const Solver& solver = u.call.solver;
    if (!solver.has_velocity()) return g;
    const LayerPlan& p = u.plan.layers[l];
    const Out v = Leaf::target(u, l, velocity(u, s));
    Leaf::combine(u, v, Leaf::in_block(u, l, velocity(u, s - 1)),
                  s > 0 ? real(solver.momentum) : Real(0), g, nullptr, 1, p);
    if (!solver.mixes()) return v;
    Leaf::combine(u, g, Leaf::in_block(u, l, velocity(u, s)), real(solver.velocity_share), g,
                  nullptr, real(solver.gradient_share), p);
    return g;
  }
  /// The block that holds u_s on the way back: (a + b) v_{s+1} - a mu v_s, or G_s without
  /// velocities.
  IL_CALL static Elem* step_taken(const State& u, int64_t s, int l) {
    const Solver& solver = u.call.solver;
    const Out to = Leaf::target(u, l, u.gradient);
    if (!solver.has_velocity()) {
      gradient(u, to, s, l);
      return u.gradient;
    }
    if (!solver.mixes()) return velocity(u, s);
    const double share = solver.gradient_share;
    Leaf::combine(u, to, Leaf::in_block(u, l, velocity(u, s - 1)),
                  s > 0 ? real(-share * solver.momentum) : Real(0),
                  Leaf::target(u, l, velocity(u, s)), nullptr, real(share + solver.velocity_share),
                  u.plan.layers[l]);
    return u.gradient;
  }
  /// Where v_{s+1} lies: each of its own if rates have gradients.
  IL_HD static Elem* velocity(const State& u, int64_t s) {
    return u.velocities + (u.wants_rate_grad && s > 0 ? s : 0) * u.plan.block;
  }
};

}  // namespace innerloop
