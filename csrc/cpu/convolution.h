// Convolutions as products over gathered patches. A work item is some rows of one task; it takes
// its places block by block: the patches of a block are gathered into scratch that stays in the
// second-level cache, multiplied there, and for gradients in the input scattered back. Which rows
// an item takes depends on the sizes alone, and sums over items are made in their order: results
// do not depend on the number of threads.
//
// Scratch of a worker: patches of one block for each x and for the gradient (at most kBlockBytes
// each, or kBlockRows patches that are larger), and two weights turned. Items of one task have
// gradients of the weights of their own, which are summed at the end.
#pragma once

#include <algorithm>
#include <cstring>

#include "core/image_layers.h"
#include "cpu/parallel.h"
#include "cpu/row_gemm.h"

namespace innerloop {
namespace INNERLOOP_LEVEL {

/// What both directions know about the layer: blocks, items, gather and scatter.
template <class Real>
class Patches {
 public:
  using S = Simd<Real>;
  static constexpr int64_t kBlockBytes = 128 << 10;
  static constexpr int64_t kBlockRows = 12;  // places, a multiple of the tallest tile
  static constexpr int64_t kMaxRows = 240;
  static constexpr int64_t kItems = 8;  // wanted at least, if each has as many places as
  static constexpr int64_t kItemPlaces = 240;

  explicit Patches(const Convolution& layer) : layer_(layer), size_(layer.patch()) {
    const int64_t fit = kBlockBytes / (size_ * static_cast<int64_t>(sizeof(Real)));
    block_ = larger(kBlockRows, smaller(fit, kMaxRows) / kBlockRows * kBlockRows);
    groups_ = smaller(layer.rows, (kItems + layer.tasks - 1) / larger(layer.tasks, 1));
    groups_ = larger(smaller(groups_, layer.rows * layer.places() / kItemPlaces), 1);
  }

  int64_t block() const { return block_; }
  int64_t groups() const { return groups_; }
  int64_t items() const { return layer_.tasks * groups_; }
  int64_t first_row(int64_t group) const { return layer_.rows * group / groups_; }
  /// Numbers of a block of patches.
  int64_t block_size() const { return round_up(block_ * size_, kAligned); }
  static constexpr int64_t kAligned = 64 / sizeof(Real);

  /// out [count, taps, in]: the patches of places first .. first + count of the rows x.
  void gather(const Real* x, int64_t first, int64_t count, Real* out) const {
    each_line(first, count, [&](const Line& line, int64_t at) {
      const int64_t whole = line.wide * layer_.in;
      if (line.from < 0) {
        for (int64_t i = 0; i < line.count; ++i) fill(out + at + i * size_, whole);
        return;
      }
      each_place(
          line, [&](int64_t i, int64_t place) { copy(out + at + i * size_, x + place, whole); },
          [&](int64_t i, int64_t before, int64_t place, int64_t length) {
            Real* to = out + at + i * size_;
            fill(to, before);
            copy(to + before, x + place, length);
            fill(to + before + length, whole - before - length);
          });
    });
  }

  /// Adds patches to the places of x that they were gathered from.
  void scatter(const Real* in, int64_t first, int64_t count, Real* x) const {
    each_line(first, count, [&](const Line& line, int64_t at) {
      if (line.from < 0) return;
      each_place(
          line,
          [&](int64_t i, int64_t place) {
            add(x + place, in + at + i * size_, line.wide * layer_.in);
          },
          [&](int64_t i, int64_t before, int64_t place, int64_t length) {
            add(x + place, in + at + i * size_ + before, length);
          });
    });
  }

 private:
  /// Some places of one line of outputs, and the line of x that some taps of theirs read: `wide`
  /// taps that lie together, the first one of the first place `start` places right of the line's
  /// left end, which is number `from` of x (negative: the line is padding).
  struct Line {
    int64_t count, wide, start, from;
  };

  /// f(line, where the taps are in the first patch) for all lines of places and all rows of taps.
  template <class F>
  INNERLOOP_INLINE void each_line(int64_t first, int64_t count, F f) const {
    const Convolution& l = layer_;
    // taps of one row of the kernel lie together if they are not dilated
    const bool together = l.dilation[1] == 1;
    const int64_t runs = together ? 1 : l.kernel[1], wide = together ? l.kernel[1] : 1;
    int64_t row = first / l.places();
    int64_t oy = first % l.places() / l.out_width, ox = first % l.out_width;
    for (int64_t done = 0; done < count;) {
      const int64_t here = smaller(count - done, l.out_width - ox);
      int64_t at = done * size_;
      for (int64_t ky = 0; ky < l.kernel[0]; ++ky) {
        const int64_t y = oy * l.stride[0] - l.padding[0] + ky * l.dilation[0];
        const bool inside = y >= 0 && y < l.height;
        const int64_t from = inside ? (row * l.height + y) * l.width * l.in : -1;
        for (int64_t r = 0; r < runs; ++r, at += wide * l.in) {
          f(Line{here, wide, ox * l.stride[1] - l.padding[1] + r * l.dilation[1], from}, at);
        }
      }
      done += here;
      ox = 0;
      if (++oy == l.out_height) {
        oy = 0;
        ++row;
      }
    }
  }

