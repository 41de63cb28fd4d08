// Products with a matrix that is kept as factors: M = sum over f of c_f left_f^T right_f, with
// left_f [rows_f, out] and right_f [rows_f, in]. M itself is never built: x M^T takes the small
// matrices c_f x right_f^T [rows of x, rows_f], and their products with left_f.
#pragma once

#include "core/plan.h"

namespace innerloop {

/// c += x M^T (`turned`), or c += x M. `each(f)` calls f(left, right, rate, sign) for every factor,
/// in the same order at each call; c_f = sign * rate of the task (null: 1). `base` runs once
/// between the two halves and ends with a barrier; it may give c its first value. `small` [rows of
/// x, at least all factors' rows] is scratch.
template <class E, class Each, class Base>
IL_HD void add_factors(const E& e, const Rows<typename E::Elem>& small,
                       const Rows<typename E::Elem>& c, const Rows<typename E::Elem>& x,
                       bool turned, Each each, Base base) {
  using R = Rows<typename E::Elem>;
  const auto part = [&](int64_t column, int64_t rows) {
    return R{small.p + column, x.rows, rows, small.ld};
  };
  int64_t column = 0;
  each([&](const R& left, const R& right, const typename E::PerTask* rate, typename E::Real sign) {
    e.start_rows_nt(part(column, left.rows), x, turned ? right : left, rate, sign, false);
    column += left.rows;
  });
  base();
  column = 0;
  each([&](const R& left, const R& right, const typename E::PerTask*, typename E::Real) {
    e.start_rows_nn(c, part(column, left.rows), turned ? left : right, nullptr, 1, true);
    column += left.rows;
  });
  e.end_phase();
}

}  // namespace innerloop
