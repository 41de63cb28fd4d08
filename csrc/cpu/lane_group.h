// Engine: what all parts of the lane engine know: types, sizes, the call, the group of tasks that
// is worked on.
#pragma once

#include "core/objectives/all.h"
#include "core/plan.h"
#include "cpu/row_values.h"
#include "cpu/vector_math.h"

namespace innerloop {
namespace INNERLOOP_LEVEL {

template <class Real>
using Vector = typename Simd<Real>::V;
template <class Real>
using LaneRows = Rows<Vector<Real>>;

template <class RealT>
class LaneGroup {
 public:
  using Real = RealT;
  using S = Simd<Real>;
  using M = VectorMath<Real>;
  using V = typename S::V;
  using Elem = V;
  using PerTask = Real;
  using R = Rows<V>;
  using Out = Target<V>;
  using WeightRef = Weight<Real, V>;
  using BiasRef = Bias<Real, V>;
  using Row = TasksRow<Real>;
  static constexpr int kWidth = S::kLanes;
  static constexpr bool kBuildsResults = true;  // results are interleaved: built, then copied out
  static constexpr bool kTakesParts = false;
  static constexpr bool kReadsInPlace = true;
  struct Shared {};  // this engine reads shared leaves where they are

  LaneGroup(const Problem& problem, const Plan& plan, const Shared&)
      : problem_(problem), net_(*problem.net), plan_(plan) {}

  static constexpr bool supports(LayerKind) { return true; }
  static int64_t pad(int64_t n) { return n; }
  static int64_t turned(int64_t, int64_t) { return 0; }
  static int64_t per_task_reals() { return kWidth; }
  static Real* per_task(V* values) { return reinterpret_cast<Real*>(values); }
  int64_t initial_size() const { return plan_.has_per_task_leaf ? plan_.block : 0; }
  int64_t direction_size() const { return plan_.block; }
  int64_t parameter_count() const { return net_.parameters; }
  int64_t row_count(const R& r) const { return r.rows; }
  Status status() const { return status_; }
  int64_t first() const { return first_; }

  void select(int64_t first, int64_t count) {
    first_ = first;
    used_ = static_cast<int>(count);
  }
  void set_sinks(V* sink, Real* rate_sink) {
    sink_ = sink;
    rate_sink_ = rate_sink;
  }

 protected:
  static V bias_at(const BiasRef& b, int64_t j) {
    return b.own ? b.own[j] : b.shared ? S::set(b.shared[j]) : V{};
  }

  const Problem& problem_;
  const Net& net_;
  const Plan& plan_;
  int64_t first_ = 0;
  int used_ = 0;
  V* sink_ = nullptr;
  V* room_ = nullptr;                      // of the products with rows in place
  V *free_ = nullptr, *r_free_ = nullptr;  // the free leaf of the tasks, and a direction in it
  Real* rate_sink_ = nullptr;
  Status status_ = Status::kOk;
};

}  // namespace INNERLOOP_LEVEL
}  // namespace innerloop
