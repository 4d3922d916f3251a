// Constants of the machine that Python cannot time: how fast a core multiplies and adds, how fast cores read weights
// from the level of memory they lie in, and how long a store takes to be seen by another core. Built and loaded by
// limits.py.
#include <atomic>
#include <chrono>
#include <cstddef>
#include <cstring>
#include <thread>
#include <vector>

namespace {

using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point start) { return std::chrono::duration<double>(Clock::now() - start).count(); }

// eight vectors are enough to hide the latency of an addition; unaligned loads of any width
typedef float Vector __attribute__((vector_size(64), aligned(4)));

float sum_of(const float* data, size_t floats) {
    Vector sums[8] = {};
    constexpr size_t lanes = sizeof(Vector) / sizeof(float);
    for (size_t i = 0; i + 8 * lanes <= floats; i += 8 * lanes)
        for (size_t k = 0; k < 8; ++k) {
            Vector loaded;
            std::memcpy(&loaded, data + i + k * lanes, sizeof loaded);
            sums[k] += loaded;
        }
    float total = 0;
    for (const Vector& sum : sums)
        for (size_t lane = 0; lane < lanes; ++lane) total += sum[lane];
    return total;
}

}  // namespace

// Bytes per second that each of `threads` cores reads when all read their own buffer of `bytes` over and over.
extern "C" double probe_read(size_t bytes, int threads, double seconds) {
    std::atomic<int> ready{0};
    std::atomic<float> keep{0};
    std::vector<double> rates(threads, 0.0);
    auto work = [&](int id) {
        const std::vector<float> buffer(bytes / sizeof(float), 1.0f);
        float total = sum_of(buffer.data(), buffer.size());
        ready.fetch_add(1);
        while (ready.load() < threads) std::this_thread::yield();
        // the best of many short batches: a thread that loses its core for a while still finds a quiet one
        const size_t passes = 1 + (size_t(1) << 20) / bytes;
        const auto begin = Clock::now();
        do {
            const auto start = Clock::now();
            for (size_t i = 0; i < passes; ++i) {
                total += sum_of(buffer.data(), buffer.size());
                asm volatile("" ::: "memory");
            }
            const double rate = double(passes) * double(bytes) / seconds_since(start);
            rates[id] = rate > rates[id] ? rate : rates[id];
        } while (seconds_since(begin) < seconds);
        keep.store(total);
    };
    std::vector<std::thread> pool;
    for (int id = 0; id < threads; ++id) pool.emplace_back(work, id);
    for (std::thread& thread : pool) thread.join();
    double slowest = rates[0];
    for (double rate : rates) slowest = rate < slowest ? rate : slowest;
    return slowest;
}

// FLOP/s of one core on numbers in its registers, the best of many short batches within `seconds`.
extern "C" double probe_flops(double seconds) {
#if defined(__AVX512F__)
    typedef float Register __attribute__((vector_size(64)));
#elif defined(__AVX__)
    typedef float Register __attribute__((vector_size(32)));
#else
    typedef float Register __attribute__((vector_size(16)));
#endif
    constexpr int sums = 12, rounds = 20000;  // more than a multiply-add takes cycles, and no more than fit
    Register sum[sums] = {}, factor = Register{} + 0.5f, term = Register{} + 1.0f;
    double best = 0;
    const auto begin = Clock::now();
    do {
        const auto start = Clock::now();
        for (int i = 0; i < rounds; ++i) {
            for (int k = 0; k < sums; ++k) sum[k] = sum[k] * factor + term;
        }
        asm volatile("" ::"g"(&sum) : "memory");
        const double rate = 2.0 * rounds * sums * (sizeof(Register) / sizeof(float)) / seconds_since(start);
        best = rate > best ? rate : best;
    } while (seconds_since(begin) < seconds);
    return best;
}

// Seconds until a store is seen by another core: half of a round trip between two spinning threads, the best of
// many short windows within `seconds`, or twenty times that while busy cores keep the threads apart in time.
extern "C" double probe_handoff(double seconds) {
    constexpr int rounds = 20;
    alignas(128) std::atomic<int> ping{0};
    alignas(128) std::atomic<int> pong{0};
    std::thread other([&] {
        for (int expected = 1;; ++expected) {
            int seen = 0;
            while ((seen = ping.load(std::memory_order_acquire)) < expected && seen >= 0) {
            }
            if (seen < 0) return;
            pong.store(expected, std::memory_order_release);
        }
    });
    double best = 1.0;
    int turn = 0;
    const auto begin = Clock::now();
    do {
        const auto start = Clock::now();
        for (const int end = turn + rounds; turn < end;) {
            ping.store(++turn, std::memory_order_release);
            while (pong.load(std::memory_order_acquire) != turn) {
            }
        }
        const double elapsed = seconds_since(start) / (2 * rounds);
        best = elapsed < best ? elapsed : best;
    } while (seconds_since(begin) < (best < 1e-6 ? seconds : 20 * seconds));
    ping.store(-1, std::memory_order_release);
    other.join();
    return best;
}
