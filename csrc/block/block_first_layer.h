// How the block engine takes part in products that other launches take for all tasks at once
// (block/first_layer.h): its tasks' rows of X W^T come from there, their cotangents go there, and
// of X itself only the Gram matrices remain, which need a few of its columns at a time.
#pragma once

#include "block/block_results.h"
#include "block/side_rows.h"

namespace innerloop {

template <class BlockType, class RealType>
class BlockFirstLayer : public BlockResults<BlockType, RealType> {
 public:
  using Base = BlockResults<BlockType, RealType>;
  using Base::Base;
  using typename Base::Elem;
  using typename Base::R;
  using typename Base::Real;
  using typename Base::SideData;

  /// rows: [rows of all tasks, out], X W^T at first.
  IL_HD void set_first_rows(Real* rows) { first_rows_ = rows; }

  /// The group's rows of X W^T, where those of its side begin at row `start`.
  IL_CALL void load_first_rows(const R& to, int64_t start) const {
    const Real* from = own_first_rows(start + first_ * to.rows);
    const int64_t ld = outputs_of_first();
    block_.spread(used_ * extent(to.rows), extent(to.cols),
                  [&](int r, int j) { to.p[r * to.ld + j] = from[r * ld + j]; });
    block_.barrier();
  }
  /// Their cotangents, in the place of X W^T.
  IL_CALL void store_first_rows(const R& from, int64_t start, Real sign) const {
    if (!this->writes_bias(plan_.layers[0])) return;  // a cotangent for each of its numbers
    Real* to = own_first_rows(start + first_ * from.rows);
    const int64_t ld = outputs_of_first();
    block_.spread(used_ * extent(from.rows), extent(from.cols), [&](int r, int j) {
      to[r * ld + j] = sign * static_cast<Real>(from.p[r * from.ld + j]);
    });
    block_.barrier();
  }
  /// gram = X_s X_s^T and, if there is one, cross = X_q X_s^T, from slabs of columns of X.
  IL_CALL void gram_products(const R& gram, const R& cross, const SideData& s, const Side& support,
                             const SideData& q, const Side& query) const {
    const int64_t in = plan_.layers[0].leaf_in;
    for (int64_t column = 0; column < in; column += s.x.cols) {
      const int64_t width = in - column < s.x.cols ? in - column : s.x.cols;
      const R left = slab(s, support, column, width), right = slab(q, query, column, width);
      block_.barrier();
      this->start_rows_nt(gram, left, left, nullptr, 1, column > 0);
      if (cross.p) this->start_rows_nt(cross, right, left, nullptr, 1, column > 0);
      block_.barrier();
    }
  }

 protected:
  using Base::block_;
  using Base::extent;
  using Base::first_;
  using Base::plan_;
  using Base::used_;

  /// Columns of X that the workspace holds at a time.
  IL_HD int64_t input_columns() const {
    const LayerPlan& first = plan_.layers[0];
    if (!plan_.one_product) return first.leaf_in;
    return !plan_.first_adapts ? 0 : first.leaf_in < kGramColumns ? first.leaf_in : kGramColumns;
  }
  /// The first columns of d.x become columns of X from `column` on. NaN in rows out of use must not
  /// meet a product. No barrier.
  IL_HD R slab(const SideData& d, const Side& side, int64_t column, int64_t width) const {
    const int64_t in = plan_.layers[0].leaf_in;
    const Real* x = static_cast<const Real*>(side.x) + first_ * side.rows * in + column;
    block_.spread(used_ * extent(side.rows), extent(width), [&](int r, int j) {
      d.x.p[r * d.x.ld + j] = d.weight[r] != Real(0) ? x[r * in + j] : Real(0);
    });
    return {d.x.p, d.x.rows, width, d.x.ld};
  }

 private:
  static constexpr int64_t kGramColumns = 64;

  IL_HD int64_t outputs_of_first() const {
    const LayerPlan& first = plan_.layers[0];
    return first.split == Split::kOutputs ? first.out * this->options_.cluster : first.out;
  }
  /// This block's columns from a row on.
  IL_HD Real* own_first_rows(int64_t row) const {
    return first_rows_ + row * outputs_of_first() + this->bias_start(plan_.layers[0]);
  }

  Real* first_rows_ = nullptr;
};

}  // namespace innerloop
