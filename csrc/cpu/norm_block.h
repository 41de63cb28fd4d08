// Batch norm with the relu and the max pool that follow it: the four passes, with the formulas of
// innerloop/_batched/blocks.py. A work item is a strip of channels of one task, kept in vector
// lanes while the places pass by; no sum crosses a strip, so results do not depend on the number of
// threads, nor on the width of a strip. Which value a window chose is not kept: it is the first one
// that equals the chosen value.
#pragma once

#include <cmath>
#include <type_traits>

#include "core/image_layers.h"
#include "cpu/parallel.h"
#include "cpu/simd.h"

namespace innerloop {
namespace INNERLOOP_LEVEL {

/// The passes over one strip of kVectors vectors of channels; where kTail is set, of one vector of
/// which `tail` lanes are there.
template <class Real, int kVectors, bool kTail, bool kPool>
class NormStrip {
  using S = Simd<Real>;
  using V = typename S::V;
  using I = typename S::I;
  static constexpr int n = S::kLanes;
  static constexpr int64_t kChunk = 32;  // values of a sum, then sums of such sums: they lose less

  struct Strip {
    V v[kVectors];
    INNERLOOP_INLINE V& operator[](int j) { return v[j]; }
    INNERLOOP_INLINE const V& operator[](int j) const { return v[j]; }
  };

 public:
  NormStrip(const NormBlockCall& call, int64_t task, int64_t channel, int64_t tail)
      : call_(call), l_(call.layer), task_(task), channel_(channel), tail_(tail) {
    const int64_t all = l_.tasks * l_.rows * l_.places();
    count_ = static_cast<Real>(all / larger(l_.tasks, 1));
    x_ = values(call.x, l_.places());
    chosen_ = kPool ? values(call.chosen, l_.chosen()) : x_;
    y_ = values(call.y, l_.chosen());
    g_ = values(call.g, l_.chosen());
  }

  void forward() {
    const Strip s = set_statistics();
    const Strip w = leaf(call_.w, 1), b = leaf(call_.b, 0), scale = product(s, w);
    put(call_.statistics, mean_, 0);
    put(call_.statistics, s, 1);
    Real* y = const_cast<Real*>(y_);
    Real* chosen = const_cast<Real*>(chosen_);
    if constexpr (kPool) signs_ = sign(w);
    each_window([&](int64_t out, const int64_t* at) {
      each([&](int j) {
        V best = load(x_ + at[0], j);
        if constexpr (kPool) {
          for (int64_t i = 1; i < window(); ++i) {
            const V other = load(x_ + at[i], j);
            best = (other * signs_[j] > best * signs_[j]) ? other : best;
          }
          store(chosen + out, j, best);
        }
        V value = b[j] + (best - mean_[j]) * scale[j];
        if (l_.has_relu) value = value < V{} ? V{} : value;
        store(y + out, j, value);
      });
    });
  }

  void backward() {
    const Strip s = known_statistics(), w = leaf(call_.w, 1), ws = product(s, w);
    const Sums sums = sum_windows([&](int64_t out, int j) {
      const V g = masked(g_, out, j);
      return Two{g, g * chosen(out, j)};
    });
    const Strip &g0 = sums.first, &g1 = sums.second;
    put(call_.gb, g0);
    put(call_.gw, product(s, g1));
    put(call_.sums, g0, 0);
    put(call_.sums, g1, 1);
    if (!call_.gx) return;
    Strip linear, constant;
    each([&](int j) {
      const V share = ws[j] / S::set(-count_);
      linear[j] = share * g1[j] * (s[j] * s[j]);
      constant[j] = share * g0[j];
    });
    Real* gx = values(call_.gx, l_.places());
    spread([&](int64_t out, int j) { return masked(g_, out, j) * ws[j]; },
           [&](int64_t at, int j, V c, V along) {
             store(gx + at, j, along + constant[j] + c * linear[j]);
           });
  }

