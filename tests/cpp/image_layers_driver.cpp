// Runs random convolutions and blocks of batch norm straight on the kernels, without Python, so
// that sanitizers see nothing but our code. Every array is an allocation of exactly its size, and
// the workspace is given back after each call. At every level all thread counts must give the same
// bits, and all numbers must be finite.
//
// usage: innerloop_image_layers_driver CASES SEED
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>
#include <string>
#include <vector>

#include "cpu/dispatch.h"
#include "cpu/parallel.h"

namespace innerloop {
namespace {

/// The numbers of one case: the same ones whenever it is run.
template <class Real>
class Draws {
 public:
  using Numbers = std::vector<Real>;

  explicit Draws(uint64_t seed) : random_(seed) {}
  int64_t below(uint64_t n) { return static_cast<int64_t>(random_() % n); }
  int64_t upto(uint64_t n) { return 1 + below(n); }
  Numbers numbers(int64_t count) {
    Numbers out(static_cast<size_t>(count));
    for (Real& each : out) each = static_cast<Real>(0.01) * static_cast<Real>(below(401) - 200);
    return out;
  }
  static Numbers unset(int64_t count) { return Numbers(static_cast<size_t>(count), NAN); }

 private:
  std::mt19937_64 random_;
};

template <class Real>
using Results = std::vector<std::vector<Real>>;

/// The two calls of a convolution with both pairs; empty if no window fits.
template <class Real>
Results<Real> convolve(uint64_t seed, int threads) {
  Draws<Real> d(seed);
  Convolution c{d.upto(4),
                d.upto(4),
                d.upto(20),
                d.upto(7),
                d.upto(7),
                d.upto(36),
                0,
                0,
                {d.upto(3), d.upto(3)},
                {d.upto(2), d.upto(2)},
                {d.below(3), d.below(3)},
                {d.upto(2), d.upto(2)},
                threads};
  const auto outputs = [&c](int64_t size, int axis) {
    const int64_t left = size + 2 * c.padding[axis] - (c.kernel[axis] - 1) * c.dilation[axis] - 1;
    return left < 0 ? 0 : left / c.stride[axis] + 1;
  };
  c.out_height = outputs(c.height, 0);
  c.out_width = outputs(c.width, 1);
  if (c.places() == 0) return {};
  const int64_t rows = c.tasks * c.rows, image = c.height * c.width * c.in;
  const auto x = d.numbers(rows * image), x_dot = d.numbers(rows * image);
  const auto w = d.numbers(c.weights()), w_dot = d.numbers(c.tasks * c.weights());
  const auto b = d.numbers(c.tasks * c.out);
  const auto g = d.numbers(rows * c.places() * c.out), g_dot = d.numbers(rows * c.places() * c.out);
  Results<Real> out = {d.unset(rows * c.places() * c.out), d.unset(rows * image),
                       d.unset(c.tasks * c.weights()), d.unset(c.tasks * c.out)};
  const Operand shared{w.data(), 0}, own{w_dot.data(), c.weights()};
  const LayerKernels& kernels = layer_kernels(sizeof(Real) == 8);
  const Status first = kernels.convolve(
      {c, {x.data(), x_dot.data()}, {shared, own}, {b.data(), c.out}, out[0].data()});
  release_workspaces();
  const Status second = kernels.convolve_back({c,
                                               {g.data(), g_dot.data()},
                                               {x.data(), x_dot.data()},
                                               {shared, own},
                                               out[1].data(),
                                               out[2].data(),
                                               out[3].data()});
  release_workspaces();
  if (first != Status::kOk || second != Status::kOk) out.push_back(d.unset(1));
  return out;
}

/// The four passes of a block.
template <class Real>
Results<Real> normalise(uint64_t seed, int threads) {
  Draws<Real> d(seed);
  NormBlock l{d.upto(4), d.upto(4), d.upto(40), d.upto(7), d.upto(7), {0, 0}, false, 1e-5, threads};
  l.window[0] = std::min(d.upto(3), l.height);
  l.window[1] = std::min(d.upto(3), l.width);
  l.has_relu = d.below(2) == 1;
  const int64_t all = l.tasks * l.rows * l.places() * l.channels;
  const int64_t chosen = l.tasks * l.rows * l.chosen() * l.channels, sums = l.tasks * l.channels;
  const auto x = d.numbers(all), x_dot = d.numbers(all);
  const auto g = d.numbers(chosen), g_dot = d.numbers(chosen);
  const auto w = d.numbers(sums), w_dot = d.numbers(sums), b = d.numbers(l.channels);
  Results<Real> out;
  const auto put = [&](int64_t count) {
    out.push_back(d.unset(count));
    return static_cast<void*>(out.back().data());
  };
  NormBlockCall call{};
  call.layer = l;
  call.w = {w.data(), l.channels};
  call.b = {b.data(), 0};
  call.x = x.data();
  call.statistics = put(2 * sums);
  call.chosen = l.has_pool() ? put(chosen) : nullptr;
  call.y = put(chosen);
  const LayerKernels& kernels = layer_kernels(sizeof(Real) == 8);
  bool fine = kernels.norm_forward(call) == Status::kOk;
  const auto gradients = [&] {
    call.gx = put(all);
    call.gw = put(sums);
    call.gb = put(sums);
  };
  call.g = g.data();
  call.sums = put(2 * sums);
  gradients();
  fine = kernels.norm_backward(call) == Status::kOk && fine;
  call.x_dot = x_dot.data();
  call.w_dot = {w_dot.data(), l.channels};
  call.b_dot = {b.data(), 0};
  call.y_dot = put(chosen);
  call.dot_sums = put(3 * sums);
  fine = kernels.norm_tangent(call) == Status::kOk && fine;
  call.g_dot = g_dot.data();
  gradients();
  fine = kernels.norm_second(call) == Status::kOk && fine;
  if (!fine) put(1);
  return out;
}

/// Empty, or what is wrong.
template <class Real>
std::string compare(const Results<Real>& actual, const Results<Real>& expected) {
  for (size_t k = 0; k < actual.size(); ++k) {
    for (size_t i = 0; i < actual[k].size(); ++i) {
      const std::string where = "output " + std::to_string(k) + ", element " + std::to_string(i);
      if (!std::isfinite(actual[k][i])) return where + " is not finite";
      if (std::memcmp(&actual[k][i], &expected[k][i], sizeof(Real)) != 0) return where + " differs";
    }
  }
  return "";
}

template <class Real>
std::string check(uint64_t seed) {
  for (auto* run : {convolve<Real>, normalise<Real>}) {
    const Results<Real> expected = run(seed, 1);
    for (int threads : {1, 3}) {
      const std::string wrong = compare(run(seed, threads), expected);
      if (!wrong.empty()) {
        return std::string(run == convolve<Real> ? "convolution" : "norm block") + " in float" +
               std::to_string(8 * sizeof(Real)) + ", " + std::to_string(threads) +
               " thread(s): " + wrong;
      }
    }
  }
  return "";
}

}  // namespace
}  // namespace innerloop

int main(int argc, char** argv) {
  using namespace innerloop;
  if (argc != 3) {
    std::fprintf(stderr, "usage: innerloop_image_layers_driver CASES SEED\n");
    return 2;
  }
  const int cases = std::atoi(argv[1]);
  const uint64_t first = std::strtoull(argv[2], nullptr, 10);
  for (const std::string& level : simd_levels()) {
    set_simd_level(level);
    for (int i = 0; i < cases; ++i) {
      const uint64_t seed = first + static_cast<uint64_t>(i);
      std::string wrong = check<float>(seed);
      if (wrong.empty()) wrong = check<double>(seed);
      if (!wrong.empty()) {
        std::fprintf(stderr, "case %llu at %s: %s\n", static_cast<unsigned long long>(seed),
                     level.c_str(), wrong.c_str());
        return 1;
      }
    }
  }
  std::printf("%d cases of layers, each at every level and 1, 3 threads: equal bits\n", cases);
  return 0;
}
