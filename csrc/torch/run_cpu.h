// A pass on the CPU, with the cores and the memory that it has for the length of the call.
#pragma once

#include "fastrnn/cores.h"
#include "fastrnn/kernels.h"
#include "workspace.h"

namespace fastrnn {

inline size_t workspace_bytes(const ForwardParams& p, const Kernels& kernels) {
    return forward_workspace_bytes(p, kernels);
}
inline size_t workspace_bytes(const BackwardParams& p, const Kernels& kernels) {
    return backward_workspace_bytes(p, kernels);
}
inline void run_pass(const ForwardParams& p, const Kernels& kernels) { forward(p, kernels); }
inline void run_pass(const BackwardParams& p, const Kernels& kernels) { backward(p, kernels); }

// p.threads: at most so many
template <class Params>
void run_on_cpu(Params& p) {
    const CoreLease lease(p.threads);
    p.threads = lease.threads();
    const Kernels& kernels = active_kernels();
    const Workspace workspace(workspace_bytes(p, kernels));
    p.workspace = workspace.data();
    run_pass(p, kernels);
}

}  // namespace fastrnn
