// Activations: value, first and second derivative, written once for any element type. `M` supplies
// the element type `M::V` and its arithmetic (vector lanes on the CPU, one value on a GPU).
#pragma once

#include "core/logistic.h"
#include "core/net.h"

namespace innerloop {

/// An activation `A` with a smooth derivative `first`.
template <class M, class A>
struct SmoothActivation {
  using V = typename M::V;
  static constexpr bool kCurved = true;
  /// Returns a cotangent (or a tangent) times the derivative.
  IL_HD static V chain(V a, V z, V h, V slope) { return a * A::first(z, h, slope); }
};

/// kNeedsZ: derivatives read the pre-activation z and not only the output h.
/// kCurved: the second derivative is not identically zero; then there is `second`.
/// A piecewise linear activation has `chain` alone, which chooses rather than multiplies: a
/// derivative of 0 stops whatever arrives, overflow as well.
template <class M>
struct IdentityActivation {
  using V = typename M::V;
  static constexpr bool kNeedsZ = false, kCurved = false;
  IL_HD static V value(V z, V) { return z; }
  IL_HD static V chain(V a, V, V, V) { return a; }
};

/// relu and leaky_relu: `slope` on the negative side (0 for relu). The derivative at 0 is the
/// slope; for relu that is torch's choice. With slope < 0 the sign of h does not tell z's, hence
/// kNeedsZ.
template <class M>
struct LeakyReluActivation {
  using V = typename M::V;
  static constexpr bool kNeedsZ = true, kCurved = false;
  IL_HD static V value(V z, V slope) { return M::select_gt(z, M::set(0), z, slope * z); }
  IL_HD static V chain(V a, V z, V, V slope) { return M::select_gt(z, M::set(0), a, slope * a); }
};

template <class M>
struct ReluActivation {
  using V = typename M::V;
  static constexpr bool kNeedsZ = false, kCurved = false;
  // written so that NaN passes through, as in torch
  IL_HD static V value(V z, V) { return M::select_gt(M::set(0), z, M::set(0), z); }
  IL_HD static V chain(V a, V, V h, V) { return M::select_eq(h, M::set(0), M::set(0), a); }
};

template <class M>
struct TanhActivation : SmoothActivation<M, TanhActivation<M>> {
  using V = typename M::V;
  static constexpr bool kNeedsZ = false;
  IL_HD static V value(V z, V) { return M::tanh(z); }
  IL_HD static V first(V, V h, V) { return (M::set(1) - h) * (M::set(1) + h); }
  IL_HD static V second(V z, V h, V slope) { return M::set(-2) * h * first(z, h, slope); }
};

template <class M>
struct SigmoidActivation : SmoothActivation<M, SigmoidActivation<M>> {
  using V = typename M::V;
  static constexpr bool kNeedsZ = false;
  IL_HD static V value(V z, V) { return M::sigmoid(z); }
  IL_HD static V first(V, V h, V) { return h * (M::set(1) - h); }
  IL_HD static V second(V, V h, V) { return h * (M::set(1) - h) * (M::set(1) - M::set(2) * h); }
};

template <class M>
struct SoftplusActivation : SmoothActivation<M, SoftplusActivation<M>> {
  using V = typename M::V;
  static constexpr bool kNeedsZ = true;
  IL_HD static V value(V z, V) { return M::max(z, M::set(0)) + softplus_tail<M>(z); }
  IL_HD static V first(V z, V, V) {  // shares its exp with softplus_tail
    const V e = M::exp(-M::abs(z));
    return M::select_gt(z, M::set(0), M::set(1), e) / (M::set(1) + e);
  }
  IL_HD static V second(V z, V, V) {
    const Logistic<M> s(z);
    return s.up * s.down;
  }
};

template <class M>
struct SiluActivation : SmoothActivation<M, SiluActivation<M>> {
  using V = typename M::V;
  static constexpr bool kNeedsZ = true;
  IL_HD static V value(V z, V) { return z * M::sigmoid(z); }
  IL_HD static V first(V z, V, V) {
    const V s = M::sigmoid(z);
    return s * M::fma(z, M::set(1) - s, M::set(1));
  }
  IL_HD static V second(V z, V, V) {
    const V s = M::sigmoid(z);
    return s * (M::set(1) - s) * M::fma(z, M::fma(M::set(-2), s, M::set(1)), M::set(2));
  }
};

/// The exact (erf) form. density(z) = exp(-z^2 / 2) / sqrt(2 pi).
template <class M>
struct GeluActivation : SmoothActivation<M, GeluActivation<M>> {
  using V = typename M::V;
  static constexpr bool kNeedsZ = true;
  IL_HD static V density(V z) {
    return M::set(0.39894228040143267794) * M::exp(M::set(-0.5) * z * z);
  }
  IL_HD static V value(V z, V) { return z * M::normal_cdf(z); }
  IL_HD static V first(V z, V, V) { return M::fma(z, density(z), M::normal_cdf(z)); }
  IL_HD static V second(V z, V,
                        V) {  // density(40) is 0 in every dtype, the square of z may overflow
    const V far = M::select_gt(M::abs(z), M::set(40), M::set(40), z);
    return density(far) * (M::set(2) - far * far);
  }
};

/// Calls f(struct) with the activation's struct: one switch outside every loop.
template <class M, class F>
IL_HD inline void with_activation(Activation kind, F&& f) {
  switch (kind) {
    case Activation::kIdentity:
      return f(IdentityActivation<M>{});
    case Activation::kRelu:
      return f(ReluActivation<M>{});
    case Activation::kLeakyRelu:
      return f(LeakyReluActivation<M>{});
    case Activation::kTanh:
      return f(TanhActivation<M>{});
    case Activation::kSigmoid:
      return f(SigmoidActivation<M>{});
    case Activation::kSoftplus:
      return f(SoftplusActivation<M>{});
    case Activation::kSilu:
      return f(SiluActivation<M>{});
    case Activation::kGelu:
      return f(GeluActivation<M>{});
  }
}

template <class M>
IL_HD inline bool needs_z(Activation kind) {
  bool result = false;
  with_activation<M>(kind, [&](auto a) { result = decltype(a)::kNeedsZ; });
  return result;
}

template <class M>
IL_HD inline bool is_curved(Activation kind) {
  bool result = false;
  with_activation<M>(kind, [&](auto a) { result = decltype(a)::kCurved; });
  return result;
}

}  // namespace innerloop
