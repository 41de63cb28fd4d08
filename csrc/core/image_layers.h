// Layers of the batched back end that have passes of their own: what a call is given. Rows have
// their channels last in memory, [tasks, rows, height, width, channels]; weights of a convolution
// lie as [kernel height, kernel width, in, out]. All arrays are in C order, of one dtype. A null
// pointer stands for zeros where it is read, and for what nobody wants where it is written.
#pragma once

#include <cstdint>

#include "core/status.h"

namespace innerloop {

/// A tensor [tasks, ...], or one that all tasks share (task_stride 0).
struct Operand {
  const void* data;
  int64_t task_stride;
};

struct Convolution {
  int64_t tasks, rows;
  int64_t in, height, width;
  int64_t out, out_height, out_width;
  int64_t kernel[2], stride[2], padding[2], dilation[2];
  int threads;

  int64_t taps() const { return kernel[0] * kernel[1]; }
  int64_t patch() const { return taps() * in; }
  int64_t weights() const { return patch() * out; }
  int64_t places() const { return out_height * out_width; }
};

/// y = x[0] * w[0] + x[1] * w[1] + bias: a forward pass, or its derivative along a direction.
struct ConvolveCall {
  Convolution layer;
  const void* x[2];
  Operand w[2];
  Operand bias;
  void* y;
};

/// The gradients of sum_i <g[i], x[i] * w[i]> in x and in w, over those i of which both factors are
/// there, and the sums of g[0] over places: a backward pass, or its derivative along a direction.
struct ConvolveBackCall {
  Convolution layer;
  const void* g[2];
  const void* x[2];
  Operand w[2];
  void* gx;
  void* gw;  // [tasks, kernel height, kernel width, in, out]
  void* gb;  // [tasks, out]
};

/// y = pool(relu(batch_norm(x))) with the formulas of innerloop/_batched/blocks.py: windows without
/// overlap or padding (1 x 1: no pool).
struct NormBlock {
  int64_t tasks, rows, channels, height, width;
  int64_t window[2];
  bool has_relu;
  double eps;
  int threads;

  int64_t out_height() const { return height / window[0]; }
  int64_t out_width() const { return width / window[1]; }
  int64_t places() const { return height * width; }
  int64_t chosen() const { return out_height() * out_width(); }
  bool has_pool() const { return window[0] * window[1] != 1; }
};

/// What one of the four passes reads and writes. Sums are [tasks, channels].
struct NormBlockCall {
  NormBlock layer;
  Operand w, b;
  const void* x;
  // of the forward pass: x -> statistics [2]: the mean and s; the chosen x (none where there is no
  // pool), y
  void *statistics, *chosen, *y;
  // of the backward pass: g -> gx, gw, gb; sums [2]: G0, G1
  const void* g;
  void *gx, *gw, *gb, *sums;
  // of the derivative: x. -> y.; sums [3]: A, K = s^2 C, E. `second` reads x., g. and w. and writes
  // gx, gw, gb
  const void* x_dot;
  Operand w_dot, b_dot;
  const void* g_dot;
  void *y_dot, *dot_sums;
};

/// The entries of one instruction level and dtype.
struct LayerKernels {
  Status (*convolve)(const ConvolveCall&);
  Status (*convolve_back)(const ConvolveBackCall&);
  Status (*norm_forward)(const NormBlockCall&);
  Status (*norm_backward)(const NormBlockCall&);
  Status (*norm_tangent)(const NormBlockCall&);
  Status (*norm_second)(const NormBlockCall&);
};

}  // namespace innerloop
