// Runs random operations straight on the kernels, without Python, so that sanitizers see nothing
// but our code. Every array lives in its own allocation of exactly its size; the workspace is given
// back after each call, so that each call's is exactly as large as it asked for. Results must be
// finite where they should be, bitwise equal for every thread count, and close between
// instruction levels and layouts.
//
// usage: innerloop_driver CASES SEED CALLERS
// CALLERS > 1: that many threads call at once, each its own cases, and must get what one alone
// gets.
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "core/objectives/all.h"
#include "cpu/dispatch.h"
#include "cpu/parallel.h"

namespace innerloop {
namespace {

/// SplitMix64.
class Random {
 public:
  explicit Random(uint64_t seed) : state_(seed) {}
  uint64_t next() {
    uint64_t z = (state_ += 0x9e3779b97f4a7c15u);
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
  }
  int64_t below(int64_t n) { return static_cast<int64_t>(next() % static_cast<uint64_t>(n)); }
  bool chance(int percent) { return below(100) < percent; }
  double uniform() { return static_cast<double>(next() >> 11) * 0x1p-53; }
  double signed_uniform() { return 2 * uniform() - 1; }
  int64_t one_of(std::initializer_list<int64_t> values) {
    return values.begin()[below(static_cast<int64_t>(values.size()))];
  }

 private:
  uint64_t state_;
};

/// An array of floats or doubles in an allocation of its own size; null when empty, as torch's are.
class Array {
 public:
  Array() = default;
  Array(bool is_float64, int64_t size) : is_float64_(is_float64), size_(size) {
    if (size > 0) data_.reset(new char[static_cast<size_t>(size) * (is_float64 ? 8 : 4)]);
    fill(std::numeric_limits<double>::quiet_NaN());
  }
  void set(int64_t i, double value) {
    if (is_float64_) {
      reinterpret_cast<double*>(data_.get())[i] = value;
    } else {
      reinterpret_cast<float*>(data_.get())[i] = static_cast<float>(value);
    }
  }
  double at(int64_t i) const {
    return is_float64_ ? reinterpret_cast<const double*>(data_.get())[i]
                       : static_cast<double>(reinterpret_cast<const float*>(data_.get())[i]);
  }
  void fill(double value) {
    for (int64_t i = 0; i < size_; ++i) set(i, value);
  }
  void draw(Random& random, double scale) {
    for (int64_t i = 0; i < size_; ++i) set(i, scale * random.signed_uniform());
  }
  int64_t size() const { return size_; }
  void* data() const { return data_.get(); }
  bool same_bits(const Array& other) const {
    return size_ == other.size_ &&
           (size_ == 0 || std::memcmp(data_.get(), other.data_.get(),
                                      static_cast<size_t>(size_) * (is_float64_ ? 8 : 4)) == 0);
  }

 private:
  bool is_float64_ = false;
  int64_t size_ = 0;
  std::unique_ptr<char[]> data_;
};

/// One side's data; rows beyond a count hold NaN and classes that do not exist.
struct Rows {
  int64_t rows = 0;
  Array x, y, weight;
  std::unique_ptr<int64_t[]> classes, count;
  std::vector<double> constants;
  Objective objective;

