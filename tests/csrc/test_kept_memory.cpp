// Memory that waits for later calls: whole blocks, each to one owner, no more of it than is allowed.
#include <sys/wait.h>
#include <unistd.h>

#include <cstring>
#include <future>
#include <thread>
#include <vector>

#include "check.h"
#include "workspace.h"

namespace {

using fastrnn::KeptMemory;
using fastrnn::KeptWorkspace;
using fastrnn::Pages;
using fastrnn::Workspace;

constexpr size_t kMiB = size_t{1} << 20, kLimit = 512 * kMiB;

void test_block_comes_back() {
    KeptMemory memory(kLimit);
    Pages first = memory.take_block(9 * kMiB), second = memory.take_block(9 * kMiB);
    CHECK(first.data() != second.data(), "block comes back");
    CHECK(first.size() >= 9 * kMiB && first.size() < 12 * kMiB, "block comes back");
    std::memset(first.data(), 1, first.size());
    const void* const address = first.data();
    const bool kept = first.offer_to_system();  // where the system cannot take it back, nothing is kept
    memory.give_block(std::move(first));
    CHECK(memory.bytes() == (kept ? 10 * kMiB : 0), "block comes back");
    Pages third = memory.take_block(9 * kMiB);
    CHECK(!kept || third.data() == address, "block comes back");
    CHECK(memory.bytes() == 0, "block comes back");
    std::memset(third.data(), 2, third.size());
}

void test_smallest_fit() {
    KeptMemory memory(kLimit);
    std::vector<Pages> blocks;
    for (const size_t size : {size_t{40}, size_t{12}, size_t{20}}) blocks.push_back(memory.take_block(size * kMiB));
    if (!blocks[0].offer_to_system()) return;
    const void* const twenty = blocks[2].data();
    for (Pages& block : blocks) memory.give_block(std::move(block));
    const Pages found = memory.take_block(14 * kMiB);
    CHECK(found.data() == twenty, "smallest fit");
    const Pages small = memory.take_block(4 * kMiB);  // all that waits is more than twice as large
    CHECK(small.size() == 4 * kMiB, "smallest fit");
    CHECK(memory.bytes() == 52 * kMiB, "smallest fit");
}

void test_limit() {
    KeptMemory memory(kLimit);
    std::vector<Pages> blocks;
    for (int i = 0; i < 5; ++i) blocks.push_back(memory.take_block(kLimit / 4));  // never touched
    if (!blocks[0].offer_to_system()) return;
    const void *const oldest = blocks[0].data(), *const newest = blocks[4].data();
    for (Pages& block : blocks) memory.give_block(std::move(block));
    CHECK(memory.bytes() == kLimit, "limit");
    bool has_newest = false;
    for (int i = 0; i < 4; ++i) {
        blocks[static_cast<size_t>(i)] = memory.take_block(kLimit / 4);
        CHECK(blocks[static_cast<size_t>(i)].data() != oldest, "limit");
        has_newest = has_newest || blocks[static_cast<size_t>(i)].data() == newest;
    }
    CHECK(has_newest, "limit");
    CHECK(memory.bytes() == 0, "limit");
    memory.give_block(memory.take_block(kLimit + kMiB));
    CHECK(memory.bytes() == 0, "limit");
    for (size_t i = 0; i < kLimit / KeptMemory::kLeastBlock + 9; ++i) {
        memory.give_block(Pages(KeptMemory::kLeastBlock));
    }
    CHECK(memory.bytes() == kLimit, "limit");
}

void test_nothing_is_kept() {
    KeptMemory memory(0);
    memory.give_block(memory.take_block(9 * kMiB));
    CHECK(memory.bytes() == 0, "nothing");
    CHECK(!memory.resize_workspace(0, kMiB), "nothing");
    CHECK(memory.bytes() == 0, "nothing");
}

void test_workspaces_come_before_reserves() {
    KeptMemory memory(kLimit);
    Pages reserve = memory.take_block(kLimit);
    if (!reserve.offer_to_system()) return;
    memory.give_block(std::move(reserve));
    CHECK(memory.bytes() == kLimit, "workspaces");
    CHECK(memory.resize_workspace(0, kMiB), "workspaces");
    CHECK(memory.bytes() == kMiB, "workspaces");
    CHECK(!memory.resize_workspace(kMiB, kLimit + kMiB), "workspaces");
    CHECK(memory.bytes() == kMiB, "workspaces");
    memory.give_block(memory.take_block(kLimit));  // more than is left
    CHECK(memory.bytes() == kMiB, "workspaces");
    CHECK(memory.resize_workspace(kMiB, 0), "workspaces");
    CHECK(memory.bytes() == 0, "workspaces");
}

void test_release() {
    KeptMemory memory(kLimit);
    memory.give_block(memory.take_block(9 * kMiB));
    memory.release();
    CHECK(memory.bytes() == 0, "release");
}

// as a thread's calls do; another thread hears of a release at its next call
void test_workspaces_of_threads() {
    KeptMemory& memory = fastrnn::kept_memory();
    const void* const first = Workspace(3 * kMiB).data();
    CHECK(Workspace(kMiB).data() == first, "threads' workspaces");
    const size_t own = memory.bytes();
    CHECK(own >= 3 * kMiB, "threads' workspaces");
    const size_t large = KeptWorkspace::kMostBytes + 2 * kMiB;
    const void* const block = Workspace(large).data();
    if (Pages(kMiB).offer_to_system()) {
        CHECK(memory.bytes() == own + large, "large workspaces are blocks of all");
        CHECK(Workspace(large - kMiB).data() == block, "large workspaces are blocks of all");
        const Workspace one(large), two(large);
        CHECK(one.data() == block && two.data() != block, "large workspaces are blocks of all");
        CHECK(memory.bytes() == own, "large workspaces are blocks of all");
    }
    CHECK(Workspace(kMiB).data() == first, "threads' workspaces");
    memory.release();  // and so the thread lets go of its own at its next call
    CHECK(Workspace(3 * kMiB).data() && memory.bytes() == own, "threads' workspaces");

    std::promise<void> used, released;
    std::thread other([&] {
        {
            const Workspace workspace(5 * kMiB);
        }
        used.set_value();
        released.get_future().wait();
        CHECK(memory.bytes() >= 5 * kMiB, "threads' workspaces");
        {
            const Workspace workspace(kMiB);
        }
        CHECK(memory.bytes() == kMiB, "threads' workspaces");
    });
    used.get_future().wait();
    CHECK(memory.bytes() >= own + 5 * kMiB, "threads' workspaces");
    fastrnn::release_memory();
    CHECK(memory.bytes() >= 5 * kMiB && memory.bytes() < own + 5 * kMiB, "threads' workspaces");
    released.set_value();
    other.join();
    CHECK(memory.bytes() == 0, "threads' workspaces");
}

void test_fork() {
    fastrnn::release_memory();
    std::promise<void> used, forked;
    std::thread other([&] {
        {
            const Workspace workspace(5 * kMiB);
        }
        used.set_value();
        forked.get_future().wait();
    });
    used.get_future().wait();
    {
        const Workspace workspace(kMiB);
    }
    const pid_t child = fork();
    if (child == 0) _exit(fastrnn::kept_memory().bytes() == kMiB ? 7 : 3);  // the other thread's is not its
    int status = 0;
    waitpid(child, &status, 0);
    CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 7, "fork");
    forked.set_value();
    other.join();
}