  /// whole(i, number of x) for the places of a line whose taps are all there, and part(i, numbers
  /// of padding before, number of x, numbers of x) for those at its ends.
  template <class Whole, class Part>
  INNERLOOP_INLINE void each_place(const Line& line, Whole whole, Part part) const {
    const int64_t step = layer_.stride[1], in = layer_.in;
    const int64_t last = layer_.width - line.wide - line.start;  // the last whole one begins here
    int64_t low = line.start < 0 ? (step - 1 - line.start) / step : 0;
    int64_t high = last < 0 ? 0 : last / step + 1;
    low = smaller(low, line.count);
    high = larger(smaller(high, line.count), low);
    const auto at_end = [&](int64_t i) {
      const int64_t left = line.start + i * step, begin = larger(left, 0);
      const int64_t length = larger(smaller(left + line.wide, layer_.width) - begin, 0);
      const int64_t before = smaller(begin - left, line.wide - length);
      part(i, before * in, line.from + (length ? begin * in : 0), length * in);
    };
    for (int64_t i = 0; i < low; ++i) at_end(i);
    const int64_t from = line.from + line.start * in;
    for (int64_t i = low; i < high; ++i) whole(i, from + i * step * in);
    for (int64_t i = high; i < line.count; ++i) at_end(i);
  }

  static INNERLOOP_INLINE void fill(Real* out, int64_t n) {
    const typename S::V zero{};
    int64_t i = 0;
    for (; i + S::kLanes <= n; i += S::kLanes) S::store(out + i, zero);
    if (i < n) S::store_part(out + i, zero, n - i);
  }
  static INNERLOOP_INLINE void copy(Real* out, const Real* in, int64_t n) {
    int64_t i = 0;
    for (; i + S::kLanes <= n; i += S::kLanes) S::store(out + i, S::load(in + i));
    if (i < n) S::store_part(out + i, S::load_part(in + i, n - i), n - i);
  }
  static INNERLOOP_INLINE void add(Real* out, const Real* in, int64_t n) {
    int64_t i = 0;
    for (; i + S::kLanes <= n; i += S::kLanes)
      S::store(out + i, S::load(out + i) + S::load(in + i));
    if (i < n) {
      const auto sum = S::load_part(out + i, n - i) + S::load_part(in + i, n - i);
      S::store_part(out + i, sum, n - i);
    }
  }

  const Convolution& layer_;
  int64_t size_, block_, groups_;
};

/// The numbers of a task.
template <class Real>
static INNERLOOP_INLINE const Real* of_task(const void* data, int64_t task, int64_t size) {
  return data ? static_cast<const Real*>(data) + task * size : nullptr;
}
template <class Real>
static INNERLOOP_INLINE Real* of_task(void* data, int64_t task, int64_t size) {
  return data ? static_cast<Real*>(data) + task * size : nullptr;
}
template <class Real>
static INNERLOOP_INLINE const Real* of_task(const Operand& operand, int64_t task) {
  return of_task<Real>(operand.data, task, operand.task_stride);
}

/// Columns per panel of a packed matrix.
template <class Real>
constexpr int64_t kPanel = kPanelVectors * Simd<Real>::kLanes;

/// Factors of up to two products that are summed; the first one is there.
template <class Real>
struct Pairs {
  const Real* a[2] = {};
  const Real* b[2] = {};
  int count = 0;
  void add(const Real* left, const Real* right) {
    if (!left || !right) return;
    a[count] = left;
    b[count++] = right;
  }
};

/// y = sum_i x[i] * w[i] + bias.
template <class Real>
class Convolve {
 public:
  explicit Convolve(const ConvolveCall& call)
      : call_(call), layer_(call.layer), patches_(call.layer) {}

  Status run() {
    const int workers = static_cast<int>(smaller(layer_.threads, patches_.items()));
    Workspace memory(larger(workers, 1) * 2 * patches_.block_size() *
                     static_cast<int64_t>(sizeof(Real)));
    if (!memory.data()) return Status::kOutOfMemory;
    base_ = static_cast<Real*>(memory.data());
    parallel_beside_torch(
        patches_.items(), layer_.threads,
        [](void* self, int64_t item, int worker) {
          static_cast<Convolve*>(self)->run_item(item, worker);
        },
        this);
    return Status::kOk;
  }

