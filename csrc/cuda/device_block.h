// A block of CUDA threads as block/phase.h describes it. The host part of a phase is never run.
#pragma once

#include <cuda_pipeline_primitives.h>

#include "block/phase.h"

namespace innerloop {

class DeviceBlock {
 public:
  template <class Real>
  using Cell = Real;
  static constexpr bool kFactors = false;
  /// Lies in the thread's registers.
  template <class T>
  struct PerThread {
    IL_HD explicit PerThread(const DeviceBlock&) {}
    IL_HD T& at(int) { return value; }
    T value;
  };

#ifdef __CUDA_ARCH__
  __device__ int threads() const { return static_cast<int>(blockDim.x); }
  __device__ void barrier() const { __syncthreads(); }
  /// Item `thread`, `thread` + threads, ... of the row-major order; one division for all of them.
  template <class F>
  __device__ void spread(int rows, int cols, F&& f) const {
    if (rows <= 0 || cols <= 0) return;
    const unsigned width = static_cast<unsigned>(cols);
    const int row_step = static_cast<int>(blockDim.x / width);
    const int step = static_cast<int>(blockDim.x % width);
    int row = static_cast<int>(threadIdx.x / width), col = static_cast<int>(threadIdx.x % width);
    while (row < rows) {
      f(row, col);
      row += row_step;
      col += step;
      if (col >= cols) {
        col -= cols;
        ++row;
      }
    }
  }
  template <class F>
  __device__ void once(F&& f) const {
    if (threadIdx.x == 0) f();
    __syncthreads();
  }
  template <class Real>
  __device__ void copy(Real* to, const Real* from, bool near) const {
    if (near) {
      *to = *from;
    } else {
      __pipeline_memcpy_async(to, from, sizeof(Real));
    }
  }
  __device__ void commit_copies() const { __pipeline_commit(); }
  template <int kNewer>
  __device__ void wait_copies() const {
    __pipeline_wait_prior(kNewer);
  }
#else
  int threads() const { return 1; }
  void barrier() const {}
  template <class F>
  void spread(int, int, F&&) const {}
  template <class F>
  void once(F&&) const {}
  template <class Real>
  void copy(Real*, const Real*, bool) const {}
  void commit_copies() const {}
  template <int kNewer>
  void wait_copies() const {}
#endif
};

/// The same for kernels of the low-rank strategy.
struct FactorBlock : DeviceBlock {
  static constexpr bool kFactors = true;
};

}  // namespace innerloop