  Side view() const {
    return {
        rows,          x.data(),    classes ? static_cast<const void*>(classes.get()) : y.data(),
        weight.data(), count.get(), objective};
  }
};

enum class Operation { kPredict, kLossAndGrad, kHvp, kAdapt, kMetaGrad };

/// A random operation with its inputs.
struct Case {
  Operation operation;
  bool is_float64;
  std::vector<Layer> layers;
  Net net;
  int64_t tasks, steps;
  int order;
  Solver solver;
  bool stepwise, wants_grad, wants_rate_grad, wants_support_loss;
  std::vector<uint8_t> adapt;
  std::vector<Array> params, vector;
  std::vector<int64_t> strides, vector_strides;
  Rates rates;
  Array rate_values, task_weight;
  Rows support, query;
};

std::vector<Array> draw_leaves(Random& random, const Case& c, std::vector<int64_t>* strides,
                               double scale) {
  std::vector<Array> leaves;
  const int per_task = static_cast<int>(random.one_of({0, 0, 50, 100}));
  for (const Layer& layer : c.layers) {
    const int64_t none = 0;
    for (int64_t size : {layer.weight_leaf < 0 ? none : layer.weight_size(),
                         layer.bias_leaf < 0 ? none : layer.out}) {
      if (size == 0) continue;
      const bool own = random.chance(per_task);
      leaves.emplace_back(c.is_float64, own ? size * c.tasks : size);
      leaves.back().draw(random, scale / std::sqrt(static_cast<double>(layer.in)));
      strides->push_back(own ? size : 0);
    }
  }
  return leaves;
}

Rows draw_rows(Random& random, const Case& c) {
  Rows r;
  r.rows = random.one_of({0, 1, 1, 2, 3, 5, 8, 10, 17, 33});
  if (c.tasks < 4 && random.below(12) == 0) r.rows = 2500;  // passed in parts
  const int64_t in = c.net.first().in, out = c.net.last().out, samples = c.tasks * r.rows;
  const auto kind = static_cast<ObjectiveKind>(random.one_of({0, 1, 2, 3, 4, 9, 10}));
  r.constants = {0.5, 1};  // of all but the one with a weight for each class
  if (kind == ObjectiveKind::kSoftCrossEntropy) r.constants.resize(static_cast<size_t>(out) + 1, 2);
  r.objective = {kind, r.constants.data(), static_cast<int>(r.constants.size())};
  const bool has_classes = target_layout(r.objective, out).has_classes;
  r.x = Array(c.is_float64, samples * in);
  r.x.draw(random, 1);
  r.y = Array(c.is_float64, has_classes ? 0 : samples * out);
  r.y.draw(random, 1);
  if (has_classes) {
    r.classes.reset(new int64_t[static_cast<size_t>(samples)]);
    for (int64_t i = 0; i < samples; ++i) r.classes[i] = random.below(out);
  }
  if (random.chance(30)) {
    r.weight = Array(c.is_float64, samples);
    r.weight.draw(random, 1);
    for (int64_t i = 0; i < samples; ++i) {
      if (random.chance(15)) r.weight.set(i, 0);
    }
  }
  if (random.chance(30)) {
    r.count.reset(new int64_t[static_cast<size_t>(c.tasks)]);
    const double nan = std::numeric_limits<double>::quiet_NaN();
    for (int64_t t = 0; t < c.tasks; ++t) {
      r.count[t] = random.below(r.rows + 1);
      for (int64_t i = t * r.rows + r.count[t]; i < (t + 1) * r.rows; ++i) {
        for (int64_t j = 0; j < in; ++j) r.x.set(i * in + j, nan);
        if (has_classes) r.classes[i] = -5;
        for (int64_t j = 0; j < out && !has_classes; ++j) r.y.set(i * out + j, nan);
      }
    }
  }
  return r;
}

void draw_net(Random& random, Case& c) {
  const int64_t depth = random.one_of({1, 2, 2, 3, 4});
  int64_t in = random.one_of({1, 2, 3, 7, 8, 16, 17, 65, 130});
  int64_t offset = 0;
  int leaf = 0;
  for (int64_t l = 0; l < depth; ++l) {
    Layer layer{};
    layer.in = in;
    layer.out = random.one_of({1, 2, 3, 5, 8, 9, 16, 17, 33, 40, 64, 70});
    const bool may_be_norm = l + 1 < depth || leaf > 0;  // some layer has leaves
    if (may_be_norm && random.chance(25)) {
      layer.kind = LayerKind::kLayerNorm;
      layer.constant = 0.01;
      layer.out = in;
    }
    layer.activation = l + 1 < depth || random.chance(20) ? static_cast<Activation>(random.below(8))
                                                          : Activation::kIdentity;
    layer.slope = layer.activation == Activation::kLeakyRelu ? 0.2 : 0;
    const bool affine = layer.kind == LayerKind::kAffine;
    layer.weight_leaf = affine || random.chance(70) ? leaf++ : -1;
    layer.weight_offset = offset;
    if (layer.weight_leaf >= 0) offset += layer.weight_size();
    layer.bias_leaf = random.chance(80) ? leaf++ : -1;
    layer.bias_offset = offset;
    if (layer.bias_leaf >= 0) offset += layer.out;
    in = layer.out;
    c.layers.push_back(layer);
  }
  c.net = {c.layers.data(), static_cast<int>(depth), leaf, offset};
}

void draw_rates(Random& random, Case& c) {
  const int64_t unit = random.one_of({0, 1, 2});  // model, leaf, element
  const int64_t width = unit == 0 ? 1 : unit == 1 ? c.net.leaves : c.net.parameters;
  const bool per_step = random.chance(50), per_task = random.chance(20);
  const int64_t set = width * (per_step ? c.steps : 1);
  c.rate_values = Array(c.is_float64, per_task ? set * c.tasks : set);
  c.rate_values.draw(random, 0.2);
  c.rates = {c.rate_values.data(), per_task ? set : 0, per_step ? width : 0, unit == 1 ? 1 : 0,
             unit == 2};
}

Case draw_case(uint64_t seed) {
  Random random(seed);
  Case c{};
  c.operation = static_cast<Operation>(random.one_of({0, 1, 2, 3, 4, 4, 4, 4}));
  c.is_float64 = random.chance(50);
  draw_net(random, c);
  c.tasks = random.one_of({0, 1, 2, 3, 5, 8, 9, 16, 17, 19, 40});
  c.steps = random.one_of({0, 1, 1, 2, 3, 5});
  c.order = random.chance(70) ? 2 : 1;
  static constexpr Solver kSolvers[] = {
      {}, {0.5, 0, 1, 0}, {0.5, 1, 0.5, 0}, {0, 1, 0, 0.1}, {0.5, 1, 0.5, 0.1}};
  c.solver = kSolvers[random.one_of({0, 0, 0, 1, 2, 3, 4})];
  c.stepwise = random.chance(40);
  c.wants_grad = random.chance(80);
  c.wants_rate_grad = random.chance(80);
  c.wants_support_loss = random.chance(80);
  const int adapted = static_cast<int>(random.one_of({0, 50, 100, 100}));
  for (int i = 0; i < c.net.leaves; ++i) c.adapt.push_back(random.chance(adapted));
  c.params = draw_leaves(random, c, &c.strides, 1);
  c.vector = draw_leaves(random, c, &c.vector_strides, 1);
  draw_rates(random, c);
  c.support = draw_rows(random, c);
  c.query = draw_rows(random, c);
  if (random.chance(40)) {
    c.task_weight = Array(c.is_float64, c.tasks);
    c.task_weight.draw(random, 1);
  }
  if (c.operation == Operation::kPredict) {  // ragged rows are the caller's to ignore there
    c.support.x.draw(random, 1);
  }
  return c;
}

std::vector<const void*> addresses(const std::vector<Array>& arrays) {
  std::vector<const void*> found;
  for (const Array& a : arrays) found.push_back(a.data());
  return found;
}

[[noreturn]] void fail(uint64_t seed, const std::string& what) {
  std::fprintf(stderr, "case %llu: %s\n", static_cast<unsigned long long>(seed), what.c_str());
  std::exit(1);
}

/// Runs a case and returns its outputs in a fixed order.
std::vector<Array> run(const Case& c, Strategy strategy, int threads, uint64_t seed) {
  const auto params = addresses(c.params), vector = addresses(c.vector);
  const Leaves leaves{params.data(), c.strides.data()};
  const Problem problem{&c.net, c.tasks, leaves, threads};
  const Kernels& table = kernels(c.is_float64);
  const int64_t parameters = c.net.parameters;
  std::vector<Array> out;
  const auto take = [&](int64_t size) {
    out.emplace_back(c.is_float64, size);
    return out.back().data();
  };
  out.reserve(8 + c.params.size());
  Status status = Status::kOk;
  if (c.operation == Operation::kPredict) {
    void* to = take(c.tasks * c.support.rows * c.net.last().out);
    status = table.predict({problem, c.support.rows, c.support.x.data(), to}, strategy);
  } else if (c.operation == Operation::kLossAndGrad) {
    void* losses = take(c.tasks);
    void* gradients = c.wants_grad ? take(c.tasks * parameters) : nullptr;
    status = table.loss_and_grad({problem, c.support.view(), losses, gradients}, strategy);
  } else if (c.operation == Operation::kHvp) {
    const Leaves direction{vector.data(), c.vector_strides.data()};
    void* to = take(c.tasks * parameters);
    status = table.hvp({problem, c.support.view(), direction, to}, strategy);
  } else {
    MetaGradCall call{};
    call.problem = problem;
    call.steps = c.steps;
    call.solver = c.solver;
    call.adapt = c.adapt.data();
    call.rates = c.rates;
    call.support = c.support.view();
    call.out_support_loss = c.wants_support_loss ? take(c.tasks * c.steps) : nullptr;
    std::vector<void*> grads;
    if (c.operation == Operation::kAdapt) {
      call.order = 1;
      call.adapted_stepwise = c.stepwise;
      call.adapted = take(c.tasks * (c.stepwise ? c.steps + 1 : 1) * parameters);
    } else {
      call.order = c.order;
      call.query = c.query.view();
      call.task_weight = c.task_weight.data();
      call.out_loss = take(c.tasks);
      call.out_query_loss = c.stepwise ? take(c.tasks * (c.steps + 1)) : nullptr;
      if (c.wants_grad) {
        for (const Array& leaf : c.params) grads.push_back(take(leaf.size()));
        call.grads = grads.data();
        call.grad_strides = c.strides.data();
        if (c.wants_rate_grad) call.out_rate_grad = take(c.rate_values.size());
        call.rate_grad_size = c.rate_values.size();
      }
    }
    status = table.meta_grad(call, strategy);
  }
  if (status != Status::kOk) fail(seed, "status " + std::to_string(static_cast<int>(status)));
  return out;
}

/// Losses of big random networks may overflow after some steps; such cases are run, not compared.
bool is_tame(const std::vector<Array>& outputs) {
  for (const Array& a : outputs) {
    for (int64_t i = 0; i < a.size(); ++i) {
      if (!(std::fabs(a.at(i)) < 1e6)) return false;
    }
  }
  return true;
}

void compare(const std::vector<Array>& actual, const std::vector<Array>& expected,
             const std::string& where, uint64_t seed) {
  for (size_t k = 0; k < expected.size(); ++k) {
    double error = 0, scale = 1e-3;
    for (int64_t i = 0; i < expected[k].size(); ++i) {
      error = std::fmax(error, std::fabs(actual[k].at(i) - expected[k].at(i)));
      scale = std::fmax(scale, std::fabs(expected[k].at(i)));
      if (std::isnan(actual[k].at(i))) fail(seed, where + ": NaN in output " + std::to_string(k));
    }
    if (error > 1e-9 * scale) {
      fail(seed, where + ": output " + std::to_string(k) + " differs by " + std::to_string(error));
    }
  }
}

void check_bits(const std::vector<Array>& actual, const std::vector<Array>& expected,
                const std::string& where, uint64_t seed) {
  for (size_t k = 0; k < expected.size(); ++k) {
    if (!actual[k].same_bits(expected[k])) {
      fail(seed, where + ": output " + std::to_string(k) + " depends on the number of threads");
    }
  }
}

constexpr Strategy kStrategies[] = {Strategy::kAuto, Strategy::kLanes, Strategy::kRows};

/// Every level and layout with several thread counts. Returns whether the results were compared.
bool check_alone(uint64_t seed) {
  const Case c = draw_case(seed);
  std::vector<Array> first;
  bool compared = false;
  for (const std::string& level : simd_levels()) {
    set_simd_level(level);
    for (Strategy strategy : kStrategies) {
      const std::string where = level + ", strategy " + std::to_string(static_cast<int>(strategy));
      std::vector<Array> one = run(c, strategy, 1, seed);
      release_workspaces();
      for (int threads : {2, 4}) {
        check_bits(run(c, strategy, threads, seed), one, where, seed);
        release_workspaces();
      }
      if (first.empty()) {
        first = std::move(one);
        compared = c.is_float64 && is_tame(first);
      } else if (compared) {
        compare(one, first, where, seed);
      }
    }
  }
  return compared;
}

/// `callers` threads at once; every caller's results are those of one caller alone.
void check_together(int64_t cases, uint64_t seed, int callers) {
  std::vector<std::thread> threads;
  for (int caller = 0; caller < callers; ++caller) {
    threads.emplace_back([=] {
      for (int64_t i = 0; i < cases; ++i) {
        const uint64_t own = seed + static_cast<uint64_t>(i * callers + caller);
        const Case c = draw_case(own);
        const Strategy strategy = kStrategies[own % 3];
        const std::vector<Array> alone = run(c, strategy, 1, own);
        check_bits(run(c, strategy, 3, own), alone, "together", own);
        if (own % 7 == 0) release_workspaces();
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
}

int drive(int64_t cases, uint64_t seed, int callers) {
  if (callers > 1) {
    for (const std::string& level : simd_levels()) {
      set_simd_level(level);
      check_together(cases, seed, callers);
    }
    std::printf("%d callers at once, %lld cases each at each level: equal bits\n", callers,
                static_cast<long long>(cases));
    return 0;
  }
  int64_t compared = 0;
  for (int64_t i = 0; i < cases; ++i) compared += check_alone(seed + static_cast<uint64_t>(i));
  std::printf("%lld cases, each at every level, layout and 1, 2, 4 threads; %lld compared\n",
              static_cast<long long>(cases), static_cast<long long>(compared));
  return 0;
}

}  // namespace
}  // namespace innerloop

int main(int count, char** arguments) {
  if (count != 4) {
    std::fprintf(stderr, "usage: innerloop_driver CASES SEED CALLERS\n");
    return 2;
  }
  return innerloop::drive(std::atoll(arguments[1]), std::strtoull(arguments[2], nullptr, 10),
                          std::atoi(arguments[3]));
}
