// How the shared maths is inlined on the host and on the device.
#pragma once

#if defined(__CUDACC__)
#define FASTRNN_INLINE __host__ __device__ __forceinline__
#define FASTRNN_NOINLINE __host__ __device__ __noinline__
#else
#define FASTRNN_INLINE inline __attribute__((always_inline))
#define FASTRNN_NOINLINE __attribute__((noinline, noclone))  // one copy for all cells
#endif
