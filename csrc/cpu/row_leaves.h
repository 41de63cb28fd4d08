// Engine: leaves of the row engine: where a task's lie, and those that all tasks share made ready
// once per call.
#pragma once

#include "core/plan.h"
#include "cpu/row_gemm.h"

namespace innerloop {
namespace INNERLOOP_LEVEL {

/// Shared leaves made ready once per call: padded rows, and transposed panels for X W^T.
template <class Real>
struct PreparedLeaf {
  const Real* weight = nullptr;
  int64_t ld = 0;
  const Real* turned = nullptr;
  const Real* bias = nullptr;
};

/// The size of a weight's transposed panels.
template <class Real>
static int64_t turned_size(int64_t out, int64_t in) {
  return round_up(out, kPanelVectors * Simd<Real>::kLanes) * in;
}
template <class Real>
static void copy_padded(Real* to, int64_t to_ld, const Real* from, int64_t from_ld, int64_t rows,
                        int64_t columns) {
  for (int64_t i = 0; i < rows; ++i) {
    std::memcpy(to + i * to_ld, from + i * from_ld, columns * sizeof(Real));
    std::memset(to + i * to_ld + columns, 0, (to_ld - columns) * sizeof(Real));
  }
}

/// Numbers that `prepare_leaves` writes at most.
template <class Real>
static int64_t prepared_size(const Plan& plan) {
  int64_t size = 0;
  for (int l = 0; l < plan.entries; ++l) {
    const LayerPlan& p = plan.layers[l];
    const int64_t panels = p.diagonal ? 0 : turned_size<Real>(p.out, p.in);
    size += round_up(p.weight_size() + panels + p.ld_out, Simd<Real>::kLanes);
  }
  return size;
}
template <class Real>
static void prepare_leaves(const Problem& problem, const Plan& plan, PreparedLeaf<Real>* prepared,
                           Real* memory) {
  Carver<Real> c(memory);
  for (int l = 0; l < plan.entries; ++l) {
    const LayerPlan& p = plan.layers[l];
    PreparedLeaf<Real>& leaf = prepared[l];
    if (p.weight_leaf >= 0 && !p.weight_per_task) {
      const Real* w = static_cast<const Real*>(problem.params.data[p.weight_leaf]);
      const int64_t rows = p.weight_rows(), cols = p.weight_cols(), ld = p.weight_ld();
      if (!p.diagonal) {
        Real* turned_copy = c.take(turned_size<Real>(p.out, p.in));
        pack_transposed(turned_copy, w, p.in, p.out, p.in);
        leaf.turned = turned_copy;
      }
      leaf.weight = w;
      leaf.ld = cols;
      if (ld != cols) {
        Real* padded = c.take(rows * ld);
        copy_padded(padded, ld, w, cols, rows, cols);
        leaf.weight = padded;
        leaf.ld = ld;
      }
    }
    if (p.bias_leaf >= 0 && !p.bias_per_task) {
      Real* bias = c.take(p.ld_out);
      copy_padded(bias, p.ld_out, static_cast<const Real*>(problem.params.data[p.bias_leaf]), p.out,
                  1, p.out);
      leaf.bias = bias;
    }
  }
}

template <class Real>
static Weight<Real, Real> empty_weight(const LayerPlan& p) {
  Weight<Real, Real> w;
  w.out = p.weight_rows();
  w.in = p.weight_cols();
  w.diagonal = p.diagonal;
  return w;
}
/// Task `task`'s bias, or the one of all tasks; null where there is none.
template <class Real>
static const Real* bias_of(const Bias<Real, Real>& b, int64_t task) {
  return b.shared ? b.shared : b.own ? b.own + task * b.task_stride : nullptr;
}
/// Task `task`'s weight likewise.
template <class Real>
static const Real* weight_of(const Weight<Real, Real>& w, int64_t task) {
  return w.shared ? w.shared : w.own ? w.own + task * w.task_stride : nullptr;
}

}  // namespace INNERLOOP_LEVEL
}  // namespace innerloop
