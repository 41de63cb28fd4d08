// The kernels on emulated blocks, behind the interface of a device: innerloop's CUDA binding built
// over this file runs them on the host.
#include <vector>

#include "bindings/arguments.h"
#include "cuda/device.h"
#include "emulated_block.h"

namespace innerloop {

/// Of emulated_regression.cpp.
void define_emulated_regression(py::module_& m);

namespace {

DeviceFacts facts{132, 232448, 233472, kMostInCluster};
int64_t launches = 0, uploads = 0;
constexpr int64_t kGuard = 4096;  // cells after the staging memory that refuse to be touched

class EmulatedTarget {
 public:
  explicit EmulatedTarget(const BlockContext&) {}

  const char* upload(void* to, const void* from, int64_t bytes) {
    ++uploads;
    std::memcpy(to, from, static_cast<size_t>(bytes));
    return nullptr;
  }
  template <BlockKind kKind, class Real, template <class> class Pass, class Call>
  const char* launch(const Launch<Call>& launch, const Schedule& schedule) {
    ++launches;
    for (int64_t index = 0; index < launch.blocks; ++index) {
      if constexpr (kKind == BlockKind::kCluster) {
        run_cluster<Real, Pass>(launch, schedule, index);
      } else {
        using Block =
            std::conditional_t<kKind == BlockKind::kFactors, EmulatedFactorBlock, EmulatedBlock>;
        const Block block(schedule.threads, launch.options.tf32);
        Memory<Frame<Block, Real, Pass, Call>, Real> memory(block, launch);
        run_tasks<Block, Real, Pass, Call>(block, launch, memory.frame, memory.arrays(), index);
      }
    }
    return nullptr;
  }
  template <class Real>
  const char* multiply_inputs(const FirstLayerLaunch& launch, int64_t blocks) {
    multiply<Real>(launch, blocks, [&](const auto& block, WatchedCell<Real>* staging, int64_t i) {
      innerloop::multiply_inputs<EmulatedBlock, Real>(block, launch, staging, i);
    });
    return nullptr;
  }
  template <class Real>
  const char* multiply_cotangents(const FirstLayerLaunch& launch, int64_t blocks) {
    multiply<Real>(launch, blocks, [&](const auto& block, WatchedCell<Real>* staging, int64_t i) {
      innerloop::multiply_cotangents<EmulatedBlock, Real>(block, launch, staging, i);
    });
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

 private:
  /// What one block works in.
  template <class F, class Real>
  struct Memory {
    using Cells = std::vector<WatchedCell<Real>>;

    template <class Block, class Call>
    Memory(const Block& block, const Launch<Call>& launch)
        : staging(staging_memory<Real>(launch.staging_size)),
          has_staging(launch.options.has_staging) {
      const F counted(block, launch, {});
      workspace = Cells(static_cast<size_t>(counted.cells));
      far = Cells(static_cast<size_t>(counted.far_cells));
    }
    Memory(Memory&& other) = delete;
    ~Memory() { ::operator delete(frame); }
    BlockMemory<WatchedCell<Real>> arrays() {
      return {workspace.data(), far.data(), has_staging ? staging.data() : nullptr};
    }

    F* frame = static_cast<F*>(::operator new(sizeof(F)));  // the kernel constructs it
    Cells workspace, far, staging;
    bool has_staging;
  };

  template <class Real, class F>
  void multiply(const FirstLayerLaunch& launch, int64_t blocks, F f) {
    ++launches;
    const EmulatedBlock block(kProductThreads, launch.tf32);
    for (int64_t index = 0; index < blocks; ++index) {
      auto staging = staging_memory<Real>(product_staging_size<Real>());
      f(block, staging.data(), index);
    }
  }
  template <class Real>
  static std::vector<WatchedCell<Real>> staging_memory(int64_t size) {
    std::vector<WatchedCell<Real>> staging(static_cast<size_t>(size + kGuard));
    Gap<WatchedCell<Real>>::open(staging.data(), size);
    return staging;
  };

  template <class Real, template <class> class Pass, class Call>
  static void run_cluster(const Launch<Call>& launch, const Schedule& schedule, int64_t index) {
    using Block = EmulatedClusterBlock;
    using BlockMemory = Memory<Frame<Block, Real, Pass, Call>, Real>;
    EmulatedCluster cluster(schedule.cluster);
    std::vector<std::unique_ptr<BlockMemory>> memory;
    std::vector<const void*> workspaces;
    for (int rank = 0; rank < schedule.cluster; ++rank) {
      const Block counting(schedule.threads, false, nullptr, rank, {});
      memory.push_back(std::make_unique<BlockMemory>(counting, launch));
      workspaces.push_back(memory.back()->workspace.data());
    }
    cluster.run([&](int rank) {
      const Block block(schedule.threads, launch.options.tf32, &cluster, rank, workspaces);
      run_tasks<Block, Real, Pass, Call>(block, launch, memory[rank]->frame, memory[rank]->arrays(),
                                         index);
    });
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
  } else if (rule == "copies are waited for") {
    block.spread(1, 8, [&](int, int i) { block.copy(right + i, left + i, false); });
    block.commit_copies();
    block.wait_copies<1>();
    block.barrier();
    block.spread(1, 8, [&](int, int i) { left[i] = right[i]; });
  } else if (rule == "barrier after waiting for copies") {
    block.spread(1, 8, [&](int, int i) { block.copy(right + i, left + i, false); });
    block.commit_copies();
    block.wait_copies<0>();
    block.spread(1, 8, [&](int, int i) { left[7 - i] = right[7 - i]; });
  } else if (rule == "none") {
    block.spread(1, 8, [&](int, int i) { right[i] = left[7 - i]; });
    block.barrier();
    fill(left);
  }
}

/// The same for two blocks that exchange numbers.
void misuse_cluster(const std::string& rule) {
  EmulatedCluster cluster(2);
  std::vector<WatchedCell<double>> memory[2];
  std::vector<const void*> workspaces;
  for (auto& cells : memory) {
    cells = std::vector<WatchedCell<double>>(8);
    Gap<WatchedCell<double>>::open(cells.data(), 8);
    workspaces.push_back(cells.data());
  }
  cluster.run([&](int rank) {
    const EmulatedClusterBlock block(4, false, &cluster, rank, workspaces);
    WatchedCell<double>* own = memory[rank].data();
    const auto fill = [&](WatchedCell<double>* cells) {
      block.spread(1, 4, [&](int, int i) { cells[i] = 1.0 + rank; });
      block.barrier();
    };
    const auto read_peer = [&] {
      block.spread(1, 4, [&](int, int i) {
        own[4 + i] = static_cast<double>(*block.peer(own + i, 1 - rank));
      });
      block.barrier();
    };
    fill(own);
    if (rule == "cluster barrier between write and read") {
      if (rank == 1) read_peer();  // block 0 had its turn
    }
    block.cluster_barrier();
    if (rule == "cluster barrier between read and write") {
      if (rank == 0) read_peer();
      if (rank == 1) fill(own);
    } else if (rule == "peers are read only") {
      fill(const_cast<WatchedCell<double>*>(block.peer(own, 0)));
    } else if (rule == "all blocks meet") {
      if (rank == 0) return;
    } else {
      read_peer();
    }
    block.cluster_barrier();
    fill(own);
  });
}

void define_backend(py::module_& m) {
  define_emulated_regression(m);
  m.def("misuse", &misuse);
  m.def("misuse_cluster", &misuse_cluster);
  m.def(
      "set_device",
      [](int multiprocessors, int64_t per_block, int64_t per_multiprocessor, int most_in_cluster) {
        facts = {multiprocessors, per_block, per_multiprocessor, most_in_cluster};
      },
      py::arg(), py::arg(), py::arg(), py::arg() = 1);
  m.def("tensor_instructions", [] { return EmulatedWarp::instructions; });
  m.def("counters", [] { return py::make_tuple(launches, uploads, accesses, copies_started); });
}

}  // namespace innerloop
