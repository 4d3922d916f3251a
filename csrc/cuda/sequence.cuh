// A layer's sequences on the device: which row is where, and kernels that move rows.
#pragma once

#include "device.cuh"

namespace fastrnn {
namespace {

// Order and rows of the time steps of one direction, on the host and on the device. A step is counted in the order of
// computation; rows of a step come one after the other, steps in the order of time.
struct Timeline {
    int64_t time, batch, rows;
    const int64_t* offsets;  // [T + 1] first row of each time, packed input only; on the device, or the host's own
    bool reverse;

    FASTRNN_INLINE int64_t time_of(int64_t step) const { return reverse ? time - 1 - step : step; }
    FASTRNN_INLINE int64_t count(int64_t t) const { return offsets ? offsets[t + 1] - offsets[t] : batch; }
    FASTRNN_INLINE int64_t first_row(int64_t t) const { return offsets ? offsets[t] : t * batch; }
    // rows that hold a state of this sequence when `step` begins; later ones begin with h0
    FASTRNN_INLINE int64_t carried(int64_t step) const {
        return step == 0 ? 0 : least(count(time_of(step - 1)), count(time_of(step)));
    }
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

// Where a sequence's rows lie, in elements: (t, b) at t * time + b * batch, row r of packed input at r * batch.
struct Strides {
    int64_t time, batch;

    FASTRNN_INLINE int64_t at(const Timeline& timeline, int64_t t, int64_t b) const {
        return timeline.offsets ? (timeline.offsets[t] + b) * batch : t * time + b * batch;
    }
    FASTRNN_INLINE int64_t at(const Timeline& timeline, int64_t row) const {
        return timeline.offsets ? row * batch : row / timeline.batch * time + row % timeline.batch * batch;
    }
    // the distance between rows that follow each other, or 0 where it varies
    int64_t of_rows(const Timeline& timeline) const {
        if (timeline.offsets || timeline.time == 1) return batch;
        if (timeline.batch == 1) return time;
        return time == timeline.batch * batch ? batch : 0;
    }
};

// offsets by way of the kernel's arguments: nothing on the host need stay alive, under capture in a graph either
struct OffsetBlock {
    static constexpr int kCount = 448;
    int64_t values[kCount];
};

__global__ void store_offsets(OffsetBlock block, int64_t* to, int count) {
    for (int i = thread_index(); i < count; i += kThreads) to[i] = block.values[i];
}

inline void upload_offsets(Queue& queue, const Shape& shape, int64_t* to) {
    OffsetBlock block{};
    int64_t row = 0, first = 0;
    for (int64_t t = 0; t <= shape.time; ++t) {
        block.values[t - first] = row;
        if (t < shape.time) row += shape.batch_sizes[t];
        if (t - first + 1 == OffsetBlock::kCount || t == shape.time) {
            queue.run(1, 0, false, store_offsets, block, to + first, static_cast<int>(t - first + 1));
            first = t + 1;
        }
    }
}

// to[row] = from[row] for rows first .. first + count
template <class X>
__global__ void copy_rows(const X* from, Strides from_strides, X* to, Strides to_strides, Timeline timeline,
                          int64_t first, int64_t count, int64_t features) {
    const int64_t index = global_index();
    if (index >= count * features) return;
    const int64_t row = first + index / features, feature = index % features;
    to[to_strides.at(timeline, row) + feature] = from[from_strides.at(timeline, row) + feature];
}

// to[i] = from[i], or 0 where there is no `from`; from one type to another
template <class To, class From>
__global__ void copy_state(const From* from, To* to, int64_t count) {
    const int64_t index = global_index();
    if (index < count) to[index] = narrow<To>(from ? static_cast<Wide<To>>(widen(from[index])) : Wide<To>(0));
}

// to[i] = a[i] + b[i]
template <class X>
__global__ void add_states(const Wide<X>* a, const Wide<X>* b, X* to, int64_t count) {
    const int64_t index = global_index();
    if (index < count) to[index] = narrow<X>(a[index] + b[index]);
}

// to[row] = the state before row's step: y of the step before, else h0, else 0
template <class X>
__global__ void previous_states(const X* y, Strides y_strides, const X* h0, Timeline timeline, int64_t features,
                                X* to) {
    const int64_t index = global_index();
    if (index >= timeline.rows * features) return;
    const int64_t row = index / features, feature = index % features;
    const int64_t t = timeline.time_of_row(row), b = row - timeline.first_row(t), step = timeline.time_of(t);
    X value = narrow<X>(Wide<X>(0));
    if (b < timeline.carried(step)) {
        value = y[y_strides.at(timeline, timeline.time_of(step - 1), b) + feature];
    } else if (h0) {
        value = h0[b * features + feature];
    }
    to[index] = value;
}

// Sums over rows in two launches, each in a fixed order: partial[block of rows][column], then their sum.
constexpr int64_t kRowsOfSum = 128;

inline int64_t sum_blocks(int64_t rows) { return (rows + kRowsOfSum - 1) / kRowsOfSum; }

template <class X>
__global__ void sum_blocks_of_rows(const X* from, int64_t stride, int64_t rows, int64_t columns, Wide<X>* partial) {
    const int64_t index = global_index();
    if (index >= (rows + kRowsOfSum - 1) / kRowsOfSum * columns) return;
    const int64_t block = index / columns, column = index % columns;
    Wide<X> sum = 0;
    for (int64_t row = block * kRowsOfSum; row < least(rows, (block + 1) * kRowsOfSum); ++row) {
        sum += widen(from[row * stride + column]);
    }
    partial[index] = sum;
}

template <class X>
__global__ void sum_of_blocks(const Wide<X>* partial, int64_t blocks, int64_t columns, X* to) {
    const int64_t column = global_index();
    if (column >= columns) return;
    Wide<X> sum = 0;
    for (int64_t block = 0; block < blocks; ++block) sum += partial[block * columns + column];
    to[column] = narrow<X>(sum);
}

}  // namespace
}  // namespace fastrnn
