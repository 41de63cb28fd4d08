// The kernels on emulated blocks, behind the interface of a device: innerloop's CUDA binding built
// over this file runs them on the host.
#include <memory>
#include <vector>

#include "bindings/arguments.h"
#include "cuda/device.h"
#include "emulated_block.h"

namespace innerloop {

/// Of emulated_regression.cpp.
void define_emulated_regression(py::module_& m);

namespace {

DeviceFacts facts{132, 232448, 233472};
int64_t launches = 0, uploads = 0;

class EmulatedTarget {
 public:
  explicit EmulatedTarget(const BlockContext&) {}

  const char* upload(void* to, const void* from, int64_t bytes) {
    ++uploads;
    std::memcpy(to, from, static_cast<size_t>(bytes));
    return nullptr;
  }
  template <class Real, template <class> class Pass, class Call>
  const char* launch(const Launch<Call>& launch, const Schedule& schedule) {
    using F = Frame<EmulatedBlock, Real, Pass, Call>;
    ++launches;
    const EmulatedBlock block(schedule.threads, launch.options.tf32);
    for (int64_t index = 0; index < launch.blocks; ++index) {
      const int64_t cells = F(block, launch, nullptr).cells;
      std::vector<WatchedCell<Real>> workspace(static_cast<size_t>(cells));
      const std::unique_ptr<void, void (*)(void*)> frame(::operator new(sizeof(F)),
                                                         [](void* p) { ::operator delete(p); });
      run_tasks<EmulatedBlock, Real, Pass, Call>(block, launch, static_cast<F*>(frame.get()),
                                                 workspace.data(), index);
    }
    return nullptr;
  }
  template <class Real>
  const char* sum(const SumLaunch& launch, int64_t blocks) {
    ++launches;
    const EmulatedBlock block(kSumColumns * kSumLanes);
    for (int64_t index = 0; index < blocks; ++index) {
      std::vector<WatchedCell<Real>> partial(kSumColumns * kSumLanes);
      for (auto& cell : partial) cell.open();
      sum_slots<EmulatedBlock, Real>(block, launch, partial.data(), index);
    }
    return nullptr;
  }
};

}  // namespace

DeviceGuard::DeviceGuard(int) {}
DeviceGuard::~DeviceGuard() = default;

const char* device_facts(int, DeviceFacts* to) {
  *to = facts;
  return nullptr;
}

const BlockKernels& block_kernels(bool is_float64) {
  static constexpr BlockKernels kFloat32 = BlockOperations<EmulatedTarget, float>::kTable;
  static constexpr BlockKernels kFloat64 = BlockOperations<EmulatedTarget, double>::kTable;
  return is_float64 ? kFloat64 : kFloat32;
}

/// Runs one phase that breaks a rule: the emulation must refuse it.
void misuse(const std::string& rule) {
  const EmulatedBlock block(4);
  std::vector<WatchedCell<double>> memory(32);
  Carver<WatchedCell<double>> carver(memory.data());
  auto *left = carver.take(8), *right = carver.take(8);
  const auto fill = [&](WatchedCell<double>* cells) {
    block.spread(1, 8, [&](int, int i) { cells[i] = 1.0; });
  };
  fill(left);
  if (rule == "barrier between write and read") {
    block.spread(1, 8, [&](int, int i) { right[i] = left[7 - i]; });
  }
  block.barrier();
  if (rule == "barrier between read and write") {
    block.spread(1, 8, [&](int, int i) { right[i] = left[7 - i]; });
    fill(left);
  } else if (rule == "one writer") {
    block.spread(4, 4, [&](int row, int) { right[row] = 1.0; });
  } else if (rule == "initialised") {
    block.spread(1, 8, [&](int, int i) { left[i] = right[i]; });
  } else if (rule == "in bounds") {
    block.spread(1, 9, [&](int, int i) { left[i] = 2.0; });
  } else if (rule == "writes in phases") {
    left[0] = 2.0;
  } else if (rule == "barrier after a common read") {
    const double common = left[0];
    block.spread(1, 8, [&](int, int i) { left[i] = common; });
  } else if (rule == "none") {
    block.spread(1, 8, [&](int, int i) { right[i] = left[7 - i]; });
    block.barrier();
    fill(left);
  }
}

void define_backend(py::module_& m) {
  define_emulated_regression(m);
  m.def("misuse", &misuse);
  m.def("set_device", [](int multiprocessors, int64_t per_block, int64_t per_multiprocessor) {
    facts = {multiprocessors, per_block, per_multiprocessor};
  });
  m.def("tensor_instructions", [] { return EmulatedWarp::instructions; });
  m.def("counters", [] { return py::make_tuple(launches, uploads, accesses); });
}

}  // namespace innerloop
