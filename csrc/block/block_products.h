// Products of the block engine: what the passes multiply, as BlockProducts.
#pragma once

#include "block/block_exchange.h"
#include "block/staged_product.h"
#include "block/tensor_product.h"

namespace innerloop {

template <class BlockType, class RealType>
class BlockProducts : public BlockExchange<BlockType, RealType> {
 public:
  using Base = BlockExchange<BlockType, RealType>;
  using Base::Base;
  using typename Base::Elem;
  using typename Base::Out;
  using typename Base::PerTask;
  using typename Base::Product;
  using typename Base::R;
  using typename Base::Real;
  using typename Base::WeightRef;

  IL_CALL void nt(const R& c, const R& a, const WeightRef& w, const PerTask* rate, Real sign,
                  bool add) const {
    if constexpr (Base::kCluster) {
      this->each_part(a.rows, [&](auto part) {
        const R to = part(c), from = part(a);
        if (w.split == Split::kInputs) {
          const R share = this->share(to.rows, to.cols);
          own_nt(share, this->own_columns(from, w.in), w, rate, sign, false);
          this->sum_shares(to, share, add);
        } else {
          own_nt(to, this->gathered(from, w.in), w, rate, sign, add);
        }
      });
    } else {
      own_nt(c, a, w, rate, sign, add);
    }
  }
  IL_CALL void nn(const R& c, const R& a, const WeightRef& w, const PerTask* rate, Real sign,
                  bool add) const {
    if constexpr (Base::kCluster) {
      if (w.split == Split::kOutputs) {
        this->each_part(a.rows, [&](auto part) {
          const R to = part(c), share = this->share(to.rows, w.in);
          own_nn(share, part(a), w, rate, sign, false);
          this->sum_shares(to, share, add);
        });
        return;
      }
    }
    own_nn(c, a, w, rate, sign, add);
  }
  IL_CALL void tn(const Out& to, const WeightRef* from, const LayerPlan& p, const R& a, const R& b,
                  const R* a2, const R* b2, const PerTask* rate, Real sign) const {
    if constexpr (Base::kCluster) {
      WeightRef sum = Base::empty_weight(p);
      sum.own = to.p;
      sum.ld = to.ld;
      sum.task_stride = to.task_stride;
      const WeightRef* base = from;
      with_inputs(p, a, b, a2, b2, [&](const R& x, const R& y, const R* x2, const R* y2) {
        own_tn(to, base, p, x, y, x2, y2, rate, sign);
        base = &sum;
      });
    } else {
      own_tn(to, from, p, a, b, a2, b2, rate, sign);
    }
  }
  /// One product over the stacked rows of all tasks of the group.
  IL_CALL void sink_tn(const LayerPlan& p, const R& a, const R& b, const R* a2, const R* b2,
                       Real sign) const {
    if constexpr (Base::kCluster) {
      with_inputs(p, a, b, a2, b2, [&](const R& x, const R& y, const R* x2, const R* y2) {
        own_sink_tn(p, x, y, x2, y2, sign);
      });
    } else {
      own_sink_tn(p, a, b, a2, b2, sign);
    }
  }
  IL_HD void rows_nt(const R& c, const R& a, const R& b) const {
    start_rows_nt(c, a, b, nullptr, 1, false);
    end_phase();
  }
  IL_HD void rows_nn(const R& c, const R& a, const R& b, const PerTask* rate, Real sign,
                     bool add) const {
    start_rows_nn(c, a, b, rate, sign, add);
    end_phase();
  }
  /// The same without the barrier: products that do not meet share a phase.
  IL_CALL void start_rows_nt(const R& c, const R& a, const R& b, const PerTask* rate, Real sign,
                             bool add) const {
    Product x = product_into(c, a, rate, sign, add);
    x.m = extent(a.rows);
    x.n = extent(b.rows);
    x.k = extent(a.cols);
    x.a_row = a.ld;
    x.a_col = 1;
    x.b = {b.p, nullptr};
    x.b_task = b.rows * b.ld;
    x.b_row = 1;
    x.b_col = b.ld;
    start_product(block_, x);
  }
  IL_CALL void start_rows_nn(const R& c, const R& a, const R& b, const PerTask* rate, Real sign,
                             bool add) const {
    Product x = product_into(c, a, rate, sign, add);
    x.m = extent(a.rows);
    x.n = extent(b.cols);
    x.k = extent(a.cols);
    x.a_row = a.ld;
    x.a_col = 1;
    x.b = {b.p, nullptr};
    x.b_task = b.rows * b.ld;
    x.b_row = b.ld;
    x.b_col = 1;
    start_product(block_, x);
  }
  IL_HD void end_phase() const { block_.barrier(); }
  IL_CALL void rows_tn(const R& c, const R& a, const R& b) const {
    Product x = product_into(c, a, nullptr, 1, false);
    x.m = extent(a.cols);
    x.n = extent(b.cols);
    x.k = extent(a.rows);
    x.a_row = 1;
    x.a_col = a.ld;
    x.b = {b.p, nullptr};
    x.b_task = b.rows * b.ld;
    x.b_row = b.ld;
    x.b_col = 1;
    multiply(x);
  }

