#pragma once

#include <cstdint>

namespace fastrnn {

// A team of `threads` took `elapsed` ns, of which its first thread waited so many for others. Later leases of cores
// heed it.
void report_team(int threads, int64_t elapsed, int64_t waited);

}  // namespace fastrnn
