// Gradients of weights and biases: sums over all rows of the sequence, a chunk of them at a time.
//
// d_w[m, n] = sum over rows of d[row, m] * b[row, n], in blocks of kDepth rows: B's block is packed into panels, once
// for all gates; d's into groups of columns. Sums are made in chains of rows, which then add up: the rounding error
// grows with the two counts and not with their product. Neither depends on the number of threads, so neither does the
// result.
#pragma once

#include "../cells/cell.h"
#include "panels-inl.h"

namespace fastrnn {
namespace {

constexpr int64_t kDepth = 512, kColumns = 256;
constexpr int64_t kGroup = 48;  // columns of d that are packed together: a whole number of blocks of 6 and of 8

template <class T>
constexpr int64_t gradient_scratch() {  // values a thread
    return kDepth * (kColumns + kGroup) + kGroup * kWide * Vec<T>::kLanes;
}

// As many chains as links in one, about, for all rows of a sequence; long ones are quicker.
constexpr int64_t links_of_chain(int64_t rows) {
    int64_t links = 16;
    while (links < kProductChain && links * links < rows) links *= 2;
    return links;
}

// Gradients that share B: block i of rows r of A, at d[i] + r * stride, makes out[i].
template <class T>
struct OuterProducts {
    const T* d[kMaxProductSlots];
    T* out[kMaxProductSlots];
    const int64_t links;  // of a chain
    int count = 0;

    explicit OuterProducts(int64_t rows_of_sequence) : links(links_of_chain(rows_of_sequence)) {}

    void add(const T* from, T* to) {
        d[count] = from;
        out[count++] = to;
    }
};

// out[i][m, 0 .. columns), made anew or added to, for m in `range`; b: the addresses of B's rows
template <class T>
FASTRNN_NOINLINE void sum_outer_products(const OuterProducts<T>& products, int64_t stride, const T* const* b,
                                         int64_t rows, bool anew, Range range, int64_t columns, T* scratch) {
    constexpr int64_t kLanes = Vec<T>::kLanes, kPanel = kWide * kLanes, kInLine = 64 / sizeof(T);
    if (products.count == 0) return;
    for (int i = 0; i < products.count && rows == 0 && anew; ++i) {
        __builtin_memset(products.out[i] + range.begin * columns, 0,
                         sizeof(T) * static_cast<size_t>((range.end - range.begin) * columns));
    }
    T *packed_b = scratch, *packed_a = packed_b + kDepth * kColumns, *edge = packed_a + kDepth * kGroup;
    for (int64_t first_column = 0; first_column < columns; first_column += kColumns) {
        const int64_t width = columns - first_column < kColumns ? columns - first_column : kColumns;
        const int64_t blocks = (rows + kDepth - 1) / kDepth;
        for (int64_t block = 0; block < blocks; ++block) {
            const int64_t first = rows * block / blocks, depth = rows * (block + 1) / blocks - first;
            const bool adds = block > 0 || !anew;
            for (int64_t k = 0; k < depth; ++k) {
                const T* row = b[first + k] + first_column;
                for (int64_t n = 0; n < width; n += kPanel) {
                    const int vectors = wide_vectors<T>(width - n);
                    pack_row(row + n, width - n, vectors, packed_b + n * depth + k * vectors * kLanes);
                }
            }
            for (int i = 0; i < products.count; ++i) {
                for (int64_t m = range.begin; m < range.end; m += kGroup) {
                    const int64_t height = range.end - m < kGroup ? range.end - m : kGroup;
                    const T* source[kGroup];
                    T* c[kGroup];
                    for (int64_t r = 0; r < height; ++r) source[r] = packed_a + r;
                    const T* from = products.d[i] + first * stride + m;
                    for (int64_t k = 0; k < depth; ++k) {  // a row of d is padded to whole vectors
                        for (int64_t r = 0; r < height; r += kLanes) {
                            Vec<T>::load(from + k * stride + r).store(packed_a + k * kGroup + r);
                        }
                    }
                    for (int64_t n = 0; n < width; n += kPanel) {
                        const int64_t ahead = n + kPanel;
                        for (int64_t r = 0; adds && ahead < width && r < height; ++r) {
                            const T* next = products.out[i] + (m + r) * columns + first_column + ahead;
                            for (int64_t l = 0; l < min(kPanel, width - ahead); l += kInLine) {
                                __builtin_prefetch(next + l, 1, 3);
                            }
                        }
                        const int vectors = wide_vectors<T>(width - n);
                        const bool whole = n + vectors * kLanes <= width;
                        for (int64_t r = 0; r < height; ++r) {
                            T* target = products.out[i] + (m + r) * columns + first_column + n;
                            c[r] = whole ? target : edge + r * kPanel;
                            if (!whole && adds) pack_row(target, width - n, vectors, c[r]);
                        }
                        multiply_panel(vectors, source, height, {1, depth, 0, kGroup, products.links},
                                       packed_b + n * depth, c, kLanes, adds ? Init::accumulate : Init::zero,
                                       static_cast<const T*>(nullptr));
                        for (int64_t r = 0; !whole && r < height; ++r) {
                            __builtin_memcpy(products.out[i] + (m + r) * columns + first_column + n, c[r],
                                             sizeof(T) * static_cast<size_t>(width - n));
                        }
                    }
                }
            }
        }
    }
}

// out[m] = sum over rows of a[row, m], made anew or added to, for m in `range`
template <class T>
FASTRNN_NOINLINE void sum_rows(const T* a, int64_t a_stride, int64_t rows, bool anew, Range range, T* out) {
    using V = Vec<T>;
    constexpr int64_t kShortChain = 16;
    for (int64_t m = range.begin; m < range.end; m += V::kLanes) {
        const int64_t lanes = range.end - m < V::kLanes ? range.end - m : V::kLanes;
        V total = anew ? V{T(0)} : load_partial(out + m, lanes);
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
        store_partial(total, out + m, lanes);
    }
}

}  // namespace
}  // namespace fastrnn
