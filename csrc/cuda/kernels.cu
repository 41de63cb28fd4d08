// The operations on CUDA for one dtype. CMake compiles this file once for float and once for
// double.
//
// The tasks' kernel: one block for a group of tasks at a time (block/kernels.h). The frame lies in
// static shared memory, the workspace in dynamic shared memory (resident, cluster, low-rank where
// it fits) or in the caller's scratch memory (streamed), as sums over tasks of the low-rank and
// cluster strategies. At most kMaxThreads threads; block/schedule.h keeps to that and to the shared
// memory that the device allows. Kernels for clusters are empty for architectures without them,
// where nothing launches them. Before and after it, kernels that multiply for all tasks at once
// (block/first_layer.h).
#include <cuda_runtime.h>

#include <atomic>
#include <type_traits>

#include "block/operations.h"
#include "cuda/device.h"
#include "cuda/device_block.h"

namespace innerloop {
namespace {

template <class Block, class Real, template <class> class Pass, class Call>
__device__ __forceinline__ void run_block(const Launch<Call>& launch) {
  using F = Frame<Block, Real, Pass, Call>;
  extern __shared__ __align__(16) char dynamic[];
  __shared__ __align__(16) char frame[sizeof(F)];
  static_assert(sizeof(F) + 1024 <= kFrameBytes, "schedules count on a frame of this size");
  static_assert(sizeof(Launch<Call>) <= 4096, "kernel parameters are limited to 4 KiB");
  BlockMemory<Real> memory;
  Real* shared = reinterpret_cast<Real*>(dynamic);
  if (launch.options.has_staging) {
    memory.staging = shared;
    shared += launch.staging_size;
  }
  memory.workspace = launch.workspace
                         ? static_cast<Real*>(launch.workspace) + blockIdx.x * launch.workspace_size
                         : shared;
  if (launch.far) memory.far = static_cast<Real*>(launch.far) + blockIdx.x * launch.far_size;
  const unsigned index = blockIdx.x / static_cast<unsigned>(launch.options.cluster);
  run_tasks<Block, Real, Pass, Call>(Block(launch.options.tf32), launch,
                                     reinterpret_cast<F*>(frame), memory, index);
}

template <class Block, class Real, template <class> class Pass, class Call>
__global__ void __launch_bounds__(kMaxThreads, 1)
    task_kernel(const __grid_constant__ Launch<Call> launch) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 900
  if constexpr (!Block::kCluster) run_block<Block, Real, Pass, Call>(launch);
#else
  run_block<Block, Real, Pass, Call>(launch);
#endif
}

template <class Real>
__global__ void __launch_bounds__(kProductThreads, kProductBlocks)
    inputs_kernel(const __grid_constant__ FirstLayerLaunch launch) {
  extern __shared__ __align__(16) char dynamic[];
  multiply_inputs<DeviceBlock, Real>(DeviceBlock(launch.tf32), launch,
                                     reinterpret_cast<Real*>(dynamic), blockIdx.x);
}

template <class Real>
__global__ void __launch_bounds__(kProductThreads, kProductBlocks)
    cotangents_kernel(const __grid_constant__ FirstLayerLaunch launch) {
  extern __shared__ __align__(16) char dynamic[];
  multiply_cotangents<DeviceBlock, Real>(DeviceBlock(launch.tf32), launch,
                                         reinterpret_cast<Real*>(dynamic), blockIdx.x);
}

template <class Real>
__global__ void __launch_bounds__(kSumColumns* kSumLanes)
    sum_kernel(const __grid_constant__ SumLaunch launch) {
  __shared__ Real partial[kSumColumns * kSumLanes];
  sum_slots<DeviceBlock, Real>(DeviceBlock{}, launch, partial, blockIdx.x);
}

/// Parameters that carry a piece of a table: copied when the launch is made, so graphs may hold it.
struct Piece {
  char bytes[kTablePiece];
};

__global__ void store_kernel(char* to, const __grid_constant__ Piece piece, int size) {
  for (int i = static_cast<int>(threadIdx.x); i < size; i += static_cast<int>(blockDim.x)) {
    to[i] = piece.bytes[i];
  }
}

/// At most 48 KiB, which every kernel may take.
template <class Real>
size_t product_staging_bytes() {
  return static_cast<size_t>(product_staging_size<Real>()) * sizeof(Real);
}

const char* text(cudaError_t error) {
  return error == cudaSuccess ? nullptr : cudaGetErrorString(error);
}

/// Launches on the context's stream. The context's device is current.
class CudaTarget {
 public:
  explicit CudaTarget(const BlockContext& context)
      : device_(context.device), stream_(static_cast<cudaStream_t>(context.stream)) {}

