// Activations: value, first and second derivative, written once for any element type. `M` supplies
// the element type `M::V` and its arithmetic (vector lanes on the CPU, one value on a GPU).
#pragma once

#include "core/net.h"

namespace innerloop {

/// kNeedsZ: derivatives read the pre-activation z and not only the output h.
/// kCurved: the second derivative is not identically zero.
template <class M>
struct IdentityActivation {
  using V = typename M::V;
  static constexpr bool kNeedsZ = false, kCurved = false;
  IL_HD static V value(V z, V) { return z; }
  IL_HD static V first(V, V, V) { return M::set(1); }
  IL_HD static V second(V, V, V) { return M::set(0); }
};

/// relu and leaky_relu: `slope` on the negative side (0 for relu). The derivative at 0 is the
/// slope; for relu that is torch's choice. With slope < 0 the sign of h does not tell z's, hence
/// kNeedsZ.
template <class M>
struct LeakyReluActivation {
  using V = typename M::V;
  static constexpr bool kNeedsZ = true, kCurved = false;
  IL_HD static V value(V z, V slope) { return M::select_gt(z, M::set(0), z, slope * z); }
  IL_HD static V first(V z, V, V slope) { return M::select_gt(z, M::set(0), M::set(1), slope); }
  IL_HD static V second(V, V, V) { return M::set(0); }
};

template <class M>
struct ReluActivation {
  using V = typename M::V;
  static constexpr bool kNeedsZ = false, kCurved = false;
  // written so that NaN passes through, as in torch
  IL_HD static V value(V z, V) { return M::select_gt(M::set(0), z, M::set(0), z); }
  IL_HD static V first(V, V h, V) { return M::select_gt(h, M::set(0), M::set(1), M::set(0)); }
  IL_HD static V second(V, V, V) { return M::set(0); }
};

template <class M>
struct TanhActivation {
  using V = typename M::V;
  static constexpr bool kNeedsZ = false, kCurved = true;
  IL_HD static V value(V z, V) { return M::tanh(z); }
  IL_HD static V first(V, V h, V) { return M::set(1) - h * h; }
  IL_HD static V second(V, V h, V) { return M::set(-2) * h * (M::set(1) - h * h); }
};

template <class M>
struct SigmoidActivation {
  using V = typename M::V;
  static constexpr bool kNeedsZ = false, kCurved = true;
  IL_HD static V value(V z, V) { return M::sigmoid(z); }
  IL_HD static V first(V, V h, V) { return h * (M::set(1) - h); }
  IL_HD static V second(V, V h, V) { return h * (M::set(1) - h) * (M::set(1) - M::set(2) * h); }
};

template <class M>
struct SoftplusActivation {
  using V = typename M::V;
  static constexpr bool kNeedsZ = true, kCurved = true;
  IL_HD static V value(V z, V) { return M::softplus(z); }
  IL_HD static V first(V z, V, V) { return M::sigmoid(z); }
  IL_HD static V second(V z, V, V) {
    const V s = M::sigmoid(z);
    return s * (M::set(1) - s);
  }
};

template <class M>
struct SiluActivation {
  using V = typename M::V;
  static constexpr bool kNeedsZ = true, kCurved = true;
  IL_HD static V value(V z, V) { return z * M::sigmoid(z); }
  IL_HD static V first(V z, V, V) {
    const V s = M::sigmoid(z);
    return s * (M::set(1) + z * (M::set(1) - s));
  }
  IL_HD static V second(V z, V, V) {
    const V s = M::sigmoid(z);
    return s * (M::set(1) - s) * (M::set(2) + z * (M::set(1) - M::set(2) * s));
  }
};

/// The exact (erf) form. density(z) = exp(-z^2 / 2) / sqrt(2 pi).
template <class M>
struct GeluActivation {
  using V = typename M::V;
  static constexpr bool kNeedsZ = true, kCurved = true;
  IL_HD static V density(V z) {
    return M::set(0.39894228040143267794) * M::exp(M::set(-0.5) * z * z);
  }
  IL_HD static V value(V z, V) { return z * M::normal_cdf(z); }
  IL_HD static V first(V z, V, V) { return M::normal_cdf(z) + z * density(z); }
  IL_HD static V second(V z, V, V) { return density(z) * (M::set(2) - z * z); }
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
