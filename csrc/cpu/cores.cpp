#include "cores.h"

#include <omp.h>
#include <pthread.h>

#include "clock.h"
#include "team_report.h"

namespace fastrnn {
namespace {

// those that the process may run on, whatever libgomp has bound its first thread to
Cores cores(omp_get_num_procs());

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