  const char* upload(void* to, const void* from, int64_t bytes) {
    Piece piece;
    std::memcpy(piece.bytes, from, static_cast<size_t>(bytes));
    store_kernel<<<1, 128, 0, stream_>>>(static_cast<char*>(to), piece, static_cast<int>(bytes));
    return text(cudaGetLastError());
  }
  template <BlockKind kKind, class Real, template <class> class Pass, class Call>
  const char* launch(const Launch<Call>& launch, const Schedule& schedule) {
    using Block = std::conditional_t<
        kKind == BlockKind::kFactors, FactorBlock,
        std::conditional_t<kKind == BlockKind::kCluster, ClusterBlock, DeviceBlock>>;
    const auto kernel = task_kernel<Block, Real, Pass, Call>;
    // once for each kernel and device: a later launch may be part of a graph
    static std::atomic<uint64_t> raised{0};
    const uint64_t bit = device_ < 64 ? uint64_t{1} << device_ : 0;
    if (!(raised.load() & bit)) {
      const char* error = raise_shared_memory(reinterpret_cast<const void*>(kernel), device_);
      if (error) return error;
      raised.fetch_or(bit);
    }
    cudaLaunchAttribute cluster{};
    cluster.id = cudaLaunchAttributeClusterDimension;
    cluster.val.clusterDim = {static_cast<unsigned>(schedule.cluster), 1, 1};
    cudaLaunchConfig_t config{};
    config.gridDim = dim3(static_cast<unsigned>(launch.blocks * schedule.cluster));
    config.blockDim = dim3(static_cast<unsigned>(schedule.threads));
    config.dynamicSmemBytes = static_cast<size_t>(schedule.shared_bytes);
    config.stream = stream_;
    config.attrs = &cluster;
    config.numAttrs = kKind == BlockKind::kCluster ? 1 : 0;
    return text(cudaLaunchKernelEx(&config, kernel, launch));
  }
  template <class Real>
  const char* multiply_inputs(const FirstLayerLaunch& launch, int64_t blocks) {
    inputs_kernel<Real><<<static_cast<unsigned>(blocks), kProductThreads,
                          product_staging_bytes<Real>(), stream_>>>(launch);
    return text(cudaGetLastError());
  }
  template <class Real>
  const char* multiply_cotangents(const FirstLayerLaunch& launch, int64_t blocks) {
    cotangents_kernel<Real><<<static_cast<unsigned>(blocks), kProductThreads,
                              product_staging_bytes<Real>(), stream_>>>(launch);
    return text(cudaGetLastError());
  }
  template <class Real>
  const char* sum(const SumLaunch& launch, int64_t blocks) {
    sum_kernel<Real>
        <<<static_cast<unsigned>(blocks), kSumColumns * kSumLanes, 0, stream_>>>(launch);
    return text(cudaGetLastError());
  }

 private:
  int device_;
  cudaStream_t stream_;
};

}  // namespace

extern const BlockKernels INNERLOOP_TABLE;
const BlockKernels INNERLOOP_TABLE = BlockOperations<CudaTarget, INNERLOOP_REAL>::kTable;

}  // namespace innerloop
