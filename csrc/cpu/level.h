// Names the instruction level that this translation unit is compiled for. Everything compiled with
// wide instructions lives in namespace INNERLOOP_LEVEL and in no other, so that the linker can
// never pick a wide copy of an inline function for a narrow machine.
#pragma once

#if !defined(INNERLOOP_LEVEL)
#error "compile with -DINNERLOOP_LEVEL=baseline|avx2|avx512 and the matching instruction flags"
#endif

#if defined(__AVX512F__)
#define INNERLOOP_VECTOR_BYTES 64
#define INNERLOOP_VECTOR_REGISTERS 32
#elif defined(__AVX2__)
#define INNERLOOP_VECTOR_BYTES 32
#define INNERLOOP_VECTOR_REGISTERS 16
#elif defined(__aarch64__)
#define INNERLOOP_VECTOR_BYTES 16
#define INNERLOOP_VECTOR_REGISTERS 32
#else
#define INNERLOOP_VECTOR_BYTES 16
#define INNERLOOP_VECTOR_REGISTERS 16
#endif

#define INNERLOOP_INLINE inline __attribute__((always_inline))
