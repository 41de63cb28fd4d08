// z = in W^T + b: the input itself meets the weight.
#pragma once

#include "core/layers/layer.h"

namespace innerloop {

template <class E>
struct AffineLayer {
  using R = Rows<typename E::Elem>;
  using T = Tape<typename E::Elem>;
  static constexpr bool kDiagonal = false;

  static void lay_out(LayerPlan&, int64_t*, int64_t*) {}
  template <class X>
  IL_HD static R leaf_input(const X&, const T&, int, const R& in) {
    return in;
  }
  template <class X>
  IL_HD static R r_leaf_input(const X& x, const T& s, int l) {
    return x.rh(s, l - 1);
  }
  template <class X>
  IL_HD static void forward(const X&, const T&, int, const R&) {}
  template <class X>
  IL_HD static void r_forward(const X&, const T&, const T&, int, const R&) {}
  template <class X>
  IL_HD static R cotangent(const X&, const T&, int) {
    return {};
  }
  template <class X>
  IL_HD static R r_cotangent(const X&, const T&, int) {
    return {};
  }
  template <class X, class Params>
  IL_HD static void backward(const X&, const T&, const R&, const Params& params, int l,
                             const R& delta, const R& to) {
    params.nn(to, delta, l, false);
  }
  template <class X, class Params>
  IL_HD static void r_backward(const X& x, const T& t, const T& s, const Params& params,
                               const Direction<E>& v, int l, bool, const R& to, bool add) {
    params.nn(to, x.rdelta(s, l), l, add);
    if (v.weight) x.engine().nn(to, x.delta(t, l), v.weight, v.weight_rate, 1, true);
  }
};

}  // namespace innerloop
