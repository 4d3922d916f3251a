// What is kept from call to call, for programs that want it back.
#include <torch/csrc/stable/library.h>

#include <tuple>

#include "kept_memory.h"

namespace fastrnn {
namespace {

std::tuple<int64_t, int64_t> kept_memory_op() {
    const KeptMemory& memory = kept_memory();
    return {static_cast<int64_t>(memory.bytes()), static_cast<int64_t>(memory.limit())};
}

void release_memory_op() { release_memory(); }

}  // namespace
}  // namespace fastrnn

STABLE_TORCH_LIBRARY_FRAGMENT(fastrnn, m) {
    m.def("kept_memory() -> (int bytes, int limit)");
    m.def("release_memory() -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(fastrnn, CompositeExplicitAutograd, m) {
    m.impl("kept_memory", TORCH_BOX(&fastrnn::kept_memory_op));
    m.impl("release_memory", TORCH_BOX(&fastrnn::release_memory_op));
}
