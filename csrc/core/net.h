// The description of a network that every back end reads: plain data, no behaviour.
#pragma once

#include <cstdint>

#include "core/host_device.h"

namespace innerloop {

enum class Activation : int {
  kIdentity = 0,
  kRelu = 1,
  kLeakyRelu = 2,
  kTanh = 3,
  kSigmoid = 4,
  kSoftplus = 5,
  kSilu = 6,
  kGelu = 7,
};

/// core/layers says what they compute; the place of a name in python/innerloop/_chain.py.
enum class LayerKind : int {
  kAffine = 0,
  kLayerNorm = 1,  // constant: eps
};

/// One layer followed by an activation. Leaves are numbered weight, bias, layer by layer.
struct Layer {
  LayerKind kind = LayerKind::kAffine;
  double constant = 0;  // the kind's own number
  int64_t in;
  int64_t out;
  Activation activation;
  double slope;           // the activation's parameter (leaky_relu's negative slope)
  int weight_leaf;        // -1 without a weight, which an affine layer has
  int bias_leaf;          // -1 without a bias
  int64_t weight_offset;  // start of the leaf in the flat [P] order
  int64_t bias_offset;

  IL_HD int64_t weight_size() const { return kind == LayerKind::kAffine ? in * out : out; }
};

/// A free leaf belongs to no layer; objectives see it (core/objectives/objective.h). It comes last.
struct Net {
  const Layer* layers;
  int depth;
  int leaves;
  int64_t parameters;
  int64_t free = 0;  // its size; 0 without one

  IL_HD const Layer& first() const { return layers[0]; }
  IL_HD const Layer& last() const { return layers[depth - 1]; }
  int free_leaf() const { return free > 0 ? leaves - 1 : -1; }
  int64_t free_offset() const { return parameters - free; }
};

}  // namespace innerloop