std::string error_of_limit(const char* text) {
    setenv("FASTRNN_KEEP_MB", text, 1);
    try {
        fastrnn::keep_limit();
    } catch (const std::runtime_error& error) {
        return error.what();
    }
    return "";
}

void test_variable() {
    for (const char* text : {"-1", "1.5", "all", " 3", "3 ", "1e3", "0x10", "12345678901234567890"}) {
        const std::string error = error_of_limit(text);
        CHECK(error.find("FASTRNN_KEEP_MB") != std::string::npos && error.find(text) != std::string::npos, text);
    }
    for (const char* text : {"0", "3", "0700", ""}) CHECK(error_of_limit(text).empty(), text);
    setenv("FASTRNN_KEEP_MB", "3", 1);
    CHECK(fastrnn::keep_limit() == 3 * kMiB, "3");
    unsetenv("FASTRNN_KEEP_MB");
    CHECK(fastrnn::keep_limit() == 512 * kMiB, "");
}

// each thread marks its block and must find its marks
void test_threads() {
    KeptMemory memory(kLimit);
    long wrong[4] = {};
    const auto work = [&](int rank) {
        for (int round = 0; round < 500; ++round) {
            Pages pages = memory.take_block(KeptMemory::kLeastBlock + static_cast<size_t>(round % 3) * kMiB);
            auto* const values = static_cast<int*>(pages.data());
            const size_t count = pages.size() / sizeof(int);
            for (size_t i = 0; i < count; i += 1024) values[i] = rank * 1000 + round;
            for (size_t i = 0; i < count; i += 1024) wrong[rank] += values[i] != rank * 1000 + round;
            memory.give_block(std::move(pages));
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
    test_nothing_is_kept();
    test_workspaces_come_before_reserves();
    test_release();
    test_variable();
    test_workspaces_of_threads();
    test_fork();
    test_threads();
    return fastrnn_test::finish();
}
