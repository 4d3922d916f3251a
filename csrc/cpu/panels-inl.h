// Panels of packed columns (gemm-inl.h), several vectors wide, and the product of whole matrices with them.
#pragma once

#include "gemm-inl.h"
#include "plan-inl.h"

namespace fastrnn {
namespace {

constexpr int64_t kRowBlock = 96;  // rows that meet a panel while it is near
constexpr int kWide = 4;           // vectors in a panel of plain columns

// vectors that the panel beginning at a column has, when `columns` are left
template <class T>
int wide_vectors(int64_t columns) {
    const int64_t vectors = (columns + Vec<T>::kLanes - 1) / Vec<T>::kLanes;
    return static_cast<int>(vectors < kWide ? vectors : kWide);
}

// Panels of the columns in `range` of B = w^T, w [columns, length]; `packed` is the first one's place.
template <class T, class W>
FASTRNN_NOINLINE void pack_wide_transposed(const W* w, int64_t length, int64_t columns, T* packed, Range range) {
    constexpr int64_t kLanes = Vec<T>::kLanes;
    for (int64_t u = range.begin; u < range.end; u += kLanes * kWide) {
        const int vectors = wide_vectors<T>(columns - u);
        for (int v = 0; v < vectors; ++v) {
            const int64_t column = u + v * kLanes;
            pack_transposed(w + column * length, length, columns - column, length,
                            packed + (u - range.begin) * length + v * kLanes, vectors * kLanes);
        }
    }
}

// Rows `first` .. of the panels of the columns in `range` of B = w: w [rows, columns], the panels `length` rows high.
template <class T>
FASTRNN_NOINLINE void pack_wide(const T* w, int64_t rows, int64_t columns, int64_t first, int64_t length, T* packed,
                                Range range) {
    constexpr int64_t kLanes = Vec<T>::kLanes;
    for (int64_t n = range.begin; n < range.end; n += kLanes * kWide) {
        const int vectors = wide_vectors<T>(columns - n);
        T* out = packed + n * length + first * vectors * kLanes;
        for (int64_t k = 0; k < rows; ++k, out += vectors * kLanes)
            pack_row(w + k * columns + n, columns - n, vectors, out);
    }
}

// c[r][range] (+)= a[r * a_stride ..] B for `rows` rows; B's panels are `packed`, its `width` columns may end within a
// vector. With `edge` [kRowBlock, kWide vectors] nothing is written beyond them; without, rows of c are padded.
template <class T, class RowAt>
void multiply_wide(const T* a, int64_t a_stride, int64_t rows, const Reduction& reduction, const T* packed, Range range,
                   int64_t width, const RowAt& c, Init init, T* edge) {
    constexpr int64_t kLanes = Vec<T>::kLanes, kPanel = kLanes * kWide;
    const int64_t length = reduction.segments * reduction.length;
    const T* a_row[kRowBlock];
    T *c_row[kRowBlock], *target[kRowBlock];
    for (int64_t first = 0; first < rows; first += kRowBlock) {
        const int64_t count = rows - first < kRowBlock ? rows - first : kRowBlock;
        for (int64_t r = 0; r < count; ++r) a_row[r] = a + (first + r) * a_stride;
        for (int64_t r = 0; r < count; ++r) c_row[r] = c(first + r);
        for (int64_t n = range.begin; n < range.end; n += kPanel) {
            const bool whole = !edge || n + kPanel <= width;
            for (int64_t r = 0; r < count; ++r) target[r] = whole ? c_row[r] + n : edge + r * kPanel;
            multiply_panel(wide_vectors<T>(width - n), a_row, count, reduction, packed + n * length, target, kLanes,
                           init, static_cast<const T*>(nullptr));
            for (int64_t r = 0; !whole && r < count; ++r) {
                __builtin_memcpy(c_row[r] + n, target[r], sizeof(T) * static_cast<size_t>(width - n));
            }
        }
    }
}

}  // namespace
}  // namespace fastrnn