 protected:
  using Base::block_;
  using Base::extent;
  using Base::options_;
  using Base::sink_;
  using Base::staging_;
  using Base::used_;

 private:
  /// f(a, b, a2, b2), part by part of the rows, with the inputs b and b2 that meet this block's
  /// part of a layer's weight.
  template <class F>
  IL_HD void with_inputs(const LayerPlan& p, const R& a, const R& b, const R* a2, const R* b2,
                         F f) const {
    const auto inputs = [&](const R& in) {
      return p.split == Split::kOutputs ? this->gathered(in, p.in) : this->own_columns(in, p.in);
    };
    this->each_part(a.rows, [&](auto part) {
      const R left = part(a), right = inputs(part(b));
      if (!a2) return f(left, right, nullptr, nullptr);
      const R left2 = part(*a2), right2 = inputs(part(*b2));
      f(left, right, &left2, &right2);
    });
  }
  /// Products of this block's parts.
  IL_HD void own_nt(const R& c, const R& a, const WeightRef& w, const PerTask* rate, Real sign,
                    bool add) const {
    own_product(c, a, w, w.out, w.in, 1, w.ld, rate, sign, add);
  }
  IL_HD void own_nn(const R& c, const R& a, const WeightRef& w, const PerTask* rate, Real sign,
                    bool add) const {
    own_product(c, a, w, w.in, w.out, w.ld, 1, rate, sign, add);
  }
  /// n columns from k terms, of which neighbours lie `row` and `col` apart in the weight.
  IL_HD void own_product(const R& c, const R& a, const WeightRef& w, int64_t n, int64_t k,
                         int64_t row, int64_t col, const PerTask* rate, Real sign, bool add) const {
    Product x = product_into(c, a, rate, sign, add);
    x.m = extent(a.rows);
    x.n = extent(n);
    x.k = extent(k);
    x.a_row = a.ld;
    x.a_col = 1;
    x.b = {w.own, w.shared};
    x.b_task = w.task_stride;
    x.b_row = row;
    x.b_col = col;
    multiply(stacked(x));
  }
  IL_HD void own_tn(const Out& to, const WeightRef* from, const LayerPlan& p, const R& a,
                    const R& b, const R* a2, const R* b2, const PerTask* rate, Real sign) const {
    Product x = outer(p, a, b, a2, b2);
    x.tasks = used_;
    x.k = extent(a.rows);
    x.c = to.p;
    x.c_task = to.task_stride;
    x.c_row = to.ld;
    if (from) {
      x.c0 = {from->own, from->shared};
      x.c0_task = from->task_stride;
      x.c0_row = from->ld;
    }
    x.rate = rate;
    x.sign = sign;
    multiply(x);
  }
  IL_HD void own_sink_tn(const LayerPlan& p, const R& a, const R& b, const R* a2, const R* b2,
                         Real sign) const {
    Product x = outer(p, a, b, a2, b2);
    x.k = used_ * extent(a.rows);
    x.c = sink_ + p.sink_w;
    x.c_row = p.ld_in;
    x.c0 = {x.c, nullptr};
    x.c0_row = p.ld_in;
    x.sign = sign;
    multiply(x);
  }
  IL_HD void multiply(const Product& x) const {
    if (x.tasks == 0 || x.m == 0 || x.n == 0) return;
    if (multiply_on_tensor_cores(block_, x)) return;
    if (staging_ && pays_staged(block_, x)) {
      multiply_staged(block_, x, staging_, options_.in_shared);
    } else {
      start_product(block_, x);
      block_.barrier();
    }
  }
  /// A weight that all tasks of the group share meets their stacked rows as one matrix.
  IL_HD static Product stacked(Product x) {
    if (x.b_task == 0 && !x.rate) {
      x.m *= static_cast<int>(x.tasks);
      x.tasks = x.tasks > 0 ? 1 : 0;
    }
    return x;
  }
  IL_HD Product product_into(const R& c, const R& a, const PerTask* rate, Real sign,
                             bool add) const {
    Product x;
    x.tasks = used_;
    x.a = a.p;
    x.a_task = a.rows * a.ld;
    x.c = c.p;
    x.c_task = c.rows * c.ld;
    x.c_row = c.ld;
    if (add) {
      x.c0 = {c.p, nullptr};
      x.c0_task = x.c_task;
      x.c0_row = x.c_row;
    }
    x.rate = rate;
    x.sign = sign;
    return x;
  }
  IL_HD static Product outer(const LayerPlan& p, const R& a, const R& b, const R* a2, const R* b2) {
    Product x;
    x.m = extent(p.out);
    x.n = extent(p.in);
    x.a = a.p;
    x.a_task = a.rows * a.ld;
    x.a_row = 1;
    x.a_col = a.ld;
    x.b = {b.p, nullptr};
    x.b_task = b.rows * b.ld;
    x.b_row = b.ld;
    x.b_col = 1;
    x.a2 = a2 ? a2->p : nullptr;
    x.b2 = b2 ? b2->p : nullptr;
    return x;
  }
};

}  // namespace innerloop
