// z = w u + b with u = (in - mean) r, r = 1 / sqrt(variance + eps) over the values of each row:
// nn.LayerNorm over the last axis. Derived in docs/math.md ("Layer norm").
//
// The map and its derivatives are written for one row, as an engine has it (E::Row): a row of
// vectors, with means over all its values.
#pragma once

#include "core/layers/layer.h"

namespace innerloop {

/// One row. P(x) = x - mean(x) - u mean(u x); the Jacobian of u is r P, and symmetric.
template <class Row>
struct NormalisedRow {
  using V = typename Row::V;
  using Elem = typename Row::Elem;

  /// Writes u and returns r. The mean is taken twice: what the first one misses of a large mean is
  /// the mean of what it leaves.
  IL_INLINE static V forward(const Row& row, Elem* u, const Elem* x, V eps) {
    const V first = row.mean([&](int64_t i) { return row.load(x, i); });
    row.each([&](int64_t i) { row.store(u, i, row.load(x, i) - first); });
    const V rest = row.mean([&](int64_t i) { return row.load(u, i); });
    const V variance = row.mean([&](int64_t i) {
      const V centred = row.load(u, i) - rest;
      return centred * centred;
    });
    const V r = Row::set(1) / Row::sqrt(variance + eps);
    row.each([&](int64_t i) { row.store(u, i, (row.load(u, i) - rest) * r); });
    return r;
  }
  /// to = r P(c), added to what is there if asked.
  IL_INLINE static void backward(const Row& row, Elem* to, const Elem* c, const Elem* u, V r,
                                 bool add) {
    const V mean = row.mean([&](int64_t i) { return row.load(c, i); });
    const V along = row.mean([&](int64_t i) { return row.load(u, i) * row.load(c, i); });
    row.each([&](int64_t i) {
      const V value = r * (row.load(c, i) - mean - row.load(u, i) * along);
      row.store(to, i, add ? row.load(to, i) + value : value);
    });
  }
  /// Writes R{u} = r P(R{x}) and returns R{r} / r = -r mean(u R{x}).
  IL_INLINE static V r_forward(const Row& row, Elem* ru, const Elem* rx, const Elem* u, V r) {
    const V mean = row.mean([&](int64_t i) { return row.load(rx, i); });
    const V along = row.mean([&](int64_t i) { return row.load(u, i) * row.load(rx, i); });
    row.each([&](int64_t i) {
      row.store(ru, i, r * (row.load(rx, i) - mean - row.load(u, i) * along));
    });
    return -r * along;
  }
  /// to = R{r P(c)} = r (P(R{c} + (R{r} / r) c) - R{u} mean(u c) - u mean(R{u} c)).
  IL_INLINE static void r_backward(const Row& row, Elem* to, const Elem* rc, const Elem* c,
                                   const Elem* u, const Elem* ru, V r, V change, bool add) {
    const auto turned = [&](int64_t i) { return row.load(rc, i) + change * row.load(c, i); };
    const V mean = row.mean(turned);
    const V along = row.mean([&](int64_t i) { return row.load(u, i) * turned(i); });
    const V uc = row.mean([&](int64_t i) { return row.load(u, i) * row.load(c, i); });
    const V ruc = row.mean([&](int64_t i) { return row.load(ru, i) * row.load(c, i); });
    row.each([&](int64_t i) {
      const V value =
          r * (turned(i) - mean - row.load(u, i) * (along + ruc) - row.load(ru, i) * uc);
      row.store(to, i, add ? row.load(to, i) + value : value);
    });
  }
};

template <class E>
struct LayerNormLayer {
  using Elem = typename E::Elem;
  using R = Rows<Elem>;
  using T = Tape<Elem>;
  using Row = typename E::Row;
  using Map = NormalisedRow<Row>;
  static constexpr bool kDiagonal = true;

  /// Of the tape: u, the cotangent of u, and r. Of the scratch: R{.} of these, but R{r} / r.
  static void lay_out(const LayerPlan& p, int64_t* tape, int64_t* scratch) {
    *tape += 2 * p.ld_in + E::pad(1);
    *scratch += 2 * p.ld_in + E::pad(1);
  }