  void tangent() {
    const Strip s = known_statistics(), w = leaf(call_.w, 1), ws = product(s, w);
    const Strip w_dot = leaf(call_.w_dot, 0), b_dot = leaf(call_.b_dot, 0);
    const Real* x_dot = values(call_.x_dot, l_.places());
    Strip a{}, k{};
    if (x_dot) {
      const Sums sums = sum_rows([&](int64_t at, int j) {
        const V x = load(x_dot + at, j);
        return Two{x, x * centred(at, j)};
      });
      a = scaled(sums.first, 1 / count_);
      each([&](int j) { k[j] = sums.second[j] * (s[j] * s[j] / S::set(count_)); });
    }
    Strip factor, shift;
    each([&](int j) {
      factor[j] = s[j] * w_dot[j] - ws[j] * k[j];
      shift[j] = b_dot[j] - ws[j] * a[j];
    });
    if constexpr (kPool) signs_ = sign(w);
    Real* y_dot = values(call_.y_dot, l_.chosen());
    Strip e{}, part{};
    int64_t seen = 0;
    each_window([&](int64_t out, const int64_t* at) {
      each([&](int j) {
        V value = shift[j] + chosen(out, j) * factor[j];
        if (x_dot) {
          V along = load(x_dot + at[0], j);
          if constexpr (kPool) along = chosen_of(x_dot, at, out, j);
          part[j] += masked(g_, out, j) * along;
          value += along * ws[j];
        }
        store(y_dot + out, j, where_positive(value, out, j));
      });
      if (++seen % kChunk == 0) move(e, part);
    });
    move(e, part);
    put(call_.dot_sums, a, 0);
    put(call_.dot_sums, k, 1);
    put(call_.dot_sums, e, 2);
  }

  void second() {
    const Strip s = known_statistics(), w = leaf(call_.w, 1), ws = product(s, w);
    const Strip w_dot = leaf(call_.w_dot, 0), sw_dot = product(s, w_dot);
    const Strip g0 = read(call_.sums, 0), g1 = read(call_.sums, 1);
    const Strip a = read(call_.dot_sums, 0), k = read(call_.dot_sums, 1),
                e = read(call_.dot_sums, 2);
    const Real* g_dot = values(call_.g_dot, l_.chosen());
    const Real* x_dot = values(call_.x_dot, l_.places());
    Strip d0{}, d1{};
    if (g_dot) {
      const auto sums = sum_windows([&](int64_t out, int j) {
        const V g = masked(g_dot, out, j);
        return Two{g, g * chosen(out, j)};
      });
      d0 = sums.first;
      d1 = sums.second;
    }
    Strip gw, factor, constant, linear, of_x;
    each([&](int j) {
      const V h = (e[j] - a[j] * g0[j] - k[j] * g1[j]) * s[j];
      gw[j] = h + s[j] * d1[j];
      factor[j] = sw_dot[j] - k[j] * ws[j];
      constant[j] =
          ((k[j] * g0[j] + s[j] * s[j] * a[j] * g1[j] - d0[j]) * ws[j] - sw_dot[j] * g0[j]) /
          S::set(count_);
      linear[j] =
          (((k[j] * g1[j] * S::set(2) - d1[j]) * ws[j] - sw_dot[j] * g1[j]) * s[j] - ws[j] * h) *
          (s[j] / S::set(count_));
      of_x[j] = ws[j] * g1[j] * (s[j] * s[j] / S::set(-count_));
    });
    put(call_.gw, gw);
    put(call_.gb, d0);
    if (!call_.gx) return;
    Real* gx = values(call_.gx, l_.places());
    spread(
        [&](int64_t out, int j) {
          const V along = masked(g_, out, j) * factor[j];
          return g_dot ? along + masked(g_dot, out, j) * ws[j] : along;
        },
        [&](int64_t at, int j, V c, V along) {
          V value = along + constant[j] + c * linear[j];
          if (x_dot) value += load(x_dot + at, j) * of_x[j];
          store(gx + at, j, value);
        });
  }

