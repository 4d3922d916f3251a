// Threads that work on one sequence together, and the barrier between two of its steps.
#pragma once

#include <omp.h>
#include <sched.h>

#if defined(__linux__)
#include <linux/futex.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

#include <cstdint>

#include "../cells/inline.h"
#include "clock.h"

namespace fastrnn {
namespace {

struct alignas(64) Flag {  // a cache line of its own: written by one thread, read by its team
    uint32_t generation;
    uint32_t sleepers;  // threads that wait for it in the kernel
};

FASTRNN_INLINE void relax() {
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#endif
}

thread_local int64_t slept = 0;  // ns that this thread has slept for members of its teams

class Team {
   public:
    Team() = default;
    Team(Flag* flags, int rank, int size) : flags_(flags), rank_(rank), size_(size) {}

    int rank() const { return rank_; }
    int size() const { return size_; }

    // Returns when every member has called it as often as this one. All that a member wrote before is then visible.
    void wait() {
        if (size_ == 1) return;
        ++generation_;
        Flag& own = flags_[rank_];
        // in one order with sleep(): either the sleeper sees the generation, or it is seen here
        __atomic_store_n(&own.generation, generation_, __ATOMIC_SEQ_CST);
        if (__atomic_load_n(&own.sleepers, __ATOMIC_SEQ_CST)) wake(own);
        for (int other = 0; other < size_; ++other) {
            if (other == rank_) continue;
            for (int spins = 0; !reached(__atomic_load_n(&flags_[other].generation, __ATOMIC_ACQUIRE)); ++spins) {
                spins < kSpins ? relax() : sleep_timed(flags_[other]);
            }
        }
    }

   private:
    static constexpr int kSpins = 2000;  // some 30 us

    void sleep_timed(Flag& flag) const {
        const int64_t began = nanoseconds();
        sleep(flag);
        slept += nanoseconds() - began;
    }

    bool reached(uint32_t generation) const { return static_cast<int32_t>(generation - generation_) >= 0; }

#if defined(__linux__)
    // The core has other work, or the member has none. A thread that sleeps is run as soon as it is woken; one that
    // spins or yields waits for its turn behind that work, a few milliseconds a step.
    void sleep(Flag& flag) const {
        __atomic_fetch_add(&flag.sleepers, 1, __ATOMIC_SEQ_CST);
        const uint32_t seen = __atomic_load_n(&flag.generation, __ATOMIC_SEQ_CST);
        if (!reached(seen)) {
            syscall(SYS_futex, &flag.generation, FUTEX_WAIT_PRIVATE, seen, nullptr, nullptr, 0);
        }
        __atomic_fetch_sub(&flag.sleepers, 1, __ATOMIC_SEQ_CST);
    }
    static void wake(Flag& flag) {
        syscall(SYS_futex, &flag.generation, FUTEX_WAKE_PRIVATE, INT32_MAX, nullptr, nullptr, 0);
    }
#else
    void sleep(Flag&) const { sched_yield(); }
    static void wake(Flag&) {}
#endif

    Flag* flags_ = nullptr;  // [size], zero at the start
    int rank_ = 0, size_ = 1;
    uint32_t generation_ = 0;
};

struct Range {
    int64_t begin, end;
};

// part `index` of `parts` of [0, count), in whole multiples of `grain`
inline Range split(int64_t count, int64_t grain, int64_t index, int64_t parts) {
    const int64_t grains = (count + grain - 1) / grain;
    const int64_t begin = grains * index / parts * grain, end = grains * (index + 1) / parts * grain;
    return {begin < count ? begin : count, end < count ? end : count};
}

}  // namespace
}  // namespace fastrnn
