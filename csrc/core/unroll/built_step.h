// A step that is not a product times a rate: with a velocity, or a rate for each element, the
// gradient is built before the leaf moves, and the direction of the adjoint before it is used.
//
//   v_{s+1} = momentum v_s + g_s,          phi_{s+1} = phi_s - alpha_s * v_{s+1}
//   p_s = alpha_s * lambda_{s+1} + momentum p_{s+1},   dL/dalpha_s = -lambda_{s+1} * v_{s+1}
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
    Leaf::gradient(u, g, s, l);
    const Out v = accelerated(u, s, l, g);
    if (u.elementwise) {
      Leaf::step(u, to, Leaf::at(u, s, l), v, p, u.element_rates(s, Leaf::offset(p)));
    } else {
      Leaf::combine(u, to, Leaf::at(u, s, l), 1, v, u.rate(s, Leaf::index(p)), -1, p);
    }
  }

  /// -lambda * v: of the sum over the leaf, or of each element.
  IL_CALL static void rate_gradient(const State& u, int64_t s, int l) {
    const LayerPlan& p = u.plan.layers[l];
    if (!u.wants_rate_grad) return;
    if (!u.elementwise) {
      u.e.minus_dot(u.rate_grad(s, Leaf::index(p)), p, Leaf::rows(p, u.lambda),
                    Leaf::rows(p, velocity(u, s)));
      return;
    }
    const Out v = Leaf::target(u, l, u.momentum == 0 ? u.gradient : velocity(u, s));
    if (u.momentum == 0) Leaf::gradient(u, v, s, l);
    Leaf::rate_grad(u, u.element_offset(s, Leaf::offset(p)), p, Leaf::target(u, l, u.lambda), v);
  }

  IL_CALL static void build_direction(const State& u, int64_t s, int l) {
    const LayerPlan& p = u.plan.layers[l];
    const Real kept = s + 1 < u.steps ? u.momentum : Real(0);
    const Out to = Leaf::target(u, l, u.direction), lambda = Leaf::target(u, l, u.lambda);
    const typename Leaf::Ref before = Leaf::in_block(u, l, u.direction);
    if (!u.elementwise) {
      Leaf::combine(u, to, before, kept, lambda, u.rate(s, Leaf::index(p)), 1, p);
      return;
    }
    const Out scaled = u.momentum == 0 ? to : Leaf::target(u, l, u.gradient);
    Leaf::scale(u, scaled, lambda, p, u.element_rates(s, Leaf::offset(p)));
    if (u.momentum != 0) Leaf::combine(u, to, before, kept, scaled, nullptr, 1, p);
  }

 private:
  /// v_{s+1}; g itself without momentum.
  IL_CALL static Out accelerated(const State& u, int64_t s, int l, const Out& g) {
    if (u.momentum == 0) return g;
    const Out v = Leaf::target(u, l, velocity(u, s));
    const Real kept = s > 0 ? u.momentum : Real(0);
    Leaf::combine(u, v, Leaf::in_block(u, l, velocity(u, s - 1)), kept, g, nullptr, 1,
                  u.plan.layers[l]);
    return v;
  }
  /// Where v_{s+1} lies: each of its own if rates have gradients.
  IL_HD static Elem* velocity(const State& u, int64_t s) {
    return u.velocities + (u.wants_rate_grad && s > 0 ? s : 0) * u.plan.block;
  }
};

}  // namespace innerloop