 private:
  struct Two {
    V first, second;
  };
  struct Sums {
    Strip first, second;
  };

  template <class F>
  static INNERLOOP_INLINE void each(F f) {
#pragma GCC unroll 4
    for (int j = 0; j < kVectors; ++j) f(j);
  }

  // ---------------------------------------------------------------- memory

  /// A task's values at this strip, `places` a row.
  template <class Data>
  auto values(Data* data, int64_t places) const {
    using Number = std::conditional_t<std::is_const_v<Data>, const Real, Real>;
    const int64_t offset = task_ * l_.rows * places * l_.channels + channel_;
    return data ? static_cast<Number*>(data) + offset : nullptr;
  }
  INNERLOOP_INLINE V load(const Real* p, int j) const {
    return kTail ? S::load_part(p, tail_) : S::load(p + j * n);
  }
  INNERLOOP_INLINE void store(Real* p, int j, V v) const {
    if (kTail) {
      S::store_part(p, v, tail_);
    } else {
      S::store(p + j * n, v);
    }
  }
  Strip leaf(const Operand& operand, Real absent) const {
    Strip out;
    const auto* p = static_cast<const Real*>(operand.data);
    each([&](int j) {
      out[j] = p ? load(p + task_ * operand.task_stride + channel_, j) : S::set(absent);
    });
    return out;
  }
  /// Sums [which, tasks, channels].
  Strip read(const void* sums, int64_t which = 0) const {
    Strip out;
    const Real* p = static_cast<const Real*>(sums) + place(which);
    each([&](int j) { out[j] = load(p, j); });
    return out;
  }
  void put(void* sums, const Strip& strip, int64_t which = 0) const {
    if (!sums) return;
    Real* p = static_cast<Real*>(sums) + place(which);
    each([&](int j) { store(p, j, strip[j]); });
  }
  int64_t place(int64_t which) const { return (which * l_.tasks + task_) * l_.channels + channel_; }

  // ---------------------------------------------------------------- strips

  static Strip product(const Strip& a, const Strip& b) {
    Strip out;
    each([&](int j) { out[j] = a[j] * b[j]; });
    return out;
  }
  static Strip scaled(const Strip& a, Real factor) {
    Strip out;
    each([&](int j) { out[j] = a[j] * S::set(factor); });
    return out;
  }
  static Strip sign(const Strip& a) {
    Strip out;
    each([&](int j) {
      const V zero{};
      out[j] = a[j] > zero ? S::set(1) : (a[j] < zero ? S::set(-1) : zero);
    });
    return out;
  }
  static INNERLOOP_INLINE void move(Strip& total, Strip& part) {
    each([&](int j) {
      total[j] += part[j];
      part[j] = V{};
    });
  }
  /// A value less the mean, and one that a window chose.
  INNERLOOP_INLINE V centred(int64_t at, int j) const { return load(x_ + at, j) - mean_[j]; }
  INNERLOOP_INLINE V chosen(int64_t out, int j) const { return load(chosen_ + out, j) - mean_[j]; }
  INNERLOOP_INLINE V where_positive(V value, int64_t out, int j) const {
    return l_.has_relu ? (load(y_ + out, j) > V{} ? value : V{}) : value;
  }
  INNERLOOP_INLINE V masked(const Real* g, int64_t out, int j) const {
    return where_positive(load(g + out, j), out, j);
  }

  /// Reads what the forward pass found: the mean, and s, which is returned.
  Strip known_statistics() {
    mean_ = read(call_.statistics, 0);
    return read(call_.statistics, 1);
  }

