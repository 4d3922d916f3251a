// The barrier between two steps: what each thread wrote before it is seen by all after it. Threads of its own, so that
// the thread sanitizer, to which OpenMP's are unknown, can follow them.
#include <chrono>
#include <thread>
#include <vector>

#include "check.h"
#include "cpu/team.h"

namespace {

// late: the last member comes so late each time that the others have gone to sleep
void test_rounds(int threads, int rounds, bool late = false) {
    std::vector<fastrnn::Flag> flags(static_cast<size_t>(threads), fastrnn::Flag{});
    std::vector<long> values(static_cast<size_t>(threads), 0), wrong(static_cast<size_t>(threads), 0);
    const auto work = [&](int rank) {
        fastrnn::Team team(flags.data(), rank, threads);
        for (long round = 1; round <= rounds; ++round) {
            if (late && rank == threads - 1) std::this_thread::sleep_for(std::chrono::milliseconds(2));
            values[static_cast<size_t>(rank)] = round * 1000 + rank;
            team.wait();
            for (int other = 0; other < threads; ++other) {
                if (values[static_cast<size_t>(other)] != round * 1000 + other) ++wrong[static_cast<size_t>(rank)];
            }
            team.wait();  // before the next round overwrites what others may still read
        }
    };
    std::vector<std::thread> others;
    for (int rank = 1; rank < threads; ++rank) others.emplace_back(work, rank);
    work(0);
    for (std::thread& other : others) other.join();
    for (int rank = 0; rank < threads; ++rank) {
        CHECK(wrong[static_cast<size_t>(rank)] == 0,
              std::to_string(threads) + " threads, rank " + std::to_string(rank));
    }
}

}  // namespace

int main() {
    for (int threads : {1, 2, 3, 8}) test_rounds(threads, threads <= 2 ? 20000 : 500);
    for (int threads : {2, 5}) test_rounds(threads, 50, true);
    return fastrnn_test::finish();
}
