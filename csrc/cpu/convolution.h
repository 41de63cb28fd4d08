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
  static constexpr int64_t kItems = 8;  // wanted at least

  explicit Patches(const Convolution& layer) : layer_(layer), size_(layer.patch()) {
    const int64_t fit = kBlockBytes / (size_ * static_cast<int64_t>(sizeof(Real)));
    block_ = larger(kBlockRows, smaller(fit, kMaxRows) / kBlockRows * kBlockRows);
    groups_ = smaller(layer.rows, (kItems + layer.tasks - 1) / larger(layer.tasks, 1));
    groups_ = larger(groups_, 1);
  }

  int64_t block() const { return block_; }
  int64_t groups() const { return groups_; }
  int64_t items() const { return layer_.tasks * groups_; }
  int64_t first_row(int64_t group) const { return layer_.rows * group / groups_; }
  /// Numbers of a block of patches: the copies of a gather end with a whole vector.
  int64_t block_size() const { return round_up(block_ * size_ + S::kLanes, kAligned); }
  static constexpr int64_t kAligned = 64 / sizeof(Real);

  /// out [count, taps, in]: the patches of places first .. first + count of the rows x.
  void gather(const Real* x, int64_t first, int64_t count, Real* out) const {
    each_run(first, count, [&](int64_t before, int64_t from, int64_t length, int64_t after) {
      out = fill(out, before);
      out = copy(out, x + from, length);
      out = fill(out, after);
    });
  }

  /// Adds patches to the places of x that they were gathered from.
  void scatter(const Real* in, int64_t first, int64_t count, Real* x) const {
    each_run(first, count, [&](int64_t before, int64_t from, int64_t length, int64_t after) {
      in += before;
      add(x + from, in, length);
      in += length + after;
    });
  }

 private:
  /// f(before, from, length, after) for the runs of places that lie together in memory, in order:
  /// `before` numbers of padding, then `length` numbers at x + from, then padding again.
  template <class F>
  INNERLOOP_INLINE void each_run(int64_t first, int64_t count, F f) const {
    const Convolution& l = layer_;
    // taps of one row of the kernel lie together if they are not dilated
    const bool together = l.dilation[1] == 1;
    const int64_t runs = together ? 1 : l.kernel[1], wide = together ? l.kernel[1] : 1;
    int64_t row = first / l.places();
    int64_t oy = first % l.places() / l.out_width, ox = first % l.out_width;
    for (int64_t i = 0; i < count; ++i) {
      const int64_t left = ox * l.stride[1] - l.padding[1];
      const Run at_left = clip(left, wide);  // the same for all rows of the kernel
      for (int64_t ky = 0; ky < l.kernel[0]; ++ky) {
        const int64_t y = oy * l.stride[0] - l.padding[0] + ky * l.dilation[0];
        const bool inside = y >= 0 && y < l.height;
        const int64_t line = (row * l.height + y) * l.width;
        for (int64_t r = 0; r < runs; ++r) {
          const Run run = r ? clip(left + r * l.dilation[1], wide) : at_left;
          if (inside && run.length) {
            f(run.before * l.in, (line + run.low) * l.in, run.length * l.in, run.after * l.in);
          } else {
            f(wide * l.in, 0, 0, 0);
          }
        }
      }
      if (++ox == l.out_width) {
        ox = 0;
        if (++oy == l.out_height) {
          oy = 0;
          ++row;
        }
      }
    }
  }

  /// What of `wide` places from `start` on is there: `length` of them, from `low` on.
  struct Run {
    int64_t low, before, length, after;
  };
  Run clip(int64_t start, int64_t wide) const {
    const int64_t low = larger(start, 0), high = smaller(start + wide, layer_.width);
    return {low, low - start, larger(high - low, 0), start + wide - high};
  }

  /// Both write a whole last vector: what follows is written later.
  static INNERLOOP_INLINE Real* fill(Real* out, int64_t n) {
    for (int64_t i = 0; i < n; i += S::kLanes) S::store(out + i, typename S::V{});
    return out + n;
  }
  static INNERLOOP_INLINE Real* copy(Real* out, const Real* in, int64_t n) {
    int64_t i = 0;
    for (; i + S::kLanes <= n; i += S::kLanes) S::store(out + i, S::load(in + i));
    if (i < n) S::store(out + i, S::load_part(in + i, n - i));
    return out + n;
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
    parallel_for(
        patches_.items(), workers,
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
    parallel_for(
        patches_.items(), workers,
        [](void* self, int64_t item, int worker) {
          static_cast<ConvolveBack*>(self)->run_item(item, worker);
        },
        this);
    if (leaves) {
      parallel_for(
          layer_.tasks, workers,
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
