// A block of CUDA threads as block/phase.h describes it. The host part of a phase is never run.
#pragma once

#include "block/phase.h"

namespace innerloop {

/// A thread's view of its warp, as block/tensor_product.h describes it.
class DeviceWarp {
 public:
  static constexpr int kSlots = 1;

  template <class F>
  IL_HD void lanes(F&& f) const {
#ifdef __CUDA_ARCH__
    f(static_cast<int>(threadIdx.x % 32), 0);
#endif
  }
  IL_HD static float rounded(float x) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
    unsigned bits;
    asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(bits) : "f"(x));
    return __uint_as_float(bits);
#else
    return x;
#endif
  }
  IL_HD void multiply_add(const float (&a)[1][4], const float (&b)[1][2], float (&c)[1][4]) const {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
    asm("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 "
        "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(c[0][0]), "+f"(c[0][1]), "+f"(c[0][2]), "+f"(c[0][3])
        : "r"(__float_as_uint(a[0][0])), "r"(__float_as_uint(a[0][1])),
          "r"(__float_as_uint(a[0][2])), "r"(__float_as_uint(a[0][3])),
          "r"(__float_as_uint(b[0][0])), "r"(__float_as_uint(b[0][1])));
#else
    (void)a, (void)b, (void)c;
#endif
  }
};

class DeviceBlock {
 public:
  template <class Real>
  using Cell = Real;
  using Warp = DeviceWarp;
  IL_HD explicit DeviceBlock(bool tf32 = false) : tf32_(tf32) {}
  /// Tensor cores take tf32 from sm_80 on.
  IL_HD bool tf32() const {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
    return tf32_;
#else
    return false;
#endif
  }

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
  __device__ void spread_warps(int items, F&& f) const {
    const int step = static_cast<int>(blockDim.x / 32);
    for (int item = static_cast<int>(threadIdx.x / 32); item < items; item += step) {
      f(item, DeviceWarp{});
    }
  }
  template <class F>
  __device__ void once(F&& f) const {
    if (threadIdx.x == 0) f();
    __syncthreads();
  }
#else
  int threads() const { return 1; }
  void barrier() const {}
  template <class F>
  void spread(int, int, F&&) const {}
  template <class F>
  void spread_warps(int, F&&) const {}
  template <class F>
  void once(F&&) const {}
#endif

 private:
  bool tf32_;
};

}  // namespace innerloop
