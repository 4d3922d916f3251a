// Runs the CUDA kernels' own text on the CPU: each thread of a cooperative launch is a fiber, which runs until it
// waits. What csrc/cuda/device.cuh gives kernels on a device is here under the same names. It finds wrong indices,
// wrong fragments, missing barriers that show in some order of threads, and deadlocks; it knows nothing of caches and
// of the order in which a device's memory sees stores.
#pragma once

#include <cstdint>
#include <functional>

#include "cuda/types.cuh"

#define __global__
#define __device__
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(...)

namespace emulation {

// Threads of a launch that is not cooperative run one after the other and may not wait. Each seed is another order.
void run(int64_t blocks, int threads, size_t shared_bytes, bool cooperative, const std::function<void()>& kernel);
void set_seed(uint64_t seed);

int thread_index();
int block_index();
int threads_of_block();
unsigned char* shared_memory();
void block_barrier();
void warp_barrier();
void yield();     // to the other threads
void progress();  // called where a thread lets others go on: a launch without any is a deadlock

struct Fragments {
    uint32_t a[4], b[2];
};
// gives this lane's fragments to its warp and waits for those of all; [32], good until the lane's next call but one
const Fragments* exchange(const Fragments& own);

}  // namespace emulation

namespace fastrnn {
namespace {

inline int thread_index() { return emulation::thread_index(); }
inline int block_index() { return emulation::block_index(); }
inline int64_t global_index() {
    return static_cast<int64_t>(emulation::block_index()) * emulation::threads_of_block() + emulation::thread_index();
}
inline void block_barrier() { emulation::block_barrier(); }
inline void warp_barrier() { emulation::warp_barrier(); }
inline unsigned char* shared_memory() { return emulation::shared_memory(); }

inline void release(unsigned* flag, unsigned value) {
    *flag = value;
    emulation::progress();
}
inline unsigned poll(const unsigned* flag) {
    emulation::yield();
    return *flag;
}
inline void acquire() {}

struct Words {
    uint32_t word[4];
};
inline Words load_words(const void* from) {
    if (reinterpret_cast<uintptr_t>(from) % 16 != 0) __builtin_trap();
    Words words;
    __builtin_memcpy(&words, from, sizeof(words));
    return words;
}
inline Words load_fresh(const void* from) { return load_words(from); }

template <class X>
inline float half_of(uint32_t word, int index) {
    return widen(X{static_cast<uint16_t>(word >> 16 * index)});
}

template <class X>
inline void multiply_add(float* c, uint32_t a0, uint32_t a1, uint32_t a2, uint32_t a3, uint32_t b0, uint32_t b1, X) {
    const emulation::Fragments* lanes = emulation::exchange({{a0, a1, a2, a3}, {b0, b1}});
    const int lane = emulation::thread_index() % 32, first_row = lane / 4, first_column = lane % 4 * 2;
    for (int i = 0; i < 4; ++i) {
        const int row = first_row + i / 2 * 8, column = first_column + i % 2;
        for (int k = 0; k < 16; ++k) {
            const float a = half_of<X>(lanes[row % 8 * 4 + k % 8 / 2].a[row / 8 + k / 8 * 2], k % 2);
            const float b = half_of<X>(lanes[column * 4 + k % 8 / 2].b[k / 8], k % 2);
            c[i] += a * b;
        }
    }
}

}  // namespace
}  // namespace fastrnn
