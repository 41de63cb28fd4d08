// Lets the core be compiled for a GPU as well: what is marked IL_HD may run on either side. IL_CALL
// is the same for functions that a GPU shall call instead of inlining, which keeps the registers of
// what calls them free.
#pragma once

#ifdef __CUDACC__
#define IL_HD __host__ __device__
#define IL_CALL __host__ __device__ __noinline__
#else
#define IL_HD
#define IL_CALL
#endif
