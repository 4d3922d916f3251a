// Dropout of h on its way into a recurrent product (recurrent_mask in kernels.h): the engine's and no cell's, which see
// h as it is.
#pragma once

#include "tile-inl.h"

namespace fastrnn {
namespace {

// out = (0 or what is there) + row * mask, for `units`; row and mask end at `width`, out is padded
template <class T>
FASTRNN_NOINLINE void multiply_by_mask(const T* row, const T* mask, Range units, int64_t width, Init init, T* out) {
    using V = Vec<T>;
    for (int64_t u = units.begin; u < units.end; u += V::kLanes) {
        const V product = load_units(row, u, width) * load_units(mask, u, width);
        (init == Init::accumulate ? V::load(out + u) + product : product).store(out + u);
    }
}

}  // namespace
}  // namespace fastrnn
