// FASTGEN_HD marks a formula that the CPU kernels and the CUDA kernels share.
#pragma once

#if defined(__CUDACC__)
#define FASTGEN_HD __host__ __device__ __forceinline__ static
#else
#define FASTGEN_HD __attribute__((always_inline)) static inline
#endif
