// One pass over one side of a group of tasks: forward, backward, and the R-operator's forward and
// backward (Pearlmutter 1994). Written once; the engine E supplies products and elementwise maps
// for its own memory layout (core/engine.h).
//
// Notation, per layer l: u_l [rows, in] of its input (core/layers/layer.h; an affine layer's is the
// input), z_l = u_l W_l^T + b_l, h_l = act(z_l), in_{l+1} = h_l; a_l = dL/dh_l,
// delta_l = a_l * act'(z_l). R{.} is the derivative along the direction (V_l, v_l).
#pragma once

#include "core/layers/all.h"

namespace innerloop {

template <class E>
class Sweep {
 public:
  using Real = typename E::Real;
  using Elem = typename E::Elem;
  using R = Rows<Elem>;
  using T = Tape<Elem>;

  // Params, below: products with weights and biases of one step. params.nt(c, a, l, add) is
  // c = a W_l^T, nn is c = a W_l, added to c if asked.
  IL_HD Sweep(E& engine, const Plan& plan) : e_(engine), plan_(plan) {}

  IL_HD E& engine() const { return e_; }
  IL_HD const LayerPlan& layer(int l) const { return plan_.layers[l]; }
  IL_HD R z(const T& t, int l) const { return at(t, l, layer(l).z); }
  IL_HD R h(const T& t, int l) const { return at(t, l, layer(l).h); }
  IL_HD R a(const T& t, int l) const { return at(t, l, layer(l).a); }
  IL_HD R delta(const T& t, int l) const { return at(t, l, layer(l).delta); }
  IL_HD R rz(const T& t, int l) const { return at(t, l, layer(l).rz); }
  IL_HD R rh(const T& t, int l) const { return at(t, l, layer(l).rh); }
  IL_HD R rdelta(const T& t, int l) const { return at(t, l, layer(l).rdelta); }
  /// Gradients in the free leaf, row by row: of the loss, and R{.} of them.
  IL_HD R free_delta(const T& t) const { return has_free() ? delta(t, plan_.depth) : R{}; }
  IL_HD R free_rdelta(const T& t) const { return has_free() ? rdelta(t, plan_.depth) : R{}; }
  IL_HD bool has_free() const { return plan_.entries > plan_.depth; }

  // What meets the weight of layer l, and R{.} of it where it moves.
  IL_HD R leaf_input(const T& t, int l, const R& in) const {
    return with_layer<E>(layer(l).kind,
                         [&](auto kind) { return kind.leaf_input(*this, t, l, in); });
  }
  IL_HD R r_leaf_input(const T& s, int l) const {
    return with_layer<E>(layer(l).kind, [&](auto kind) { return kind.r_leaf_input(*this, s, l); });
  }

  /// Layer l from its input; `linear`, when given, already holds u W^T.
  template <class Params>
  IL_CALL void forward_layer(const T& t, const R& in, const Params& params, int l,
                             const R* linear) {
    const R zl = z(t, l);
    with_layer<E>(layer(l).kind, [&](auto kind) { kind.forward(*this, t, l, in); });
    if (!linear) params.nt(zl, leaf_input(t, l, in), l, false);
    e_.bias_activation(zl, h(t, l), linear ? *linear : zl, params.bias(l), layer(l));
  }

  /// From a_{L-1} (written by the loss) to delta_l for l >= lowest.
  template <class Params>
  IL_CALL void backward(const T& t, const Params& params, int lowest) {
    activation_backward(t, plan_.depth - 1);
    for (int l = plan_.depth - 1; l > lowest; --l) {
      with_layer<E>(layer(l).kind, [&](auto kind) {
        kind.backward(*this, t, kind.cotangent(*this, t, l), params, l, delta(t, l), a(t, l - 1));
      });
      activation_backward(t, l - 1);
    }
  }
  /// The cotangent of layer l's input from its delta, by the way of the R-pass's scratch.
  template <class Params>
  IL_HD void backward_input(const T& t, const T& s, const Params& params, int l, const R& delta,
                            const R& to) {
    with_layer<E>(layer(l).kind, [&](auto kind) {
      kind.backward(*this, t, kind.r_cotangent(*this, s, l), params, l, delta, to);
    });
  }

  /// R{h_l} given R{in_l} (null where it is zero). `seeded`: rz_l already holds u_l V^T.
  template <class Params>
  IL_CALL void r_forward_layer(const T& t, const T& s, const R& in, const R* r_in,
                               const Params& params, const Direction<E>& v, int l, bool seeded) {
    const R r = rz(s, l);
    bool add = seeded;
    if (v.weight && !seeded) {
      e_.nt(r, leaf_input(t, l, in), v.weight, v.weight_rate, 1, false);
      add = true;
    }
    if (r_in) {
      with_layer<E>(layer(l).kind, [&](auto kind) { kind.r_forward(*this, t, s, l, *r_in); });
      params.nt(r, r_leaf_input(s, l), l, add);
      add = true;
    }
    if (!add) e_.clear(r);
    e_.r_activation(rh(s, l), r, v.bias, v.bias_rate, z(t, l), h(t, l), layer(l));
  }

  /// R{delta_l} from R{a_l} held in rdelta_l.
  IL_HD void r_activation_backward(const T& t, const T& s, int l) {
    e_.r_activation_backward(rdelta(s, l), rz(s, l), a(t, l), z(t, l), h(t, l), layer(l));
  }

  /// R{.} of the cotangent of layer l's input, to `to` or added to it. `moves`: the input does.
  template <class Params>
  IL_CALL void r_backward_input(const R& to, const T& t, const T& s, const Params& params,
                                const Direction<E>& v, int l, bool moves, bool add) {
    with_layer<E>(layer(l).kind,
                  [&](auto kind) { kind.r_backward(*this, t, s, params, v, l, moves, to, add); });
  }

  /// Columns of a tape, or of the scratch, that a kind of layer laid out.
  IL_HD R columns(const T& t, int64_t offset, int64_t cols, int64_t ld) const {
    return {t.p + plan_.copies * t.rows * offset, t.rows, cols, ld};
  }

 private:
  IL_HD R at(const T& t, int l, int64_t offset) const {
    const LayerPlan& p = layer(l);
    return {t.p + plan_.copies * t.rows * offset, t.rows, p.out, p.ld_out};
  }
  IL_HD void activation_backward(const T& t, int l) {
    e_.activation_backward(delta(t, l), a(t, l), z(t, l), h(t, l), layer(l));
  }

  E& e_;
  const Plan& plan_;
};

}  // namespace innerloop
