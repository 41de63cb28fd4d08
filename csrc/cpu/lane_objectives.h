// Objective: the rows of a side as the lane engine reads them, with their weights, and their
// losses.
#pragma once

#include <type_traits>

#include "core/side_rows.h"
#include "cpu/lane_maps.h"

namespace innerloop {
namespace INNERLOOP_LEVEL {

template <class RealT>
class LaneObjectives : public LaneMaps<RealT> {
 public:
  using Base = LaneMaps<RealT>;
  using Base::Base, Base::kWidth;
  using typename Base::R, typename Base::BiasRef;
  using typename Base::Real, typename Base::S, typename Base::M, typename Base::V;

  struct SideData {
    R x;
    V* y;         // [rows, columns of the targets]
    V* weight;    // [rows]: of the loss
    V* gradient;  // [rows]: weight times the task's weight
    Objective objective;
    TargetLayout targets;
    bool has_even_weights = false;  // of a full group all of whose rows count alike
  };

  // ---- rows ------------------------------------------------------------------------------------
  template <class C>
  SideData carve_side(C& c, const Side& side) const {
    const int64_t n = side.rows, in = net_.first().in;
    SideData d;
    d.objective = side.objective;
    d.targets = target_layout(side.objective, net_.last().out);
    d.x = {c.take(plan_.reads_in_place ? 0 : n * in), n, in, in};
    d.y = c.take(n * d.targets.columns);
    d.weight = c.take(n);
    d.gradient = c.take(n);
    return d;
  }
  void load_side(SideData& d, const Side& side, const void* task_weight, bool is_query) {
    load_inputs(d.x, side.x);
    load_row_weights(d, side, task_weight, is_query);
    load_targets(d, side);
    if (!side.weight && !side.count) return;
    const int64_t columns = d.targets.columns;
    for (int64_t i = 0; i < side.rows; ++i) {  // NaN in ignored rows must not meet a product
      for (int64_t j = 0; j < d.x.cols; ++j) keep_if_weighted(d.x.p[i * d.x.ld + j], d.weight[i]);
      for (int64_t j = 0; j < columns; ++j) keep_if_weighted(d.y[i * columns + j], d.weight[i]);
    }
  }
  void load_inputs(R& x, const void* data) {
    const int64_t size = x.rows * x.cols;
    const Real* from = static_cast<const Real*>(data) + first_ * size;
    if (plan_.reads_in_place) {
      x = in_place<Real>(from, x.rows, x.cols);
    } else {
      interleave(reinterpret_cast<Real*>(x.p), from, size, size, used_);
    }
  }

  // ---- losses ----------------------------------------------------------------------------------
  void loss_gradient(const SideData& d, const R& out, const BiasRef& free, const R& gradient,
                     const R& free_gradient, Real* losses) {
    V total{};
    const V zero{};
    load_free(free_, free, nullptr);
    with_objective<M>(d.objective, [&](const auto& objective) {
      V sum{};  // in a register
      each_row(objective, out, [&](int64_t i, int64_t columns) __attribute__((always_inline)) {
        V* g = gradient.p + i * gradient.ld;
        V* g_free = free_gradient.p + i * free_gradient.ld;
        const V value = objective.gradient(sample(d, out, i, columns), g, g_free);
        const V w = d.weight[i], gw = d.gradient[i];
        sum += w == zero ? zero : w * value;
        for (int64_t k = 0; k < columns; ++k) g[k] = w == zero ? zero : gw * g[k];
        if constexpr (std::decay_t<decltype(objective)>::kFree) {
          for (int64_t k = 0; k < free_gradient.cols; ++k) {
            g_free[k] = w == zero ? zero : gw * g_free[k];
          }
        }
      });
      total = sum;
    });
    S::store(losses, total);
  }
  template <class Direction>
  void loss_curvature(const SideData& d, const R& out, const BiasRef& free, const R& r_out,
                      const Direction& r_free, bool metric, const R& r_gradient,
                      const R& r_free_gradient) {
    const V zero{};
    load_free(free_, free, nullptr);
    load_free(r_free_, r_free.bias, r_free.bias_rate);
    with_objective<M>(d.objective, [&](const auto& objective) {
      each_row(objective, out, [&](int64_t i, int64_t columns) __attribute__((always_inline)) {
        V* g = r_gradient.p + i * r_gradient.ld;
        V* g_free = r_free_gradient.p + i * r_free_gradient.ld;
        const Sample<M> s = sample(d, out, i, columns);
        const V* rz = r_out.p + i * r_out.ld;
        if (metric) {
          objective.metric(s, rz, r_free_, g, g_free);
        } else {
          objective.curvature(s, rz, r_free_, g, g_free);
        }
        const V w = d.weight[i], gw = d.gradient[i];
        for (int64_t k = 0; k < columns; ++k) g[k] = w == zero ? zero : gw * g[k];
        if constexpr (std::decay_t<decltype(objective)>::kFree) {
          for (int64_t k = 0; k < r_free_gradient.cols; ++k) {
            g_free[k] = w == zero ? zero : gw * g_free[k];
          }
        }
      });
    });
  }

