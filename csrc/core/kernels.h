// The torch-free interface of the native operations: plain pointers in, status out. Each back end
// fills one table of these functions. All memory belongs to the caller except the workspace.
#pragma once

#include <cstdint>

#include "core/net.h"
#include "core/objectives/objective.h"
#include "core/solver.h"
#include "core/status.h"

namespace innerloop {

/// Parameter leaves in model order. A task stride (in elements) of 0 means shared by all tasks.
struct Leaves {
  const void* const* data;
  const int64_t* task_stride;
};

/// One batch per task: x [T, rows, D], y [T, rows, columns of the objective's targets] (or int64
/// classes [T, rows]), optional sample weights [T, rows] and optional row counts [T].
struct Side {
  int64_t rows;
  const void* x;
  const void* y;
  const void* weight;
  const int64_t* count;
  Objective objective;
};

/// Inner rates: leaf j, element e, step s, task t reads
/// data[t * task_stride + s * step_stride + (elementwise ? leaf_offset_j + e : j * leaf_stride)].
struct Rates {
  const void* data;
  int64_t task_stride;
  int64_t step_stride;
  int64_t leaf_stride;
  bool elementwise;
};

/// What all operations share.
struct Problem {
  const Net* net;
  int64_t tasks;
  Leaves params;
  int threads;
};

/// out [T, rows, K].
struct PredictCall {
  Problem problem;
  int64_t rows;
  const void* x;
  void* out;
};

/// out_loss [T]; out_grad [T, P] or null.
struct LossAndGradCall {
  Problem problem;
  Side side;
  void* out_loss;
  void* out_grad;
};

/// out [T, P]: Hessian, or Gauss-Newton matrix, of each task's loss times its vector. Several
/// vectors may share what does not depend on them: `tape`, of as many bytes as `tape_bytes` says,
/// is written where `out` is null and read where it is not.
struct HvpCall {
  Problem problem;
  Side side;
  Leaves vector;
  void* out;
  void* tape = nullptr;
};

/// K inner steps; gradients of the query loss with respect to initial parameters and rates.
/// adapt: one byte per leaf. Null outputs are not computed; grads == null computes losses only.
/// adapted [T, P] (or [T, S + 1, P] when stepwise) makes this the `adapt` operation: no query then.
struct MetaGradCall {
  Problem problem;
  int64_t steps;
  int order;
  Solver solver;
  const uint8_t* adapt;
  Rates rates;
  Side support;
  Side query;
  const void* task_weight;      // [T] or null for 1 / T
  void* out_loss;               // [T]
  void* out_support_loss;       // [T, S]
  void* out_query_loss;         // [T, S + 1]
  void* const* grads;           // one pointer per leaf
  const int64_t* grad_strides;  // 0: summed over tasks
  void* out_rate_grad;          // laid out as rates.data
  int64_t rate_grad_size;       // elements of out_rate_grad
  void* adapted;
  bool adapted_stepwise;
};

enum class Strategy : int { kAuto = 0, kLanes = 1, kRows = 2 };

/// The operations of one instruction level and one dtype.
struct Kernels {
  Status (*predict)(const PredictCall&, Strategy);
  Status (*loss_and_grad)(const LossAndGradCall&, Strategy);
  Status (*hvp)(const HvpCall&, Strategy);
  Status (*metric)(const HvpCall&, Strategy);
  Status (*meta_grad)(const MetaGradCall&, Strategy);
  int64_t (*tape_bytes)(const HvpCall&, Strategy);  // -1: more than can be addressed
};

}  // namespace innerloop
