// Lets the core be compiled for a GPU as well: what is marked IL_HD may run on either side. IL_CALL
// is the same for functions that a GPU shall call instead of inlining, which keeps the registers of
// what calls them free.
//
// For lane templates: IL_INLINE is always inlined, on a CPU so that no copy made of wide
// instructions can be called from elsewhere, on a GPU so that nothing lies in memory for the sake
// of a call. IL_OUTLINE is rare: a CPU keeps it out of the way of what is not. IL_UNROLLED unrolls
// a loop on both sides; IL_ROLLED keeps a GPU from it, and the CPU's compiler chooses.
#pragma once

#ifdef __CUDACC__
#define IL_HD __host__ __device__
#define IL_CALL __host__ __device__ __noinline__
#define IL_INLINE __host__ __device__ __forceinline__
#define IL_OUTLINE __host__ __device__ __forceinline__
#define IL_UNROLLED(count) _Pragma("unroll")
#define IL_ROLLED _Pragma("unroll 1")
#else
#define IL_HD
#define IL_CALL
#define IL_INLINE inline __attribute__((always_inline))
#define IL_OUTLINE __attribute__((noinline))
#define IL_PRAGMA(text) _Pragma(#text)
#define IL_UNROLLED(count) IL_PRAGMA(GCC unroll count)
#define IL_ROLLED
#endif
