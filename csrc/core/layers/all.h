// The kinds of layers, one line each: from what a network names to the struct that computes it.
#pragma once

#include "core/layers/affine.h"
#include "core/layers/layer_norm.h"

namespace innerloop {

constexpr LayerKind kLastLayerKind = LayerKind::kLayerNorm;

/// f(struct) of a kind of layer that engine E has.
template <class E, class F>
IL_HD inline auto with_layer(LayerKind kind, F&& f) {
  if constexpr (E::supports(LayerKind::kLayerNorm)) {
    if (kind == LayerKind::kLayerNorm) return f(LayerNormLayer<E>{});
  }
  return f(AffineLayer<E>{});
}

/// Whether an engine has all layers of a network.
template <class E>
inline bool supports(const Net& net) {
  for (int l = 0; l < net.depth; ++l) {
    if (!E::supports(net.layers[l].kind)) return false;
  }
  return true;
}

}  // namespace innerloop
