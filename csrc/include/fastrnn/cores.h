// How many threads a call has beside other calls of the process and other work of the machine. Results do not depend on
// the number of threads, so each call may have another one.
#pragma once

#include <cstdint>

namespace fastrnn {

struct CoreGrant {
    int threads;
    int callers;    // calls in flight, this one among them
    int64_t since;  // ns; where there are others
};

// For the length of a call; taken before its workspace is measured.
class CoreLease {
   public:
    explicit CoreLease(int wanted);
    ~CoreLease();
    CoreLease(const CoreLease&) = delete;
    CoreLease& operator=(const CoreLease&) = delete;
    int threads() const { return grant_.threads; }  // from 1 to `wanted`

   private:
    CoreGrant grant_;
};

int leases_in_flight();

// false: every lease has what it wants, more than there are cores too, as a test of teams needs it
void adapt_leases(bool adapt);

}  // namespace fastrnn
