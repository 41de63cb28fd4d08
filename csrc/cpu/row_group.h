// Engine: what all parts of the row engine know: types, sizes, the call, the group of tasks that is
// worked on.
#pragma once

#include "core/objectives/all.h"
#include "cpu/row_leaves.h"
#include "cpu/row_values.h"

namespace innerloop {
namespace INNERLOOP_LEVEL {

template <class RealT>
class RowGroup {
 public:
  using Real = RealT;
  using S = Simd<Real>;
  using M = VectorMath<Real>;
  using V = typename S::V;
  using Elem = Real;
  using PerTask = Real;
  using R = Rows<Real>;
  using Out = Target<Real>;
  using WeightRef = Weight<Real, Real>;
  using BiasRef = Bias<Real, Real>;
  using Row = PaddedRow<Real>;
  static constexpr int kWidth = S::kLanes;
  static constexpr bool kBuildsResults = false;  // results are written in place
  static constexpr bool kTakesParts = true;
  static constexpr bool kReadsInPlace = false;  // as it always does
  using Shared = const PreparedLeaf<Real>*;

  RowGroup(const Problem& problem, const Plan& plan, Shared prepared)
      : problem_(problem), net_(*problem.net), plan_(plan), prepared_(prepared) {}

  static constexpr bool supports(LayerKind) { return true; }
  static int64_t pad(int64_t n) { return round_up(n, kWidth); }
  static int64_t turned(int64_t out, int64_t in) { return turned_size<Real>(out, in); }
  int64_t per_task_reals() const { return plan_.copies; }
  static Real* per_task(Real* values) { return values; }
  int64_t initial_size() const { return plan_.has_per_task_leaf ? plan_.block : 0; }
  int64_t direction_size() const { return plan_.block; }
  int64_t parameter_count() const { return net_.parameters; }
  int64_t row_count(const R& r) const { return used_ * r.rows; }
  Status status() const { return status_; }
  int64_t first() const { return first_; }

  void select(int64_t first, int64_t count) {
    first_ = first;
    used_ = count;
  }
  void set_sinks(Real* sink, Real* rate_sink) {
    sink_ = sink;
    rate_sink_ = rate_sink;
  }

 protected:
  /// Where a row of a task's leaf starts.
  static Real* at(const Out& o, int64_t task, int64_t row) {
    return o.p + task * o.task_stride + row * o.ld;
  }
  int64_t size(const R& r) const { return used_ * r.rows * r.ld; }

  const Problem& problem_;
  const Net& net_;
  const Plan& plan_;
  Shared prepared_;
  int64_t first_ = 0, used_ = 0;
  Real *sink_ = nullptr, *rate_sink_ = nullptr, *turned_ = nullptr, *head_ = nullptr;
  Status status_ = Status::kOk;
};

}  // namespace INNERLOOP_LEVEL
}  // namespace innerloop
