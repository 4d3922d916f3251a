// Which rows of a layer take part in which time step, and where they lie; for the host and the device.
//
// Four properties that are independent of each other: a sequence is ragged (fewer rows take part in later steps), it is
// packed in memory (no room for rows that take no part), its rows have an order, and marks cut them into pieces.
#pragma once

#include "fastrnn/kernels.h"
#include "inline.h"

namespace fastrnn {
namespace {

struct Steps;

// Where the rows of a sequence lie, in elements from its first.
struct Strides {
    int64_t time, batch;
    bool packed;

    FASTRNN_INLINE int64_t at(const Steps& steps, int64_t t, int64_t b) const;
    // of row `row` of the layer
    FASTRNN_INLINE int64_t at(const Steps& steps, int64_t row) const;
};

// Where the state of a row comes from as a step begins.
enum class Origin { step_before, initial, zero };

// The steps of one direction. A step is counted in the order of computation; rows of a step come one after the other,
// steps in the order of time.
struct Steps {
    int64_t time, batch;
    const int64_t* offsets;  // [T + 1] rows of the layer before each time; null: `batch` rows at every time
    const int64_t* order;    // [B], or null: see Shape
    bool reverse;
    const bool* resets = nullptr;  // or null: see Shape
    Strides resets_strides = {};

    FASTRNN_INLINE int64_t time_of(int64_t step) const { return reverse ? time - 1 - step : step; }
    FASTRNN_INLINE int64_t count(int64_t t) const { return offsets ? offsets[t + 1] - offsets[t] : batch; }
    FASTRNN_INLINE int64_t first_row(int64_t t) const { return offsets ? offsets[t] : t * batch; }
    // whether row b has a state of its own when `step` begins; else it begins there, with h0
    FASTRNN_INLINE bool carries(int64_t step, int64_t b) const { return step > 0 && b < count(time_of(step - 1)); }
    FASTRNN_INLINE Origin origin(int64_t step, int64_t b) const {
        const bool carried = carries(step, b);
        // a mark is a cut before its time, so the other direction meets it as it leaves that time
        if (resets && (carried || !reverse) &&
            resets[resets_strides.at(*this, time_of(reverse ? step - 1 : step), b)]) {
            return Origin::zero;
        }
        return carried ? Origin::step_before : Origin::initial;
    }
    // the row of states and of unpacked sequences that is row b here
    FASTRNN_INLINE int64_t row_of(int64_t b) const { return order ? order[b] : b; }
    // how many steps row b takes part in, the first ones in time
    FASTRNN_INLINE int64_t length(int64_t b) const {
        if (!offsets) return time;
        int64_t low = 0, high = time;  // counts fall: first t whose count is b or less
        while (low < high) {
            const int64_t middle = (low + high) / 2;
            count(middle) > b ? low = middle + 1 : high = middle;
        }
        return low;
    }
    // the time of row `row` of the layer
    FASTRNN_INLINE int64_t time_of_row(int64_t row) const {
        if (!offsets) return row / batch;
        int64_t low = 0, high = time - 1;  // last t with offsets[t] <= row
        while (low < high) {
            const int64_t middle = (low + high + 1) / 2;
            offsets[middle] <= row ? low = middle : high = middle - 1;
        }
        return low;
    }
};

FASTRNN_INLINE int64_t Strides::at(const Steps& steps, int64_t t, int64_t b) const {
    return packed ? (steps.first_row(t) + b) * batch : t * time + steps.row_of(b) * batch;
}
FASTRNN_INLINE int64_t Strides::at(const Steps& steps, int64_t row) const {
    if (packed) return row * batch;
    const int64_t t = steps.time_of_row(row);
    return at(steps, t, row - steps.first_row(t));
}

}  // namespace
}  // namespace fastrnn