  /// Finds the mean, and s, which is returned. x comes from far once: mean and squares are those of
  /// chunks that stay near, put together by the formulas of Chan, Golub and LeVeque (1979).
  Strip set_statistics() {
    const int64_t places = l_.rows * l_.places();
    Strip squares{};
    mean_ = Strip{};
    for (int64_t first = 0; first < places; first += kChunk) {
      const int64_t last = smaller(places, first + kChunk);
      const Real size = static_cast<Real>(last - first), before = static_cast<Real>(first);
      Strip mean{}, part{};
      for (int64_t i = first; i < last; ++i) {
        each([&](int j) { mean[j] += load(x_ + i * l_.channels, j); });
      }
      each([&](int j) { mean[j] /= S::set(size); });
      for (int64_t i = first; i < last; ++i) {
        each([&](int j) {
          const V c = load(x_ + i * l_.channels, j) - mean[j];
          part[j] += c * c;
        });
      }
      each([&](int j) {
        const V apart = mean[j] - mean_[j];
        mean_[j] += apart * S::set(size / (before + size));
        squares[j] += part[j] + apart * apart * S::set(before * size / (before + size));
      });
    }
    Strip s;
    each([&](int j) {
      const V variance = squares[j] / S::set(count_) + S::set(static_cast<Real>(l_.eps));
      for (int i = 0; i < n; ++i) s[j][i] = 1 / std::sqrt(variance[i]);
    });
    return s;
  }

  // ---------------------------------------------------------------- places

  /// Two sums of f(offset, vector) over all places.
  template <class F>
  INNERLOOP_INLINE Sums sum_rows(F f) const {
    return sum_places(l_.rows * l_.places(), f);
  }
  /// Two sums over the chosen places.
  template <class F>
  INNERLOOP_INLINE Sums sum_windows(F f) const {
    return sum_places(l_.rows * l_.chosen(), f);
  }
  template <class F>
  INNERLOOP_INLINE Sums sum_places(int64_t places, F f) const {
    Sums total{};
    for (int64_t first = 0; first < places; first += kChunk) {
      Sums part{};
      const int64_t last = smaller(places, first + kChunk);
      for (int64_t i = first; i < last; ++i) {
        each([&](int j) {
          const Two two = f(i * l_.channels, j);
          part.first[j] += two.first;
          part.second[j] += two.second;
        });
      }
      each([&](int j) {
        total.first[j] += part.first[j];
        total.second[j] += part.second[j];
      });
    }
    return total;
  }

  int64_t window() const { return l_.window[0] * l_.window[1]; }

  /// f(offset of the window's value, offsets of its places) for all windows.
  template <class F>
  INNERLOOP_INLINE void each_window(F f) const {
    if constexpr (!kPool) {
      const int64_t places = l_.rows * l_.places();
      for (int64_t i = 0; i < places; ++i) {
        const int64_t at = i * l_.channels;
        f(at, &at);
      }
    } else {
      int64_t at[kMaxWindow];
      int64_t out = 0;
      for (int64_t row = 0; row < l_.rows; ++row) {
        for (int64_t y = 0; y < l_.out_height(); ++y) {
          for (int64_t x = 0; x < l_.out_width(); ++x, out += l_.channels) {
            const int64_t corner = (row * l_.height + y * l_.window[0]) * l_.width;
            int k = 0;
            for (int64_t ky = 0; ky < l_.window[0]; ++ky) {
              for (int64_t kx = 0; kx < l_.window[1]; ++kx) {
                at[k++] = (corner + ky * l_.width + x * l_.window[1] + kx) * l_.channels;
              }
            }
            f(out, at);
          }
        }
      }
    }
  }

  /// f(offset) for the places that are in no window.
  template <class F>
  INNERLOOP_INLINE void each_rest(F f) const {
    const int64_t high = l_.out_height() * l_.window[0], wide = l_.out_width() * l_.window[1];
    for (int64_t row = 0; row < l_.rows; ++row) {
      for (int64_t y = 0; y < l_.height; ++y) {
        for (int64_t x = y < high ? wide : 0; x < l_.width; ++x) {
          f(((row * l_.height + y) * l_.width + x) * l_.channels);
        }
      }
    }
  }

