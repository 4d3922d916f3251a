// The account of calls in flight and of teams that waited, by a clock that the test sets.
#include <thread>
#include <vector>

#include "check.h"
#include "cpu/cores.h"
#include "cpu/team_report.h"

namespace {

using fastrnn::CoreGrant;
using fastrnn::Cores;
constexpr int64_t kMs = 1'000'000;

struct Account {
    Cores cores;
    int64_t time = 1;
    int reads = 0;  // of the clock

    explicit Account(int count) : cores(count) {}
    CoreGrant enter(int wanted) {
        return cores.enter(wanted, [this] { return ++reads, time; });
    }
    void leave(const CoreGrant& grant) {
        cores.leave(grant, [this] { return ++reads, time; });
    }
    int alone(int wanted) {
        const CoreGrant grant = enter(wanted);
        leave(grant);
        return grant.threads;
    }
    // a team of two that is alone; waited: in percent
    void team(int64_t elapsed, int64_t waited) {
        const CoreGrant grant = enter(2);
        time += elapsed;
        cores.report(2, elapsed, elapsed * waited / 100, time);
        leave(grant);
    }
    // how long the next calls have one thread, to 1 ms
    int64_t pause() {
        const int64_t began = time;
        while (alone(2) == 1) time += kMs;
        return time - began;
    }
};

void test_alone() {
    Account account(8);
    for (int wanted : {1, 3, 8}) CHECK(account.alone(wanted) == wanted, std::to_string(wanted));
    CHECK(account.alone(9) == 8, "no more than there are cores");
    CHECK(account.reads == 0, "a call that is alone reads no clock");
    CHECK(account.cores.in_flight() == 0, "all have left");
}

void test_shares() {
    const int shares[] = {8, 4, 2, 2, 1, 1, 1, 1, 1};
    Account account(8);
    CoreGrant grants[9];
    for (int i = 0; i < 9; ++i) {
        grants[i] = account.enter(8);
        CHECK(grants[i].threads == shares[i], "caller " + std::to_string(i + 1));
        CHECK(account.cores.in_flight() == i + 1, "caller " + std::to_string(i + 1));
    }
    for (const CoreGrant& grant : grants) account.leave(grant);
    CHECK(account.cores.in_flight() == 0, "all have left");
    const CoreGrant first = account.enter(2);
    CHECK(first.threads == 2 && account.enter(2).threads == 2, "cores for all that both want");
}

void test_memory() {
    Account account(2);
    const auto overlap = [&account](int64_t length) {
        const CoreGrant first = account.enter(2), second = account.enter(2);
        CHECK(second.threads == 1, "the other call has the cores");
        account.time += length;
        account.leave(first);
        account.leave(second);
    };
    overlap(kMs / 10);
    CHECK(account.alone(2) == 1, "calls overlapped a moment ago");
    const int64_t remembered = account.pause();
    CHECK(remembered > kMs && remembered <= Cores::kMemory * kMs / 10 + kMs, std::to_string(remembered));
    const int reads = account.reads;
    CHECK(account.alone(2) == 2 && account.reads == reads, "and no clock is read again");
    overlap(1000 * kMs);
    CHECK(account.pause() <= Cores::kLongestMemory + kMs, "long calls are not remembered for long");
    overlap(0);
    CHECK(account.alone(2) == 2, "a call of no length takes no core from later ones");
}

void test_fewer_callers() {
    Account account(8);
    const CoreGrant first = account.enter(8), second = account.enter(8), third = account.enter(8);
    account.time += kMs / 10;
    for (const CoreGrant& grant : {third, second, first}) account.leave(grant);
    CHECK(account.alone(8) == 2, "three callers");
    account.time += Cores::kLongestMemory;
    const CoreGrant one = account.enter(8), two = account.enter(8);
    CHECK(one.threads == 8 && two.threads == 4, "two, the third is forgotten");
}

void test_teams_that_wait() {
    Account account(2);
    account.team(kMs, 60);
    CHECK(account.alone(2) == 2, "a second thread that does a little is kept");
    account.team(8 * kMs, 95);
    CHECK(account.alone(2) == 1, "one that does not run is not");
    int64_t last = account.pause();
    CHECK(last > 8 * kMs && last < 20 * kMs, "a hiccup costs about twice itself: " + std::to_string(last));
    for (int trial = 0; trial < 6; ++trial) {
        account.team(8 * kMs, 95);
        const int64_t pause = account.pause();
        CHECK(pause >= last && pause <= Cores::kLongestPause + kMs, std::to_string(trial));
        last = pause;
    }
    CHECK(last > 300 * kMs, "trials take a small part of the time: " + std::to_string(last));
    account.team(kMs, 10);
    account.team(8 * kMs, 95);
    CHECK(account.pause() == last, "a little luck changes nothing");
    for (int i = 0; i < 60; ++i) account.team(kMs, 10);
    account.team(8 * kMs, 95);
    CHECK(account.pause() < 20 * kMs, "teams that worked for a while begin anew");
}

void test_teams_among_others() {
    Account account(4);
    const CoreGrant first = account.enter(2), second = account.enter(2);
    account.cores.report(2, 8 * kMs, 8 * kMs, account.time);
    account.leave(second);
    account.leave(first);
    CHECK(account.alone(2) == 2, "what calls of this process cost each other is shared, not paused");
}

void test_fork() {
    Account account(2);
    account.enter(2);
    account.leave(account.enter(2));
    account.team(8 * kMs, 95);
    account.cores.forget();
    CHECK(account.cores.in_flight() == 0, "a child has none of the calls");
    CHECK(account.alone(2) == 2, "and none of the hints");
}

void test_switched_off() {
    Account account(2);
    account.cores.adapt(false);
    const CoreGrant first = account.enter(8), second = account.enter(8);
    CHECK(first.threads == 8 && second.threads == 8, "what is wanted");
    account.leave(first);
    account.leave(second);
    account.team(8 * kMs, 95);
    CHECK(account.alone(3) == 3, "whatever teams waited");
    CHECK(account.cores.in_flight() == 0, "all have left");
}

void test_leases() {
    {
        const fastrnn::CoreLease lease(1);
        CHECK(lease.threads() == 1 && fastrnn::leases_in_flight() == 1, "one");
        const fastrnn::CoreLease nothing(0);
        CHECK(nothing.threads() == 1 && fastrnn::leases_in_flight() == 2, "two, the second of at least a thread");
    }
    CHECK(fastrnn::leases_in_flight() == 0, "none");
}

void test_many_callers() {
    constexpr int kCallers = 6, kCalls = 3000;
    long wrong[kCallers] = {};
    const auto call = [&wrong](int caller) {
        for (int i = 0; i < kCalls; ++i) {
            const fastrnn::CoreLease lease(4);
            if (lease.threads() < 1 || lease.threads() > 4 || fastrnn::leases_in_flight() < 1) ++wrong[caller];
            fastrnn::report_team(2, 1000, i % 3 == 0 ? 990 : 10);
        }
    };
    std::vector<std::thread> callers;
    for (int i = 0; i < kCallers; ++i) callers.emplace_back(call, i);
    for (std::thread& caller : callers) caller.join();
    for (long count : wrong) CHECK(count == 0, "leases of threads at once");
    CHECK(fastrnn::leases_in_flight() == 0, "none");
}

}  // namespace

int main() {
    test_alone();
    test_shares();
    test_memory();
    test_fewer_callers();
    test_teams_that_wait();
    test_teams_among_others();
    test_fork();
    test_switched_off();
    test_leases();
    test_many_callers();
    return fastrnn_test::finish();
}