 protected:
  using Base::bias_at, Base::net_, Base::plan_, Base::problem_, Base::first_, Base::used_;
  using Base::status_, Base::free_, Base::r_free_;

 private:
  static void keep_if_weighted(V& value, V weight) { value = weight == V{} ? V{} : value; }
  void load_row_weights(SideData& d, const Side& side, const void* task_weight, bool is_query) {
    const bool plain = !side.weight && !side.count;
    const bool whole = used_ == kWidth;
    const bool even_weights = plain && whole && !d.targets.class_weights && !task_weight;
    if (even_weights && d.has_even_weights) return;  // those of the group before
    d.has_even_weights = even_weights;
    V scale = S::set(1);
    if (is_query && whole && !task_weight) {
      scale = S::set(Real(1) / static_cast<Real>(problem_.tasks));
    } else if (is_query) {
      for (int i = 0; i < kWidth; ++i) {
        scale[i] = i >= used_    ? Real(0)
                   : task_weight ? static_cast<const Real*>(task_weight)[first_ + i]
                                 : Real(1) / static_cast<Real>(problem_.tasks);
      }
    }
    V even{};
    int64_t counts[kWidth] = {};
    if (plain && whole && !d.targets.class_weights) {
      even = S::set(Real(1) / static_cast<Real>(side.rows));
    } else {
      for (int i = 0; i < used_; ++i) {
        counts[i] = rows_in_use(side, first_ + i);
        even[i] = even_weight<Real>(side, d.targets, net_.last().out, first_ + i, counts[i]);
      }
    }
    for (int64_t r = 0; r < side.rows; ++r) {
      V w = even;
      if (!plain) {
        for (int i = 0; i < used_; ++i) {
          w[i] = row_weight(side, first_ + i, r, counts[i], even[i]);
        }
      }
      d.weight[r] = w;
      d.gradient[r] = w * scale;
    }
  }
  int64_t rows_in_use(const Side& side, int64_t task) {
    if (!side.count) return side.rows;
    const int64_t count = side.count[task];
    if (count >= 0 && count <= side.rows) return count;
    status_ = Status::kBadCount;
    return 0;
  }
  Real row_weight(const Side& side, int64_t task, int64_t row, int64_t count, Real even) const {
    if (row >= count) return 0;
    if (side.weight) return static_cast<const Real*>(side.weight)[task * side.rows + row];
    return even;
  }
  void load_targets(SideData& d, const Side& side) {
    if (!d.targets.has_classes) {
      const int64_t size = side.rows * d.targets.columns;
      interleave(reinterpret_cast<Real*>(d.y), static_cast<const Real*>(side.y) + first_ * size,
                 size, size, used_);
      return;
    }
    const int64_t* labels = static_cast<const int64_t*>(side.y) + first_ * side.rows;
    for (int64_t r = 0; r < side.rows; ++r) {
      V y{};
      for (int i = 0; i < used_; ++i) {
        const int64_t label = labels[i * side.rows + r];
        if (d.weight[r][i] != 0 && (label < 0 || label >= net_.last().out)) {
          status_ = Status::kBadLabel;
        }
        y[i] = static_cast<Real>(label);
      }
      d.y[r] = y;
    }
  }

  /// The free leaf of each lane's task, times its rate; zero where there is none to be read.
  void load_free(V* to, const BiasRef& from, const Real* rate) const {
    const V scale = rate ? S::load(rate) : S::set(1);
    for (int64_t k = 0; k < net_.free; ++k)
      to[k] = rate ? scale * bias_at(from, k) : bias_at(from, k);
  }
  /// f(row, columns) for all rows of outputs; where one number is compared with another, with one
  /// column that the compiler knows of.
  template <class O, class F>
  static INNERLOOP_INLINE void each_row(const O&, const R& out, F f) {
    if constexpr (!O::kFree && !O::kClasses) {
      if (out.cols == 1) {
        for (int64_t i = 0; i < out.rows; ++i) f(i, 1);
        return;
      }
    }
    for (int64_t i = 0; i < out.rows; ++i) f(i, out.cols);
  }
  INNERLOOP_INLINE Sample<M> sample(const SideData& d, const R& out, int64_t i,
                                    int64_t columns) const {
    return {out.p + i * out.ld, d.y + i * d.targets.columns, columns, free_};
  }
};

}  // namespace INNERLOOP_LEVEL
}  // namespace innerloop