  /// The value of a derivative of x that the window chose: where x is the first to equal the
  /// chosen one.
  INNERLOOP_INLINE V chosen_of(const Real* x_dot, const int64_t* at, int64_t out, int j) const {
    const V chosen = load(chosen_ + out, j) * signs_[j];
    V value{};
    I open = V{} == V{};
    for (int64_t i = 0; i < window(); ++i) {
      const I here = open & (load(x_ + at[i], j) * signs_[j] == chosen);
      value = here ? load(x_dot + at[i], j) : value;
      open &= ~here;
    }
    return value;
  }

  /// put(offset, vector, c, along(...) where a window chose and 0 elsewhere) for all places.
  template <class Along, class Put>
  INNERLOOP_INLINE void spread(Along along, Put put_at) {
    if constexpr (!kPool) {
      each_window([&](int64_t out, const int64_t*) {
        each([&](int j) { put_at(out, j, centred(out, j), along(out, j)); });
      });
    } else {
      signs_ = sign(leaf(call_.w, 1));
      each_window([&](int64_t out, const int64_t* at) {
        each([&](int j) {
          const V chosen = load(chosen_ + out, j) * signs_[j], value = along(out, j);
          I open = V{} == V{};
          for (int64_t i = 0; i < window(); ++i) {
            const V x = load(x_ + at[i], j);
            const I here = open & (x * signs_[j] == chosen);
            put_at(at[i], j, x - mean_[j], here ? value : V{});
            open &= ~here;
          }
        });
      });
      each_rest([&](int64_t at) { each([&](int j) { put_at(at, j, centred(at, j), V{}); }); });
    }
  }

 public:
  static constexpr int64_t kMaxWindow = 64;

 private:
  const NormBlockCall& call_;
  const NormBlock& l_;
  int64_t task_, channel_, tail_;
  Real count_;
  const Real *x_, *chosen_, *y_, *g_;
  Strip mean_{};
  Strip signs_{};
};

enum class NormPass { kForward, kBackward, kTangent, kSecond };

/// Runs one pass over all strips.
template <class Real, NormPass kPass>
class NormRunner {
  static constexpr int kWide = 4;  // vectors of a wide strip
  static constexpr int n = Simd<Real>::kLanes;

 public:
  explicit NormRunner(const NormBlockCall& call) : call_(call) {}

  Status run() {
    const int64_t vectors = (call_.layer.channels + n - 1) / n;
    strips_ = (vectors + kWide - 1) / kWide;
    parallel_beside_torch(
        call_.layer.tasks * strips_, call_.layer.threads,
        [](void* self, int64_t item, int) { static_cast<NormRunner*>(self)->run_item(item); },
        this);
    return Status::kOk;
  }

 private:
  void run_item(int64_t item) const {
    const int64_t task = item / strips_, first = item % strips_ * kWide * n;
    const int64_t last = smaller(first + kWide * n, call_.layer.channels);
    int64_t channel = first;
    if (last - channel == kWide * n) {
      run_strip<kWide, false>(task, channel, 0);
      return;
    }
    for (; channel + 2 * n <= last; channel += 2 * n) run_strip<2, false>(task, channel, 0);
    for (; channel + n <= last; channel += n) run_strip<1, false>(task, channel, 0);
    if (channel < last) run_strip<1, true>(task, channel, last - channel);
  }
  template <int kVectors, bool kTail>
  void run_strip(int64_t task, int64_t channel, int64_t tail) const {
    if (call_.layer.has_pool()) {
      run_pass(NormStrip<Real, kVectors, kTail, true>(call_, task, channel, tail));
    } else {
      run_pass(NormStrip<Real, kVectors, kTail, false>(call_, task, channel, tail));
    }
  }
  template <class Strip>
  static void run_pass(Strip strip) {
    if constexpr (kPass == NormPass::kForward) strip.forward();
    if constexpr (kPass == NormPass::kBackward) strip.backward();
    if constexpr (kPass == NormPass::kTangent) strip.tangent();
    if constexpr (kPass == NormPass::kSecond) strip.second();
  }

  const NormBlockCall& call_;
  int64_t strips_ = 0;
};

}  // namespace INNERLOOP_LEVEL
}  // namespace innerloop
