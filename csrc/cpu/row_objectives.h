// Objective: the rows of a side as the row engine reads them, with their weights, and their losses,
// for which rows become lanes.
#pragma once

#include "core/side_rows.h"
#include "cpu/row_maps.h"

namespace innerloop {
namespace INNERLOOP_LEVEL {

template <class RealT>
class RowObjectives : public RowMaps<RealT> {
 public:
  using Base = RowMaps<RealT>;
  using Base::Base, Base::kWidth;
  using typename Base::R, typename Base::BiasRef;
  using typename Base::Real, typename Base::S, typename Base::M, typename Base::V;

  struct SideData {
    R x;
    const Real* y;
    const int64_t* classes;
    Real* weight;    // [tasks * rows], padded with zeros to whole vectors
    Real* gradient;  // weight times the task's weight
    Real* losses;    // one per row
    Objective objective;
    TargetLayout targets;
    bool adds = false;  // to the losses of the rows before
  };

  // ---- rows ------------------------------------------------------------------------------------
  template <class C>
  SideData carve_side(C& c, const Side& side) const {
    const int64_t n = side.rows, in = net_.first().in, all = plan_.copies * n;
    const bool copies = side.weight || side.count;
    SideData d{};
    d.objective = side.objective;
    d.targets = target_layout(side.objective, net_.last().out);
    d.x = {copies ? c.take(round_up(all * in, kWidth)) : nullptr, n, in, in};
    d.weight = c.take(round_up(all, kWidth));
    d.gradient = c.take(round_up(all, kWidth));
    d.losses = c.take(round_up(all, kWidth));
    return d;
  }
  void load_side(SideData& d, const Side& side, const void* task_weight, bool is_query) {
    const int64_t n = side.rows, in = d.x.cols;
    load_row_weights(d, side, task_weight, is_query);
    const int64_t outputs = net_.last().out;
    if (d.targets.has_classes) {
      d.classes = static_cast<const int64_t*>(side.y) + first_ * n;
      for (int64_t r = 0; r < used_ * n; ++r) {
        if (d.weight[r] != 0 && (d.classes[r] < 0 || d.classes[r] >= outputs)) {
          status_ = Status::kBadLabel;
        }
      }
    } else {
      d.y = static_cast<const Real*>(side.y) + first_ * n * d.targets.columns;
    }
    const Real* x = static_cast<const Real*>(side.x) + first_ * n * in;
    if (!side.weight && !side.count) {
      d.x.p = const_cast<Real*>(x);
      return;
    }
    for (int64_t r = 0; r < used_ * n; ++r) {  // NaN in ignored rows must not meet a product
      if (d.weight[r] != 0) {
        std::memcpy(d.x.p + r * in, x + r * in, in * sizeof(Real));
      } else {
        std::memset(d.x.p + r * in, 0, in * sizeof(Real));
      }
    }
  }

  SideData part(const SideData& whole, int64_t first, int64_t rows) const {
    SideData d = whole;
    d.x.p += first * d.x.ld;
    d.x.rows = rows;
    if (d.classes) {
      d.classes += first;
    } else {
      d.y += first * d.targets.columns;
    }
    d.weight += first;
    d.gradient += first;
    d.losses += first;
    d.adds = first > 0;
    return d;
  }

  // ---- losses: rows become lanes ---------------------------------------------------------------
  void loss_gradient(const SideData& d, const R& out, const BiasRef& free, const R& gradient,
                     const R& free_gradient, Real* losses) {
    const V zero{};
    V *g = heads(2), *g_free = net_.free > 0 ? heads(6) : nullptr;
    with_objective<M>(d.objective, [&](const auto& objective) {
      for (int64_t r = 0; r < used_ * out.rows; r += kWidth) {
        const int n = static_cast<int>(smaller(kWidth, used_ * out.rows - r));
        const V value = objective.gradient(sample(d, out, free, r, n), g, g_free);
        const V w = S::load(d.weight + r), gw = S::load(d.gradient + r);
        S::store(d.losses + r, w == zero ? zero : w * value);
        store_rows(gradient, r, n, g, w, gw);
        if (g_free) store_rows(free_gradient, r, n, g_free, w, gw);
      }
    });
    for (int64_t t = 0; t < used_; ++t) {
      double total = 0;
      for (int64_t i = 0; i < out.rows; ++i) total += d.losses[t * out.rows + i];
      losses[t] = (d.adds ? losses[t] : Real(0)) + static_cast<Real>(total);
    }
    clear_padding(gradient);
    clear_padding(free_gradient);
  }
  template <class Direction>
  void loss_curvature(const SideData& d, const R& out, const BiasRef& free, const R& r_out,
                      const Direction& r_free, bool metric, const R& r_gradient,
                      const R& r_free_gradient) {
    V *g = heads(2), *rz = heads(3), *g_free = net_.free > 0 ? heads(6) : nullptr;
    with_objective<M>(d.objective, [&](const auto& objective) {
      for (int64_t r = 0; r < used_ * out.rows; r += kWidth) {
        const int n = static_cast<int>(smaller(kWidth, used_ * out.rows - r));
        const Sample<M> s = sample(d, out, free, r, n);
        interleave(reinterpret_cast<Real*>(rz), r_out.p + r * r_out.ld, r_out.ld, r_out.cols, n);
        V* rf = g_free ? free_head(5, r_free.bias, r_free.bias_rate, out.rows, r, n) : nullptr;
        if (metric) {
          objective.metric(s, rz, rf, g, g_free);
        } else {
          objective.curvature(s, rz, rf, g, g_free);
        }
        const V w = S::load(d.weight + r), gw = S::load(d.gradient + r);
        store_rows(r_gradient, r, n, g, w, gw);
        if (g_free) store_rows(r_free_gradient, r, n, g_free, w, gw);
      }
    });
    clear_padding(r_gradient);
    clear_padding(r_free_gradient);
  }

