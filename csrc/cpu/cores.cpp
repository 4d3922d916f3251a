#include "cores.h"

#include <pthread.h>
#if defined(__linux__)
#include <sched.h>
#endif

#include <thread>

#include "clock.h"
#include "team_report.h"

namespace fastrnn {
namespace {

// those that the process may run on
int available_cores() {
#if defined(__linux__)
    cpu_set_t set;
    if (sched_getaffinity(0, sizeof set, &set) == 0) return CPU_COUNT(&set);
#endif
    const unsigned found = std::thread::hardware_concurrency();
    return found ? static_cast<int>(found) : 1;
}

Cores cores(available_cores());

const bool watches_fork = [] {
    pthread_atfork(nullptr, nullptr, [] { cores.forget(); });
    return true;
}();

}  // namespace

CoreLease::CoreLease(int wanted) : grant_(cores.enter(wanted < 1 ? 1 : wanted, nanoseconds)) {}
CoreLease::~CoreLease() { cores.leave(grant_, nanoseconds); }

int leases_in_flight() { return cores.in_flight(); }
void adapt_leases(bool adapt) { cores.adapt(adapt); }

void report_team(int threads, int64_t elapsed, int64_t waited) {
    cores.report(threads, elapsed, waited, nanoseconds());
}

}  // namespace fastrnn