  template <class X>
  static R leaf_input(const X& x, const T& t, int l, const R&) {
    return values(x, t, l, x.layer(l).map);
  }
  template <class X>
  static R r_leaf_input(const X& x, const T& s, int l) {
    return values(x, s, l, x.layer(l).r_map);
  }
  template <class X>
  static R cotangent(const X& x, const T& t, int l) {
    return values(x, t, l, x.layer(l).map + x.layer(l).ld_in);
  }
  template <class X>
  static R r_cotangent(const X& x, const T& s, int l) {
    return values(x, s, l, x.layer(l).r_map + x.layer(l).ld_in);
  }

  template <class X>
  static void forward(const X& x, const T& t, int l, const R& in) {
    const R u = leaf_input(x, t, l, in), scale = scales(x, t, l);
    const auto eps = Row::set(x.layer(l).constant);
    each_row(x.engine(), u, [&](const Row& row, int64_t i) {
      Row::put(at(scale, i), Map::forward(row, at(u, i), at(in, i), eps));
    });
  }
  template <class X>
  static void r_forward(const X& x, const T& t, const T& s, int l, const R& r_in) {
    const R u = leaf_input(x, t, l, R{}), ru = r_leaf_input(x, s, l);
    const R scale = scales(x, t, l), change = changes(x, s, l);
    each_row(x.engine(), u, [&](const Row& row, int64_t i) {
      const auto r = Row::get(at(scale, i));
      Row::put(at(change, i), Map::r_forward(row, at(ru, i), at(r_in, i), at(u, i), r));
    });
  }
  template <class X, class Params>
  static void backward(const X& x, const T& t, const R& c, const Params& params, int l,
                       const R& delta, const R& to) {
    params.nn(c, delta, l, false);
    project(x, t, c, l, to, false);
  }
  template <class X, class Params>
  static void r_backward(const X& x, const T& t, const T& s, const Params& params,
                         const Direction<E>& v, int l, bool moves, const R& to, bool add) {
    const R rc = r_cotangent(x, s, l);
    params.nn(rc, x.rdelta(s, l), l, false);
    if (v.weight) x.engine().nn(rc, x.delta(t, l), v.weight, v.weight_rate, 1, true);
    if (!moves) return project(x, t, rc, l, to, add);
    const R u = leaf_input(x, t, l, R{}), ru = r_leaf_input(x, s, l), c = cotangent(x, t, l);
    const R scale = scales(x, t, l), change = changes(x, s, l);
    each_row(x.engine(), u, [&](const Row& row, int64_t i) {
      Map::r_backward(row, at(to, i), at(rc, i), at(c, i), at(u, i), at(ru, i),
                      Row::get(at(scale, i)), Row::get(at(change, i)), add);
    });
  }

 private:
  template <class X>
  static R values(const X& x, const T& t, int l, int64_t offset) {
    return x.columns(t, offset, x.layer(l).in, x.layer(l).ld_in);
  }
  template <class X>
  static R scales(const X& x, const T& t, int l) {
    return x.columns(t, x.layer(l).map + 2 * x.layer(l).ld_in, 1, E::pad(1));
  }
  template <class X>
  static R changes(const X& x, const T& s, int l) {
    return x.columns(s, x.layer(l).r_map + 2 * x.layer(l).ld_in, 1, E::pad(1));
  }
  static Elem* at(const R& r, int64_t row) { return r.p + row * r.ld; }
  template <class F>
  static void each_row(const E& engine, const R& r, F&& f) {
    const Row row(r.cols);
    for (int64_t i = 0; i < engine.row_count(r); ++i) f(row, i);
  }
  template <class X>
  static void project(const X& x, const T& t, const R& c, int l, const R& to, bool add) {
    const R u = leaf_input(x, t, l, R{}), scale = scales(x, t, l);
    each_row(x.engine(), u, [&](const Row& row, int64_t i) {
      Map::backward(row, at(to, i), at(c, i), at(u, i), Row::get(at(scale, i)), add);
    });
  }
};

}  // namespace innerloop
