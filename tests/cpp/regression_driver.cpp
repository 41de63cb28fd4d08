// Runs random trials and tasks of the linear-regression study straight on the kernels, without
// Python, so that sanitizers see nothing but our code. Every array is an allocation of exactly its
// size and the workspace is given back after each call. All levels and thread counts must give the
// same bits, and all numbers must be finite.
//
// usage: innerloop_regression_driver CASES SEED
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

using Numbers = std::vector<double>;

struct Case {
  RegressionLaw law;
  int64_t tasks, first_trial, trials;
  Numbers rates;
};

Case draw_case(uint64_t seed) {
  std::mt19937_64 random(seed);
  const auto below = [&random](uint64_t n) { return static_cast<int64_t>(random() % n); };
  Case c{{1 + below(9), 1 + below(12), 0.5 + 0.5 * static_cast<double>(below(6)), random()},
         1 + below(40),
         below(1000),
         below(40),
         Numbers(static_cast<size_t>(below(4)))};
  for (double& rate : c.rates) rate = 0.1 * static_cast<double>(below(30)) - 1;
  return c;
}

Numbers sized(int64_t count) { return Numbers(static_cast<size_t>(count), NAN); }

/// Excess risks and estimates of the trials, then everything about their tasks.
std::vector<Numbers> run(const Case& c, int threads) {
  const int64_t p = c.law.dimension, rates = static_cast<int64_t>(c.rates.size());
  const int64_t lead = c.trials * c.tasks;
  const std::vector<RegressionRisk> risks(static_cast<size_t>(1 + rates), {0.7, 1.1});
  std::vector<Numbers> out = {sized(c.trials * (1 + 3 * rates)),
                              sized(c.trials * (1 + rates) * p),
                              sized(lead * p),
                              sized(lead),
                              sized(lead * p * p),
                              sized(2 * lead * p * p),
                              sized(2 * lead * p)};
  const RegressionKernels& kernels = regression_kernels();
  const RegressionTrialsCall trials{c.law,         c.tasks,        c.first_trial, c.trials,
                                    rates,         c.rates.data(), risks.data(),  out[0].data(),
                                    out[1].data(), threads};
  const RegressionTasksCall tasks{c.law,         c.tasks,       c.first_trial, c.trials,
                                  out[2].data(), out[3].data(), out[4].data(), out[5].data(),
                                  out[6].data(), threads};
  const Status first = kernels.trials(trials);
  release_workspaces();
  const Status second = kernels.tasks(tasks);
  release_workspaces();
  if (first != Status::kOk || second != Status::kOk) out.clear();
  return out;
}

/// Empty, or what is wrong.
std::string compare(const std::vector<Numbers>& actual, const std::vector<Numbers>& expected) {
  if (actual.size() != expected.size() || actual.empty()) return "a call failed";
  for (size_t k = 0; k < actual.size(); ++k) {
    for (size_t i = 0; i < actual[k].size(); ++i) {
      const std::string where = "output " + std::to_string(k) + ", element " + std::to_string(i);
      if (!std::isfinite(actual[k][i])) return where + " is not finite";
      if (std::memcmp(&actual[k][i], &expected[k][i], sizeof(double)) != 0) {
        return where + " differs";
      }
    }
  }
  return "";
}

int drive(uint64_t cases, uint64_t seed) {
  for (uint64_t at = seed; at < seed + cases; ++at) {
    const Case c = draw_case(at);
    set_simd_level(simd_levels().front());
    const std::vector<Numbers> expected = run(c, 1);
    for (const std::string& level : simd_levels()) {
      set_simd_level(level);
      for (int threads : {1, 2, 4}) {
        const std::string wrong = compare(run(c, threads), expected);
        if (!wrong.empty()) {
          std::fprintf(stderr, "case %llu, %s, %d threads: %s\n",
                       static_cast<unsigned long long>(at), level.c_str(), threads, wrong.c_str());
          return 1;
        }
      }
    }
  }
  std::printf("%llu regressions, each at every level and 1, 2, 4 threads: equal bits\n",
              static_cast<unsigned long long>(cases));
  return 0;
}

}  // namespace
}  // namespace innerloop

int main(int count, char** arguments) {
  if (count != 3) {
    std::fprintf(stderr, "usage: innerloop_regression_driver CASES SEED\n");
    return 2;
  }
  return innerloop::drive(std::strtoull(arguments[1], nullptr, 10),
                          std::strtoull(arguments[2], nullptr, 10));
}
