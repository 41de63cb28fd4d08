#include "cpu/dispatch.h"

#include <atomic>
#include <cstdlib>
#include <stdexcept>

namespace innerloop {

#define INNERLOOP_DECLARE_LEVEL(level)            \
  namespace level {                               \
  extern const Kernels kFloat32, kFloat64;        \
  extern const LayerKernels kLayers32, kLayers64; \
  extern const RegressionKernels kRegression;     \
  }
INNERLOOP_DECLARE_LEVEL(baseline)
#if defined(INNERLOOP_HAS_AVX2)
INNERLOOP_DECLARE_LEVEL(avx2)
#endif
#if defined(INNERLOOP_HAS_AVX512)
INNERLOOP_DECLARE_LEVEL(avx512)
#endif

namespace {

struct Level {
  std::string name;
  const Kernels* float32;
  const Kernels* float64;
  const LayerKernels* layers32;
  const LayerKernels* layers64;
  const RegressionKernels* regression;
};

/// __builtin_cpu_supports also asks whether the operating system saves the wide registers.
std::vector<Level> find_levels() {
  std::vector<Level> found;
  found.push_back({"baseline", &baseline::kFloat32, &baseline::kFloat64, &baseline::kLayers32,
                   &baseline::kLayers64, &baseline::kRegression});
#if defined(__x86_64__)
  __builtin_cpu_init();
#if defined(INNERLOOP_HAS_AVX2)
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) {
    found.push_back({"avx2", &avx2::kFloat32, &avx2::kFloat64, &avx2::kLayers32, &avx2::kLayers64,
                     &avx2::kRegression});
  }
#endif
#if defined(INNERLOOP_HAS_AVX512)
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl")) {
    found.push_back({"avx512", &avx512::kFloat32, &avx512::kFloat64, &avx512::kLayers32,
                     &avx512::kLayers64, &avx512::kRegression});
  }
#endif
#endif
  return found;
}

const std::vector<Level>& levels() {
  static const std::vector<Level> found = find_levels();
  return found;
}

/// `source` is what the name was given to, for the message.
int find(const std::string& name, const std::string& source) {
  for (int i = 0; i < static_cast<int>(levels().size()); ++i) {
    if (levels()[i].name == name) return i;
  }
  std::string known;
  for (const Level& level : levels()) known += (known.empty() ? "" : ", ") + level.name;
  throw std::invalid_argument(source + " must be one of " + known + " on this machine (got " +
                              name + ")");
}

int initial_level() {
  const char* asked = std::getenv("INNERLOOP_SIMD");
  return asked && *asked ? find(asked, "INNERLOOP_SIMD") : static_cast<int>(levels().size()) - 1;
}

std::atomic<int>& current() {
  static std::atomic<int> level{initial_level()};
  return level;
}

}  // namespace

const std::vector<std::string>& simd_levels() {
  static const std::vector<std::string> names = [] {
    std::vector<std::string> result;
    for (const Level& level : levels()) result.push_back(level.name);
    return result;
  }();
  return names;
}

const std::string& simd_level() { return levels()[current().load()].name; }

void set_simd_level(const std::string& name) {
  current().store(find(name, "set_simd_level: name"));
}

const Kernels& kernels(bool is_float64) {
  const Level& level = levels()[current().load(std::memory_order_relaxed)];
  return is_float64 ? *level.float64 : *level.float32;
}

const LayerKernels& layer_kernels(bool is_float64) {
  const Level& level = levels()[current().load(std::memory_order_relaxed)];
  return is_float64 ? *level.layers64 : *level.layers32;
}

const RegressionKernels& regression_kernels() {
  return *levels()[current().load(std::memory_order_relaxed)].regression;
}

}  // namespace innerloop
