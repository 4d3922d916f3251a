// The order of ragged rows: longest first.
#pragma once

#include <cstdint>
#include <vector>

namespace fastrnn {
namespace {

// Of rows of these lengths, 0 to time: `sizes` [time], how many take part in each step, and `order` [batch], of which
// those are the first. False where all take part in all steps, and nothing is made.
inline bool order_by_length(const int64_t* lengths, int64_t time, int64_t batch, std::vector<int64_t>& sizes,
                            std::vector<int64_t>& order) {
    std::vector<int64_t> ending(static_cast<size_t>(time) + 1);  // at each time
    for (int64_t b = 0; b < batch; ++b) ++ending[static_cast<size_t>(lengths[b])];
    if (ending.back() == batch) return false;
    sizes.resize(static_cast<size_t>(time));
    int64_t going_on = batch;
    for (size_t t = 0; t < sizes.size(); ++t) sizes[t] = going_on -= ending[t];
    // where the next row of a length goes: behind those that are longer
    std::vector<int64_t> next(ending.size());
    for (size_t length = ending.size() - 1; length-- > 0;) next[length] = next[length + 1] + ending[length + 1];
    order.resize(static_cast<size_t>(batch));
    for (int64_t b = 0; b < batch; ++b) order[static_cast<size_t>(next[static_cast<size_t>(lengths[b])]++)] = b;
    return true;
}

}  // namespace
}  // namespace fastrnn
