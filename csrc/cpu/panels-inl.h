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
int wide_vectors(int64_t columns, int wide = kWide) {
    const int64_t vectors = (columns + Vec<T>::kLanes - 1) / Vec<T>::kLanes;
    return static_cast<int>(vectors < wide ? vectors : wide);
}

// Panels, `wide` vectors each, of the columns in `range` of B = w^T, w [columns, length]; `packed` is the first one's
// place.
template <class T, class W>
FASTRNN_NOINLINE void pack_wide_transposed(const W* w, int64_t length, int64_t columns, T* packed, Range range,
                                           int wide) {
    constexpr int64_t kLanes = Vec<T>::kLanes;
    for (int64_t u = range.begin; u < range.end; u += kLanes * wide) {
        const int vectors = wide_vectors<T>(columns - u, wide);
        for (int v = 0; v < vectors; ++v) {
            const int64_t column = u + v * kLanes;
            pack_transposed(w + column * length, length, columns - column, length,
                            packed + (u - range.begin) * length + v * kLanes, vectors * kLanes);
        }
    }
}

// One panel of the columns from w on, `left` of them or fewer: [rows][vectors][lanes].
template <class T>
FASTRNN_NOINLINE void pack_rows(const T* w, int64_t row_stride, int64_t rows, int64_t left, T* packed) {
    constexpr int64_t kLanes = Vec<T>::kLanes;
    if (left < kWide * kLanes) {
        const int vectors = wide_vectors<T>(left);
        for (int64_t k = 0; k < rows; ++k) pack_row(w + k * row_stride, left, vectors, packed + k * vectors * kLanes);
        return;
    }
    for (int64_t k = 0; k < rows; ++k, w += row_stride, packed += kWide * kLanes) {
        for (int v = 0; v < kWide; ++v) Vec<T>::load(w + v * kLanes).store(packed + v * kLanes);
    }
}

// Rows `first` .. of the panels of the columns in `range` of B = w: w [rows, columns], the panels `length` rows high.
template <class T>
FASTRNN_NOINLINE void pack_wide(const T* w, int64_t rows, int64_t columns, int64_t first, int64_t length, T* packed,
                                Range range) {
    constexpr int64_t kLanes = Vec<T>::kLanes;
    for (int64_t n = range.begin; n < range.end; n += kLanes * kWide) {
        const int vectors = wide_vectors<T>(columns - n);
        pack_rows(w + n, columns, rows, columns - n, packed + n * length + first * vectors * kLanes);
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

// so few rows read the panels of a matrix where they lie
constexpr int64_t kFewRows = 8;

// multiply_wide with B as it lies, for one use of it: segment s of the reduction meets the rows from w[s] on, `width`
// long. A panel is packed a chain at a time, in `near` [chain, kWide vectors].
template <class T, class RowAt>
void multiply_lying(const T* a, int64_t a_stride, int64_t rows, const Reduction& reduction, const T* const* w,
                    Range range, int64_t width, const RowAt& c, Init init, T* edge, T* near) {
    constexpr int64_t kLanes = Vec<T>::kLanes, kPanel = kLanes * kWide;
    const T* a_row[kRowBlock];
    T* target[kRowBlock];
    for (int64_t n = range.begin; n < range.end; n += kPanel) {
        const int vectors = wide_vectors<T>(width - n);
        const bool whole = n + kPanel <= width, direct = !edge || whole;
        for (int64_t s = 0; s < reduction.segments; ++s) {
            for (int64_t k = 0; k < reduction.length || (s == 0 && k == 0); k += reduction.chain) {
                const int64_t left = reduction.length - k;
                Reduction part{1, left < reduction.chain ? left : reduction.chain, 0, 1};
                const T *const from = w[s] + k * width + n, *panel = near;
                if (whole && rows <= kFewRows) {
                    part.row_step = width;
                    panel = from;
                } else {
                    pack_rows(from, width, part.length, width - n, near);
                }
                const Init now = s == 0 && k == 0 ? init : Init::accumulate;
                for (int64_t first = 0; first < rows; first += kRowBlock) {
                    const int64_t count = rows - first < kRowBlock ? rows - first : kRowBlock;
                    for (int64_t r = 0; r < count; ++r) {
                        a_row[r] = a + (first + r) * a_stride + s * reduction.segment_stride + k;
                        target[r] = direct ? c(first + r) + n : edge + r * kPanel;
                        if (!direct && now == Init::accumulate) {
                            pack_row(c(first + r) + n, width - n, vectors, target[r]);
                        }
                    }
                    multiply_panel(vectors, a_row, count, part, panel, target, kLanes, now,
                                   static_cast<const T*>(nullptr));
                    for (int64_t r = 0; !direct && r < count; ++r) {
                        __builtin_memcpy(c(first + r) + n, target[r], sizeof(T) * static_cast<size_t>(width - n));
                    }
                }
            }
        }
    }
}

// with panels of B, or with B as it lies where there are none
template <class T, class RowAt>
void multiply_by_weights(const T* a, int64_t a_stride, int64_t rows, const Reduction& reduction, const T* packed,
                         const T* const* w, Range range, int64_t width, const RowAt& c, Init init, T* edge, T* near) {
    packed ? multiply_wide(a, a_stride, rows, reduction, packed, range, width, c, init, edge)
           : multiply_lying(a, a_stride, rows, reduction, w, range, width, c, init, edge, near);
}

// panels over the columns of matrices, `rows` rows for each of `segments`
template <class T>
void pack_segments(const T* const* w, int64_t segments, int64_t rows, int64_t columns, T* packed, Range range) {
    for (int64_t i = 0; i < segments; ++i) {
        pack_wide(w[i], rows, columns, i * rows, segments * rows, packed, range);
    }
}

}  // namespace
}  // namespace fastrnn