 private:
  void run_item(int64_t item, int worker) {
    const int64_t task = item / patches_.groups(), group = item % patches_.groups();
    const int64_t x_size = layer_.rows * layer_.height * layer_.width * layer_.in;
    const int64_t places = layer_.places(), last = patches_.first_row(group + 1) * places;
    Real* y = of_task<Real>(call_.y, task, layer_.rows * places * layer_.out);
    Pairs<Real> pairs;
    for (int i = 0; i < 2; ++i) {
      pairs.add(of_task<Real>(call_.x[i], task, x_size), of_task<Real>(call_.w[i], task));
    }
    Real* scratch[2];
    for (int i = 0; i < 2; ++i) scratch[i] = base_ + (2 * worker + i) * patches_.block_size();
    for (int64_t at = patches_.first_row(group) * places; at < last; at += patches_.block()) {
      const int64_t count = smaller(patches_.block(), last - at);
      for (int i = 0; i < pairs.count; ++i) patches_.gather(pairs.a[i], at, count, scratch[i]);
      Product<Real> p{count,          layer_.out,
                      layer_.patch(), scratch[0],
                      layer_.patch(), 1,
                      pairs.b[0],     layer_.out,
                      kPanel<Real>,   pairs.count > 1 ? scratch[1] : nullptr,
                      pairs.b[1],     y + at * layer_.out,
                      layer_.out,     of_task<Real>(call_.bias, task)};
      multiply(p);
    }
  }

  const ConvolveCall& call_;
  const Convolution& layer_;
  Patches<Real> patches_;
  Real* base_ = nullptr;
};

/// The gradients in x, w and bias.
template <class Real>
class ConvolveBack {
 public:
  using S = Simd<Real>;

  explicit ConvolveBack(const ConvolveBackCall& call)
      : call_(call), layer_(call.layer), patches_(call.layer) {}

  Status run() {
    const int workers = static_cast<int>(larger(smaller(layer_.threads, patches_.items()), 1));
    const int64_t turned = round_up(layer_.patch(), kPanel<Real>) * layer_.out;
    turned_size_ = round_up(turned, Patches<Real>::kAligned);
    worker_size_ = 3 * patches_.block_size() + 2 * turned_size_;
    leaf_size_ = round_up(layer_.weights() + layer_.out, Patches<Real>::kAligned);
    const int64_t leaves = patches_.groups() > 1 ? patches_.items() : 0;
    Workspace memory((workers * worker_size_ + leaves * leaf_size_) *
                     static_cast<int64_t>(sizeof(Real)));
    if (!memory.data()) return Status::kOutOfMemory;
    base_ = static_cast<Real*>(memory.data());
    leaves_ = base_ + workers * worker_size_;
    parallel_beside_torch(
        patches_.items(), layer_.threads,
        [](void* self, int64_t item, int worker) {
          static_cast<ConvolveBack*>(self)->run_item(item, worker);
        },
        this);
    if (leaves) {
      parallel_beside_torch(
          layer_.tasks, layer_.threads,
          [](void* self, int64_t task, int) { static_cast<ConvolveBack*>(self)->sum(task); }, this);
    }
    return Status::kOk;
  }

 private:
  /// Where an item puts its share of the gradients of the leaves.
  Real* weight_gradient(int64_t task, int64_t group) const {
    if (!call_.gw) return nullptr;
    if (patches_.groups() == 1) return of_task<Real>(call_.gw, task, layer_.weights());
    return leaves_ + (task * patches_.groups() + group) * leaf_size_;
  }
  Real* bias_gradient(int64_t task, int64_t group) const {
    if (!call_.gb) return nullptr;
    if (patches_.groups() == 1) return of_task<Real>(call_.gb, task, layer_.out);
    return leaves_ + (task * patches_.groups() + group) * leaf_size_ + layer_.weights();
  }

