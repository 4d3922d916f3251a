// Weights in the form that each pass multiplies with: panels of packed columns (gemm-inl.h), or, for very few rows, as
// torch keeps them.
#pragma once

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

// Panels of the columns in `range` of B = w^T: w [columns, length]; `packed` is the first one's place.
template <class T>
FASTRNN_NOINLINE void pack_wide_transposed(const T* w, int64_t length, int64_t columns, T* packed, Range range) {
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

// A product's share of a forward pass's weights: w [G*H, length], of which the slots begin .. begin + count matter.
template <class T>
struct GateWeights {
    const T* w;
    T* packed;  // panels from unit `first` on, or null: w is read as it lies
    int64_t length;
    int begin, count;
    int64_t first = 0;
};

// A panel of gates' weights is one vector of units and all slots of a product, so that the gates of the same units come
// out side by side; a product with a single slot takes kWide vectors of units instead.
template <class T, class C>
class GatePanels {
    using V = Vec<T>;
    static constexpr int64_t kLanes = V::kLanes;

   public:
    static constexpr int64_t kTile = kLanes * (C::kRecurrentCount == 1 || C::kResetBefore ? kWide : 1);
    static constexpr Reduction along(int64_t length) { return {1, length, 0, 1}; }

    explicit GatePanels(int64_t hidden) : hidden_(hidden), hidden_padded_(padded_units(hidden)) {}

    void pack(const GateWeights<T>& g, Range units) const {
        if (!g.packed) return;
        if (g.count == 1) {
            const T* rows = g.w + C::gate_of_slot(g.begin) * hidden_ * g.length;
            return pack_wide_transposed(rows, g.length, hidden_, panel_of(g, units.begin), units);
        }
        for (int64_t u = units.begin; u < units.end; u += kLanes) {
            T* panel = panel_of(g, u);
            for (int i = 0; i < g.count; ++i) {
                const T* rows = g.w + (C::gate_of_slot(g.begin + i) * hidden_ + u) * g.length;
                pack_transposed(rows, g.length, hidden_ - u, g.length, panel + i * kLanes, g.count * kLanes);
            }
        }
    }

    // out[r] slots begin .. begin + count, units u .. u + kTile, (+)= a[r] w^T
    void multiply(const GateWeights<T>& g, const T* const* a, int64_t rows, int64_t u, T* const* out, Init init,
                  const T* bias) const {
        if (!g.packed) return multiply_as_it_lies(g, a, rows, u, out, init, bias);
        T* c[kRowBlock];
        if (g.count == 1) {
            for (int64_t r = 0; r < rows; ++r) c[r] = out[r] + g.begin * hidden_padded_ + u;
            return multiply_panel(wide_vectors<T>(hidden_ - u), a, rows, along(g.length), panel_of(g, u), c, kLanes,
                                  init, bias + g.begin * hidden_padded_ + u);
        }
        for (int64_t v = u; v < u + kTile && v < hidden_; v += kLanes) {
            for (int64_t r = 0; r < rows; ++r) c[r] = out[r] + g.begin * hidden_padded_ + v;
            multiply_panel(g.count, a, rows, along(g.length), panel_of(g, v), c, hidden_padded_, init,
                           bias + g.begin * hidden_padded_ + v);
        }
    }

   private:
    static T* panel_of(const GateWeights<T>& g, int64_t u) { return g.packed + (u - g.first) * g.length * g.count; }

    void multiply_as_it_lies(const GateWeights<T>& g, const T* const* a, int64_t rows, int64_t u, T* const* out,
                             Init init, const T* bias) const {
        for (int64_t v = u; v < u + kTile && v < hidden_; v += kLanes) {
            for (int slot = g.begin; slot < g.begin + g.count; ++slot) {
                const T* w_rows = g.w + (C::gate_of_slot(slot) * hidden_ + v) * g.length;
                for (int64_t r = 0; r < rows; ++r) {
                    T* c = out[r] + slot * hidden_padded_ + v;
                    const T* start = init == Init::bias ? bias + slot * hidden_padded_ + v : c;
                    (V::load(start) + multiply_unpacked(a[r], w_rows, g.length, hidden_ - v, g.length)).store(c);
                }
            }
        }
    }

    const int64_t hidden_, hidden_padded_;
};

}  // namespace
}  // namespace fastrnn
