// A layer's sequences on the device: kernels that move rows. Here a ragged sequence is packed in memory, and its rows
// have no other order.
#pragma once

#include "device.cuh"

#include "../cells/rows.h"

namespace fastrnn {
namespace {

// the distance between rows that follow each other, or 0 where it varies
inline int64_t row_stride(const Strides& strides, const Shape& shape) {
    if (strides.packed || shape.time == 1) return strides.batch;
    if (shape.batch == 1) return strides.time;
    return strides.time == shape.batch * strides.batch ? strides.batch : 0;
}

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
__global__ void copy_rows(const X* from, Strides from_strides, X* to, Strides to_strides, Steps steps, int64_t first,
                          int64_t count, int64_t features) {
    const int64_t index = global_index();
    if (index >= count * features) return;
    const int64_t row = first + index / features, feature = index % features;
    to[to_strides.at(steps, row) + feature] = from[from_strides.at(steps, row) + feature];
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
__global__ void previous_states(const X* y, Strides y_strides, const X* h0, Steps steps, int64_t rows, int64_t features,
                                X* to) {
    const int64_t index = global_index();
    if (index >= rows * features) return;
    const int64_t row = index / features, feature = index % features;
    const int64_t t = steps.time_of_row(row), b = row - steps.first_row(t), step = steps.time_of(t);
    X value = narrow<X>(Wide<X>(0));
    if (steps.carries(step, b)) {
        value = y[y_strides.at(steps, steps.time_of(step - 1), b) + feature];
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