 protected:
  using Base::net_, Base::plan_, Base::problem_, Base::first_, Base::used_, Base::head_;
  using Base::status_;
  /// Numbers of rows as lanes. Targets of a policy are three times the outputs and one.
  int64_t head_columns() const { return net_.free > 0 ? 3 * net_.last().out + 1 : net_.last().out; }

 private:
  void load_row_weights(SideData& d, const Side& side, const void* task_weight, bool is_query) {
    const int64_t n = side.rows;
    for (int64_t t = 0; t < used_; ++t) {
      int64_t count = n;
      if (side.count) {
        count = side.count[first_ + t];
        if (count < 0 || count > n) {
          status_ = Status::kBadCount;
          count = 0;
        }
      }
      const Real* given =
          side.weight ? static_cast<const Real*>(side.weight) + (first_ + t) * n : nullptr;
      Real scale = 1;
      if (is_query) {
        scale = task_weight ? static_cast<const Real*>(task_weight)[first_ + t]
                            : Real(1) / static_cast<Real>(problem_.tasks);
      }
      const Real even =
          count ? even_weight<Real>(side, d.targets, net_.last().out, first_ + t, count) : Real(0);
      for (int64_t i = 0; i < n; ++i) {
        const Real w = i >= count ? Real(0) : given ? given[i] : even;
        d.weight[t * n + i] = w;
        d.gradient[t * n + i] = w * scale;
      }
    }
    for (int64_t i = used_ * n; i < round_up(used_ * n, kWidth); ++i) {
      d.weight[i] = 0;
      d.gradient[i] = 0;
    }
  }

  V* heads(int i) const { return reinterpret_cast<V*>(head_ + i * kWidth * head_columns()); }
  /// The free leaf of the task of each of n rows, times its rate.
  V* free_head(int i, const BiasRef& free, const Real* rate, int64_t rows, int64_t r, int n) const {
    V* to = heads(i);
    for (int64_t k = 0; k < net_.free; ++k) {
      V value{};
      for (int j = 0; j < n; ++j) {
        const int64_t task = (r + j) / rows;
        const Real* from = bias_of(free, task);
        value[j] = from ? (rate ? rate[task] * from[k] : from[k]) : Real(0);
      }
      to[k] = value;
    }
    return to;
  }
  /// Stores a weighted gradient of n rows.
  static void store_rows(const R& to, int64_t r, int n, V* g, V w, V gw) {
    const V zero{};
    for (int64_t j = 0; j < to.cols; ++j) g[j] = w == zero ? zero : gw * g[j];
    deinterleave(to.p + r * to.ld, to.ld, reinterpret_cast<Real*>(g), to.cols, n);
  }
  /// Outputs and targets of rows r .. r + n - 1 as lanes.
  Sample<M> sample(const SideData& d, const R& out, const BiasRef& free, int64_t r, int n) const {
    V *z = heads(0), *y = heads(1);
    interleave(reinterpret_cast<Real*>(z), out.p + r * out.ld, out.ld, out.cols, n);
    if (d.classes) {
      V label{};
      for (int i = 0; i < n; ++i) label[i] = static_cast<Real>(d.classes[r + i]);
      y[0] = label;
    } else {
      const int64_t columns = d.targets.columns;
      interleave(reinterpret_cast<Real*>(y), d.y + r * columns, columns, columns, n);
    }
    return {z, y, out.cols, free_head(4, free, nullptr, out.rows, r, n)};
  }
  void clear_padding(const R& r) const {
    if (r.ld == r.cols) return;
    for (int64_t i = 0; i < used_ * r.rows; ++i) {
      for (int64_t j = r.cols; j < r.ld; ++j) r.p[i * r.ld + j] = 0;
    }
  }
};

}  // namespace INNERLOOP_LEVEL
}  // namespace innerloop