  void run_item(int64_t item, int worker) {
    const int64_t task = item / patches_.groups(), group = item % patches_.groups();
    const int64_t first = patches_.first_row(group), end = patches_.first_row(group + 1);
    const int64_t places = layer_.places(), last = end * places;
    const int64_t row_size = layer_.height * layer_.width * layer_.in;
    const int64_t x_size = layer_.rows * row_size, g_size = layer_.rows * places * layer_.out;
    Real* memory = base_ + worker * worker_size_;
    Real* scratch[2] = {memory, memory + patches_.block_size()};
    Real* columns = memory + 2 * patches_.block_size();
    Real* turned = columns + patches_.block_size();
    Pairs<Real> inputs, weights;  // (g, w) and (g, x)
    for (int i = 0; i < 2; ++i) {
      const Real* g = of_task<Real>(call_.g[i], task, g_size);
      if (call_.gx) inputs.add(g, of_task<Real>(call_.w[i], task));
      if (call_.gw) weights.add(g, of_task<Real>(call_.x[i], task, x_size));
    }
    Real* gx = of_task<Real>(call_.gx, task, x_size);
    Real* gw = weight_gradient(task, group);
    Real* gb = bias_gradient(task, group);
    if (gx) std::memset(gx + first * row_size, 0, (end - first) * row_size * sizeof(Real));
    if (gw && (first == end || !weights.count)) std::memset(gw, 0, layer_.weights() * sizeof(Real));
    if (gb) std::memset(gb, 0, layer_.out * sizeof(Real));
    for (int i = 0; i < inputs.count; ++i) {
      Real* to = turned + i * turned_size_;
      pack_transposed(to, inputs.b[i], layer_.out, layer_.patch(), layer_.out);
      inputs.b[i] = to;
    }
    for (int64_t at = first * places; at < last; at += patches_.block()) {
      const int64_t count = smaller(patches_.block(), last - at);
      if (gw && weights.count) {
        for (int i = 0; i < weights.count; ++i) {
          patches_.gather(weights.b[i], at, count, scratch[i]);
        }
        multiply_weights(weights, scratch, at, count, at == first * places, gw);
      }
      if (gx && inputs.count) {
        multiply_inputs(inputs, at, count, columns);
        patches_.scatter(columns, at, count, gx);
      }
      if (gb && call_.g[0])
        add_rows(of_task<Real>(call_.g[0], task, g_size) + at * layer_.out, count, gb);
    }
  }

  /// gw (+)= sum_i patches[i]' g[i] over a block.
  void multiply_weights(const Pairs<Real>& pairs, Real* const* patches, int64_t at, int64_t count,
                        bool is_first, Real* gw) const {
    Product<Real> p{layer_.patch(),
                    layer_.out,
                    count,
                    patches[0],
                    1,
                    layer_.patch(),
                    pairs.a[0] + at * layer_.out,
                    layer_.out,
                    kPanel<Real>,
                    pairs.count > 1 ? patches[1] : nullptr,
                    pairs.count > 1 ? pairs.a[1] + at * layer_.out : nullptr,
                    gw,
                    layer_.out,
                    is_first ? nullptr : gw,
                    layer_.out};
    multiply(p);
  }

  /// columns = sum_i g[i] w[i]' over a block.
  void multiply_inputs(const Pairs<Real>& pairs, int64_t at, int64_t count, Real* columns) const {
    Product<Real> p{count,
                    layer_.patch(),
                    layer_.out,
                    pairs.a[0] + at * layer_.out,
                    layer_.out,
                    1,
                    pairs.b[0],
                    kPanel<Real>,
                    layer_.out * kPanel<Real>,
                    pairs.count > 1 ? pairs.a[1] + at * layer_.out : nullptr,
                    pairs.b[1],
                    columns,
                    layer_.patch()};
    multiply(p);
  }

  /// gb += the sum of some rows, which is made first: sums of sums lose less.
  void add_rows(const Real* g, int64_t count, Real* gb) const {
    int64_t k = 0;
    for (; k + S::kLanes <= layer_.out; k += S::kLanes) {
      typename S::V total{};
      for (int64_t i = 0; i < count; ++i) total += S::load(g + i * layer_.out + k);
      S::store(gb + k, S::load(gb + k) + total);
    }
    for (; k < layer_.out; ++k) {
      Real total = 0;
      for (int64_t i = 0; i < count; ++i) total += g[i * layer_.out + k];
      gb[k] += total;
    }
  }

  /// The gradients of a task's leaves from those of its items.
  void sum(int64_t task) const {
    const int64_t groups = patches_.groups();
    const Real* from = leaves_ + task * groups * leaf_size_;
    if (call_.gw) {
      sum_leaf(from, layer_.weights(), of_task<Real>(call_.gw, task, layer_.weights()));
    }
    if (call_.gb) {
      sum_leaf(from + layer_.weights(), layer_.out, of_task<Real>(call_.gb, task, layer_.out));
    }
  }
  void sum_leaf(const Real* from, int64_t size, Real* out) const {
    for (int64_t j = 0; j < size; j += S::kLanes) {
      const int64_t width = smaller(S::kLanes, size - j);
      typename S::V total{};
      for (int64_t i = 0; i < patches_.groups(); ++i) {
        const Real* at = from + i * leaf_size_ + j;
        total += width == S::kLanes ? S::load(at) : S::load_part(at, width);
      }
      if (width == S::kLanes) {
        S::store(out + j, total);
      } else {
        S::store_part(out + j, total, width);
      }
    }
  }

  const ConvolveBackCall& call_;
  const Convolution& layer_;
  Patches<Real> patches_;
  int64_t turned_size_ = 0, worker_size_ = 0, leaf_size_ = 0;
  Real* base_ = nullptr;
  Real* leaves_ = nullptr;
};

}  // namespace INNERLOOP_LEVEL
}  // namespace innerloop
