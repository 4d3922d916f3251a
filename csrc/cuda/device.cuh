// What a kernel asks of the machine beyond C++: its place, barriers, loads that see what other blocks wrote, and the
// product of two small matrices on the tensor cores. The emulation has functions of the same names.
#pragma once

#include "common.cuh"

#if defined(__CUDACC__)

namespace fastrnn {
namespace {

__device__ __forceinline__ int thread_index() { return static_cast<int>(threadIdx.x); }
__device__ __forceinline__ int block_index() { return static_cast<int>(blockIdx.x); }
__device__ __forceinline__ int64_t global_index() { return static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; }
__device__ __forceinline__ void block_barrier() { __syncthreads(); }
__device__ __forceinline__ void warp_barrier() { __syncwarp(); }

__device__ __forceinline__ unsigned char* shared_memory() {
    extern __shared__ __align__(128) unsigned char fastrnn_shared[];
    return fastrnn_shared;
}

// what this thread wrote, and what others of its block wrote before a block_barrier that it has passed, is seen by a
// thread that has polled the value and then called acquire
__device__ __forceinline__ void release(unsigned* flag, unsigned value) {
    asm volatile("st.release.gpu.global.u32 [%0], %1;" ::"l"(flag), "r"(value) : "memory");
}
__device__ __forceinline__ unsigned poll(const unsigned* flag) {
    unsigned value;
    asm volatile("ld.relaxed.gpu.global.u32 %0, [%1];" : "=r"(value) : "l"(flag) : "memory");
    return value;
}
__device__ __forceinline__ void acquire() { asm volatile("fence.acq_rel.gpu;" ::: "memory"); }

struct Words {  // 16 bytes
    uint32_t word[4];
};

// past the first cache, which may hold what was there before another block wrote
__device__ __forceinline__ Words load_fresh(const void* from) {
    Words words;
    asm volatile("ld.global.cg.v4.u32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(words.word[0]), "=r"(words.word[1]), "=r"(words.word[2]), "=r"(words.word[3])
                 : "l"(from)
                 : "memory");
    return words;
}

__device__ __forceinline__ Words load_words(const void* from) {
    const uint4 value = *static_cast<const uint4*>(from);
    return {{value.x, value.y, value.z, value.w}};
}

// c += a b for a of 16 x 16, b of 16 x 8, c of 16 x 8, held by a warp. Lane l, with r = l / 4 and q = l % 4, has
//   a: {a[r][2q], a[r][2q+1]}, {a[r+8][2q], a[r+8][2q+1]}, {a[r][2q+8], a[r][2q+9]}, {a[r+8][2q+8], a[r+8][2q+9]}
//   b: {b[2q][r], b[2q+1][r]}, {b[2q+8][r], b[2q+9][r]}
//   c: c[r][2q], c[r][2q+1], c[r+8][2q], c[r+8][2q+1]
__device__ __forceinline__ void multiply_add(float* c, uint32_t a0, uint32_t a1, uint32_t a2, uint32_t a3, uint32_t b0,
                                             uint32_t b1, bfloat16 /*type*/) {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}
__device__ __forceinline__ void multiply_add(float* c, uint32_t a0, uint32_t a1, uint32_t a2, uint32_t a3, uint32_t b0,
                                             uint32_t b1, float16 /*type*/) {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}

}  // namespace
}  // namespace fastrnn

#endif
