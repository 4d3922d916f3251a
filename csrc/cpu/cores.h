// The account behind CoreLease: who is in flight, and whether teams were worth their threads.
//
// Calls of different threads that overlap share the cores, and go on sharing them for a while: in tight loops they meet
// now and then, and a team that meets another has two threads on a core, each waiting for one that does not run.
//
// Other processes are seen only by the waiting that they cause. A team that took clearly longer than one thread would
// have makes the next calls do without one, for a multiple of what it lost; a hiccup costs twice itself, and where one
// team after another fails, their trials take a small part of the time.
//
// What is kept are hints, so nothing here orders anything: a lost update is made good by the next call.
#pragma once

#include <atomic>

#include "fastrnn/cores.h"

namespace fastrnn {

class Cores {
   public:
    explicit Cores(int count) : count_(count) {}

    // now: a function, as a call that is alone reads no clock
    template <class Clock>
    CoreGrant enter(int wanted, const Clock& now) {
        const int callers = in_flight_.fetch_add(1, std::memory_order_relaxed) + 1;
        if (!adapts_.load(std::memory_order_relaxed)) return {wanted, 1, 0};
        if (callers == 1 && !limited_.load(std::memory_order_relaxed)) return {least(wanted, count_), 1, 0};
        const int64_t time = now();
        return {least(wanted, allowed(callers, time)), callers, time};
    }

    template <class Clock>
    void leave(const CoreGrant& grant, const Clock& now) {
        in_flight_.fetch_sub(1, std::memory_order_relaxed);
        if (grant.callers == 1) return;
        const int64_t time = now(), remembered = kMemory * (time - grant.since);
        std::atomic<int64_t>& until = shared_until_[halvings(grant.callers)];
        const int64_t end = time + (remembered < kLongestMemory ? remembered : kLongestMemory);
        if (until.load(std::memory_order_relaxed) < end) until.store(end, std::memory_order_relaxed);
        limited_.store(true, std::memory_order_relaxed);
    }

    // A team of `threads` ended at `time` after `elapsed`, of which its first thread waited for others.
    void report(int threads, int64_t elapsed, int64_t waited, int64_t time) {
        if (in_flight() > 1) return;                         // they share from here on
        const int64_t alone = threads * (elapsed - waited);  // of one thread, were the work in equal parts
        if (2 * elapsed <= 3 * alone) return earned(elapsed);
        const int failures = failures_.load(std::memory_order_relaxed);
        const int64_t pause = kPauses[failures] * (elapsed - alone);
        paused_until_.store(time + (pause < kLongestPause ? pause : kLongestPause), std::memory_order_relaxed);
        if (failures < kMostFailures) failures_.store(failures + 1, std::memory_order_relaxed);
        good_.store(0, std::memory_order_relaxed);
        limited_.store(true, std::memory_order_relaxed);
    }

    int in_flight() const { return in_flight_.load(std::memory_order_relaxed); }
    void adapt(bool adapts) { adapts_.store(adapts, std::memory_order_relaxed); }

    // in a child of fork(), which has none of its parent's calls
    void forget() {
        in_flight_.store(0, std::memory_order_relaxed);
        for (std::atomic<int64_t>& until : shared_until_) until.store(0, std::memory_order_relaxed);
        paused_until_.store(0, std::memory_order_relaxed);
        failures_.store(0, std::memory_order_relaxed);
        limited_.store(false, std::memory_order_relaxed);
    }

    // Overlapping calls are remembered for so many times the length of the later one, so that one of 2 us does not take
    // a core from those that work for ms.
    static constexpr int64_t kMemory = 32, kLongestMemory = 20'000'000;
    static constexpr int kMostFailures = 3;
    static constexpr int64_t kPauses[kMostFailures + 1] = {2, 8, 32, 64};  // times what the team lost
    static constexpr int64_t kLongestPause = 500'000'000, kProbation = 50'000'000;

   private:
    static constexpr int kMostHalvings = 10;

    static int least(int a, int b) { return a < b ? a : b; }

    // A share is a half, a quarter, .. of the cores: where its team changes, libgomp ends threads or makes new ones.
    static int halvings(int callers) {
        int found = 0;
        while (found < kMostHalvings && (1 << found) < callers) ++found;
        return found;
    }

    int allowed(int callers, int64_t time) {
        int shared = kMostHalvings;
        while (shared > 0 && shared_until_[shared].load(std::memory_order_relaxed) <= time) --shared;
        const bool paused = time < paused_until_.load(std::memory_order_relaxed);
        if (!shared && !paused) limited_.store(false, std::memory_order_relaxed);
        if (halvings(callers) > shared) shared = halvings(callers);
        const int share = paused ? 1 : count_ >> shared;
        return share > 1 ? share : 1;
    }

    // A team that other work delays now and then has luck in between.
    void earned(int64_t elapsed) {
        if (failures_.load(std::memory_order_relaxed) == 0) return;
        if (good_.fetch_add(elapsed, std::memory_order_relaxed) < kProbation) return;
        failures_.store(0, std::memory_order_relaxed);
    }

    const int count_;
    std::atomic<int> in_flight_{0};
    std::atomic<bool> adapts_{true};
    std::atomic<bool> limited_{false};                        // there may be a time below that is to come
    std::atomic<int64_t> shared_until_[kMostHalvings + 1]{};  // by the halvings of a share
    std::atomic<int64_t> paused_until_{0};
    std::atomic<int> failures_{0};  // of teams, one after another
    std::atomic<int64_t> good_{0};  // ns that teams worked well since
};

}  // namespace fastrnn
