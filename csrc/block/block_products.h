// Products of the block engine: what the passes multiply, as BlockProducts.
#pragma once

#include "block/block_base.h"
#include "block/tensor_product.h"

namespace innerloop {

template <class BlockType, class RealType>
class BlockProducts : public BlockBase<BlockType, RealType> {
 public:
  using Base = BlockBase<BlockType, RealType>;
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
    weight_product(c, a, w, w.out, w.in, 1, w.ld, rate, sign, add);
  }
  IL_CALL void nn(const R& c, const R& a, const WeightRef& w, const PerTask* rate, Real sign,
                  bool add) const {
    weight_product(c, a, w, w.in, w.out, w.ld, 1, rate, sign, add);
  }
  IL_CALL void tn(const Out& to, const WeightRef* from, const LayerPlan& p, const R& a, const R& b,
                  const R* a2, const R* b2, const PerTask* rate, Real sign) const {
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
  /// One product over the stacked rows of all tasks of the group.
  IL_CALL void sink_tn(const LayerPlan& p, const R& a, const R& b, const R* a2, const R* b2,
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
  IL_CALL void rows_nt(const R& c, const R& a, const R& b) const {
    Product x = product_into(c, a, nullptr, 1, false);
    x.m = extent(a.rows);
    x.n = extent(b.rows);
    x.k = extent(a.cols);
    x.a_row = a.ld;
    x.a_col = 1;
    x.b = {b.p, nullptr};
    x.b_task = b.rows * b.ld;
    x.b_row = 1;
    x.b_col = b.ld;
    multiply(x);
  }
  IL_CALL void rows_nn(const R& c, const R& a, const R& b, const PerTask* rate, Real sign,
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
    multiply(x);
  }
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
  using Base::sink_;
  using Base::used_;

 private:
  /// n columns from k terms, of which neighbours lie `row` and `col` apart in the weight.
  IL_HD void weight_product(const R& c, const R& a, const WeightRef& w, int64_t n, int64_t k,
                            int64_t row, int64_t col, const PerTask* rate, Real sign,
                            bool add) const {
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
  IL_HD void multiply(const Product& x) const {
    if (x.tasks == 0 || x.m == 0 || x.n == 0) return;
    if (multiply_on_tensor_cores(block_, x)) return;
    start_product(block_, x);
    block_.barrier();
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
