// Gradients of weights and biases: sums over all rows of the sequence, made after the loop over time.
//
// d_w[m, n] = sum over rows of d[row, m] * b[row, n], in blocks of kDepth rows: B's block is packed into panels, A's
// into runs of a row block's width. Sums are made in chains of kChain rows, which then add up: the rounding error grows
// with the two counts and not with their product. Neither depends on the number of threads, so neither does the result.
#pragma once

#include "plan-inl.h"

namespace fastrnn {
namespace {

constexpr int64_t kDepth = 256, kColumns = 256, kChain = 32;

template <class T>
constexpr int64_t gradient_scratch() {  // values a thread
    return kDepth * (kColumns + 8) + 8 * 4 * Vec<T>::kLanes;
}

// where the rows of B lie
template <class T>
struct RowSource {
    const T* (*at)(const void* context, int64_t row);
    const void* context;
};

// out[m, 0 .. columns) for m in `range`; a: column m of row r at a[r * a_stride + m]
template <class T>
FASTRNN_NOINLINE void sum_outer_products(const T* a, int64_t a_stride, RowSource<T> b, int64_t rows, Range range,
                                         int64_t columns, T* out, T* scratch) {
    constexpr int64_t kLanes = Vec<T>::kLanes, kPanel = 4 * kLanes;
    constexpr int kBlock = kMaxRows<4>;
    if (rows == 0) {
        __builtin_memset(out + range.begin * columns, 0,
                         sizeof(T) * static_cast<size_t>((range.end - range.begin) * columns));
        return;
    }
    T *packed_b = scratch, *packed_a = packed_b + kDepth * kColumns, *edge = packed_a + kDepth * 8;
    for (int64_t first_column = 0; first_column < columns; first_column += kColumns) {
        const int64_t width = columns - first_column < kColumns ? columns - first_column : kColumns;
        for (int64_t first = 0; first < rows; first += kDepth) {
            const int64_t depth = rows - first < kDepth ? rows - first : kDepth;
            for (int64_t k = 0; k < depth; ++k) {
                const T* row = b.at(b.context, first + k) + first_column;
                for (int64_t n = 0; n < width; n += kPanel)
                    pack_row(row + n, width - n, 4, packed_b + n * depth + k * kPanel);
            }
            for (int64_t m = range.begin; m < range.end; m += kBlock) {
                const int64_t height = range.end - m < kBlock ? range.end - m : kBlock;
                const T* source[kBlock];
                T* c[kBlock];
                for (int64_t r = 0; r < height; ++r) source[r] = packed_a + r;
                for (int64_t k = 0; k < depth; ++k) {
                    for (int64_t r = 0; r < height; ++r) packed_a[k * kBlock + r] = a[(first + k) * a_stride + m + r];
                }
                for (int64_t n = 0; n < width; n += kPanel) {
                    const bool whole = n + kPanel <= width;
                    for (int64_t r = 0; r < height; ++r) {
                        T* target = out + (m + r) * columns + first_column + n;
                        c[r] = whole ? target : edge + r * kPanel;
                        if (!whole && first > 0) pack_row(target, width - n, 4, c[r]);
                    }
                    multiply_rows<T, 4>(source, height, {1, depth, 0, kBlock, kChain}, packed_b + n * depth, c, kLanes,
                                        first == 0 ? Init::zero : Init::accumulate, nullptr);
                    for (int64_t r = 0; !whole && r < height; ++r) {
                        __builtin_memcpy(out + (m + r) * columns + first_column + n, c[r],
                                         sizeof(T) * static_cast<size_t>(width - n));
                    }
                }
            }
        }
    }
}

// out[m] = sum over rows of a[row, m] for m in `range`
template <class T>
FASTRNN_NOINLINE void sum_rows(const T* a, int64_t a_stride, int64_t rows, Range range, T* out) {
    using V = Vec<T>;
    constexpr int64_t kShortChain = 16;
    for (int64_t m = range.begin; m < range.end; m += V::kLanes) {
        V total{T(0)};
        for (int64_t block = 0; block < rows; block += kDepth) {
            const int64_t block_end = block + kDepth < rows ? block + kDepth : rows;
            V block_sum{T(0)};
            for (int64_t first = block; first < block_end; first += kShortChain) {
                const int64_t end = first + kShortChain < block_end ? first + kShortChain : block_end;
                V sum{T(0)};
                for (int64_t r = first; r < end; ++r) sum = sum + V::load(a + r * a_stride + m);
                block_sum = block_sum + sum;
            }
            total = total + block_sum;
        }
        store_partial(total, out + m, range.end - m < V::kLanes ? range.end - m : V::kLanes);
    }
}

}  // namespace
}  // namespace fastrnn
