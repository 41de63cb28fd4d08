// The first layer's weight where it pays to build no copy of it (core/request.h): its input X never
// changes, so phi_s is met only through X W_s^T and lambda only through X_s lambda^T.
//
//   product    X_s W_s^T                       gram   X_s X_s^T
//   moved      D = sum of alpha_s delta_s      cross  X_q X_s^T: X_q W_S^T = X_q W_0^T - cross D
//   lambda     M = X_s lambda^T                cotangent  R0 = sum of R{delta_s}
#pragma once

#include "core/unroll/state.h"

namespace innerloop {

template <class E>
struct ImplicitWeight {
  using State = UnrollState<E>;
  using Elem = typename E::Elem;
  using R = Rows<Elem>;

  IL_HD static void carve(State& u, Carver<Elem>& c) {
    const LayerPlan& p = u.plan.layers[0];
    const int64_t n = u.call.support.rows, q = u.call.query.rows, g = u.plan.copies;
    const int64_t wide = u.plan.implicit_first ? g * n * p.ld_out : 0, ld = u.e.pad(n);
    const bool adapts = moves(u), with_query = adapts && u.has_query;
    u.first.product = {c.take(wide), n, p.out, p.ld_out};
    u.first.gram = {c.take(adapts ? g * n * ld : 0), n, n, ld};
    u.first.cross = {c.take(with_query ? g * q * ld : 0), q, n, ld};
    u.first.moved = {c.take(with_query ? wide : 0), n, p.out, p.ld_out};
    u.first.lambda = {c.take(with_query && u.wants_grad ? wide : 0), n, p.out, p.ld_out};
    u.first.cotangent = {c.take(u.wants_grad ? wide : 0), n, p.out, p.ld_out};
  }
  IL_HD static bool moves(const State& u) {
    return u.plan.implicit_first && u.plan.first_adapts && u.steps > 0;
  }
  /// The products of the inputs, before the first step.
  IL_HD static void prepare(const State& u) {
    if (!moves(u)) return;
    u.e.rows_nt(u.first.gram, u.support.x, u.support.x);
    if (!u.has_query) return;
    u.e.rows_nt(u.first.cross, u.query.x, u.support.x);
    u.e.clear(u.first.moved);
  }
  IL_HD static const R* support_product(const State& u, int64_t s) {
    if (s == 0) initial_product(u, u.first.product, u.support.x);
    return &u.first.product;
  }
  IL_HD static void query_product(const State& u, int64_t s, const R& to) {
    initial_product(u, to, u.query.x);
    if (moves(u) && s > 0) u.e.rows_nn(to, u.first.cross, u.first.moved, nullptr, -1, true);
  }

  IL_CALL static void update(const State& u, int64_t s, int l) {
    const LayerPlan& p = u.plan.layers[l];
    if (!p.adapts_weight) return;
    const R delta = u.sweep.delta(u.support_tape(s), l);
    const typename E::PerTask* alpha = u.rate(s, p.weight_leaf);
    if (s + 1 < u.steps) u.e.rows_nn(u.first.product, u.first.gram, delta, alpha, -1, true);
    if (u.has_query) u.e.add_scaled(u.first.moved, delta, alpha);
  }
  IL_HD static void build_direction(const State&, int64_t, int) {}
  IL_HD static void decay(const State&, int) {}
  IL_CALL static bool seed(const State& u, int64_t s, int l) {
    const LayerPlan& p = u.plan.layers[l];
    if (!p.adapts_weight) {
      u.clear_rate_grad(s, p.weight_leaf);
      return false;
    }
    if (u.wants_rate_grad) {
      u.e.minus_dot(u.rate_grad(s, p.weight_leaf), p, u.sweep.delta(u.support_tape(s), l),
                    u.first.lambda);
    }
    u.e.copy_scaled(u.sweep.rz(u.scratch, l), u.first.lambda, u.rate(s, p.weight_leaf));
    return true;
  }
  IL_HD static void direction(const State&, int64_t, int, Direction<E>&) {}

  IL_CALL static void start(const State& u, int l, const R& delta, const R& in) {
    u.e.sink_tn(u.plan.layers[l], delta, in, nullptr, nullptr, 1);
    if (moves(u)) u.e.rows_tn(u.first.lambda, u.first.cross, delta);
    u.e.clear(u.first.cotangent);
  }
  IL_CALL static void accumulate(const State& u, int64_t s, int l, const R& r_delta, const R&,
                                 const R*, const R*) {
    if (s > 0 && u.plan.layers[l].adapts_weight) {
      u.e.rows_nn(u.first.lambda, u.first.gram, r_delta, nullptr, -1, true);
    }
    u.e.add_scaled(u.first.cotangent, r_delta, nullptr);
  }
  IL_CALL static void finish(const State& u, int l) {
    if (!u.moves || u.call.order == 1) return;
    u.e.sink_tn(u.plan.layers[l], u.first.cotangent, u.support.x, nullptr, nullptr, -1);
  }

 private:
  IL_CALL static void initial_product(const State& u, const R& to, const R& x) {
    u.e.nt(to, x, u.weight_at(0, 0), nullptr, 1, false);
  }
};

}  // namespace innerloop
