// Threads that work on one sequence together, and the barrier between two of its steps.
#pragma once

#include <omp.h>
#include <sched.h>

#include <cstdint>

#include "../cells/inline.h"

namespace fastrnn {
namespace {

struct alignas(64) Flag {  // a cache line of its own: written by one thread, read by its team
    int64_t generation;
};

FASTRNN_INLINE void relax() {
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#endif
}

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
        __atomic_store_n(&flags_[rank_].generation, generation_, __ATOMIC_RELEASE);
        for (int other = 0; other < size_; ++other) {
            if (other == rank_) continue;
            for (int spins = 0; __atomic_load_n(&flags_[other].generation, __ATOMIC_ACQUIRE) < generation_; ++spins) {
                if (spins < kSpins) {
                    relax();
                } else {
                    sched_yield();  // the core has other work: let it run
                }
            }
        }
    }

   private:
    static constexpr int kSpins = 2000;
    Flag* flags_ = nullptr;  // [size], zero at the start
    int rank_ = 0, size_ = 1;
    int64_t generation_ = 0;
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
