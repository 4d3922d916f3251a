// Memory that waits for the next training step: whole blocks, each to one owner, no more of it than is allowed.
#include <cstring>
#include <thread>
#include <vector>

#include "check.h"
#include "reserve_pool.h"

namespace {

using fastrnn::Pages;
using fastrnn::ReservePool;

constexpr size_t kMiB = size_t{1} << 20;

void test_block_comes_back() {
    ReservePool pool;
    Pages first = pool.take(9 * kMiB), second = pool.take(9 * kMiB);
    CHECK(first.data() != second.data(), "block comes back");
    CHECK(first.size() >= 9 * kMiB && first.size() < 12 * kMiB, "block comes back");
    std::memset(first.data(), 1, first.size());
    const void* const address = first.data();
    const bool kept = first.offer_to_system();  // where the system cannot take it back, nothing is kept
    pool.give(std::move(first));
    CHECK(pool.kept_bytes() == (kept ? 10 * kMiB : 0), "block comes back");
    Pages third = pool.take(9 * kMiB);
    CHECK(!kept || third.data() == address, "block comes back");
    CHECK(pool.kept_bytes() == 0, "block comes back");
    std::memset(third.data(), 2, third.size());
}

void test_smallest_fit() {
    ReservePool pool;
    std::vector<Pages> blocks;
    for (const size_t size : {size_t{40}, size_t{12}, size_t{20}}) blocks.push_back(pool.take(size * kMiB));
    if (!blocks[0].offer_to_system()) return;
    const void* const twenty = blocks[2].data();
    for (Pages& block : blocks) pool.give(std::move(block));
    const Pages found = pool.take(14 * kMiB);
    CHECK(found.data() == twenty, "smallest fit");
    const Pages small = pool.take(4 * kMiB);  // all that waits is more than twice as large
    CHECK(small.size() == 4 * kMiB, "smallest fit");
    CHECK(pool.kept_bytes() == 52 * kMiB, "smallest fit");
}

void test_limit() {
    ReservePool pool;
    std::vector<Pages> blocks;
    for (int i = 0; i < 5; ++i) blocks.push_back(pool.take(ReservePool::kMostBytes / 4));  // never touched
    if (!blocks[0].offer_to_system()) return;
    const void *const oldest = blocks[0].data(), *const newest = blocks[4].data();
    for (Pages& block : blocks) pool.give(std::move(block));
    CHECK(pool.kept_bytes() == ReservePool::kMostBytes, "limit");
    bool has_newest = false;
    for (int i = 0; i < 4; ++i) {
        blocks[static_cast<size_t>(i)] = pool.take(ReservePool::kMostBytes / 4);
        CHECK(blocks[static_cast<size_t>(i)].data() != oldest, "limit");
        has_newest = has_newest || blocks[static_cast<size_t>(i)].data() == newest;
    }
    CHECK(has_newest, "limit");
    CHECK(pool.kept_bytes() == 0, "limit");
    pool.give(pool.take(ReservePool::kMostBytes + kMiB));
    CHECK(pool.kept_bytes() == 0, "limit");
    for (size_t i = 0; i < ReservePool::kMostBytes / ReservePool::kLeastBytes + 9; ++i) {
        pool.give(Pages(ReservePool::kLeastBytes));
    }
    CHECK(pool.kept_bytes() == ReservePool::kMostBytes, "limit");
}

// each thread marks its block and must find its marks
void test_threads() {
    ReservePool pool;
    long wrong[4] = {};
    const auto work = [&](int rank) {
        for (int round = 0; round < 500; ++round) {
            Pages pages = pool.take(ReservePool::kLeastBytes + static_cast<size_t>(round % 3) * kMiB);
            auto* const values = static_cast<int*>(pages.data());
            const size_t count = pages.size() / sizeof(int);
            for (size_t i = 0; i < count; i += 1024) values[i] = rank * 1000 + round;
            for (size_t i = 0; i < count; i += 1024) wrong[rank] += values[i] != rank * 1000 + round;
            pool.give(std::move(pages));
        }
    };
    std::vector<std::thread> others;
    for (int rank = 1; rank < 4; ++rank) others.emplace_back(work, rank);
    work(0);
    for (std::thread& thread : others) thread.join();
    for (const long count : wrong) CHECK(count == 0, "threads");
}

}  // namespace

int main() {
    test_block_comes_back();
    test_smallest_fit();
    test_limit();
    test_threads();
    return fastrnn_test::finish();
}
