// Weights in the form that each pass multiplies with: panels of packed columns (gemm-inl.h), or, for very few rows, as
// torch keeps them.
#pragma once

#include "int8-inl.h"
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

// Panels of the columns in `range` of B = w^T: `columns` rows of w from `first` on; `packed` is the first one's place.
template <class T>
FASTRNN_NOINLINE void pack_wide_transposed(const Matrix<T>& w, int64_t first, int64_t columns, T* packed, Range range) {
    constexpr int64_t kLanes = Vec<T>::kLanes;
    for (int64_t u = range.begin; u < range.end; u += kLanes * kWide) {
        const int vectors = wide_vectors<T>(columns - u);
        for (int v = 0; v < vectors; ++v) {
            const int64_t column = u + v * kLanes;
            w.visit(first + column, [&](const auto* rows) {
                pack_transposed(rows, w.length, columns - column, w.length,
                                packed + (u - range.begin) * w.length + v * kLanes, vectors * kLanes);
            });
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
    Matrix<T> w;
    const float* scales;  // int8 only
    T* packed;            // panels from unit `first` on, or null: w is read as it lies
    int begin, count;
    int64_t first = 0;

    // weights of fewer bits that are read as they lie meet rows of a in a form of their own
    bool prepares() const { return !packed && w.format != WeightFormat::plain; }
    void prepare(const T* row, T* out) const {
        if constexpr (sizeof(T) == sizeof(float)) {
            w.format == WeightFormat::int8 ? round_row(row, w.length, out) : split_row(row, w.length, out);
        }
    }
};

// [kSlots, Hp]: what is added to a cell's slots besides the products, for the units in `units`
template <class T, class C>
void sum_biases(const Weights& w, int64_t hidden, T* bias, Range units) {
    const T *b_ih = static_cast<const T*>(w.b_ih), *b_hh = static_cast<const T*>(w.b_hh);
    const int64_t hidden_padded = padded_units(hidden);
    for (int slot = 0; slot < C::kSlots; ++slot) {
        const bool from_x = slot >= C::kInputBegin && slot < C::kInputBegin + C::kInputCount;
        const bool from_h =
            C::kResetBefore || (slot >= C::kRecurrentBegin && slot < C::kRecurrentBegin + C::kRecurrentCount);
        const int64_t at = C::gate_of_slot(slot) * hidden;
        T* out = bias + slot * hidden_padded;
        for (int64_t u = units.begin; u < units.end; ++u) {
            out[u] = b_ih ? (from_x ? b_ih[at + u] : T(0)) + (from_h ? b_hh[at + u] : T(0)) : T(0);
        }
        if (units.begin < units.end && units.end == hidden) {
            for (int64_t u = units.end; u < hidden_padded; ++u) out[u] = T(0);
        }
    }
}

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
            return pack_wide_transposed(g.w, C::gate_of_slot(g.begin) * hidden_, hidden_, panel_of(g, units.begin),
                                        units);
        }
        for (int64_t u = units.begin; u < units.end; u += kLanes) {
            T* panel = panel_of(g, u);
            for (int i = 0; i < g.count; ++i) {
                g.w.visit(C::gate_of_slot(g.begin + i) * hidden_ + u, [&](const auto* rows) {
                    pack_transposed(rows, g.w.length, hidden_ - u, g.w.length, panel + i * kLanes, g.count * kLanes);
                });
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
            return multiply_panel(wide_vectors<T>(hidden_ - u), a, rows, along(g.w.length), panel_of(g, u), c, kLanes,
                                  init, bias + g.begin * hidden_padded_ + u);
        }
        for (int64_t v = u; v < u + kTile && v < hidden_; v += kLanes) {
            for (int64_t r = 0; r < rows; ++r) c[r] = out[r] + g.begin * hidden_padded_ + v;
            multiply_panel(g.count, a, rows, along(g.w.length), panel_of(g, v), c, hidden_padded_, init,
                           bias + g.begin * hidden_padded_ + v);
        }
    }

   private:
    static T* panel_of(const GateWeights<T>& g, int64_t u) { return g.packed + (u - g.first) * g.w.length * g.count; }

    void multiply_as_it_lies(const GateWeights<T>& g, const T* const* a, int64_t rows, int64_t u, T* const* out,
                             Init init, const T* bias) const {
        if constexpr (sizeof(T) == sizeof(float)) {
            if (g.w.format == WeightFormat::int8) return multiply_int8_gates(g, a, rows, u, out, init, bias);
        }
        for (int64_t v = u; v < u + kTile && v < hidden_; v += kLanes) {
            for (int slot = g.begin; slot < g.begin + g.count; ++slot) {
                // the next rows lie elsewhere: waiting for their first lines cost 10 to 20 per cent
                const bool last = slot + 1 == g.begin + g.count;
                g.w.visit(C::gate_of_slot(last ? g.begin : slot + 1) * hidden_ + v + (last ? kLanes : 0),
                          [&](const auto* next) {
                              for (int64_t l = 0; l < kLanes; ++l) __builtin_prefetch(next + l * g.w.length, 0, 3);
                          });
                g.w.visit(C::gate_of_slot(slot) * hidden_ + v, [&](const auto* w_rows) {
                    for (int64_t r = 0; r < rows; ++r) {
                        T* c = out[r] + slot * hidden_padded_ + v;
                        const T* start = init == Init::bias ? bias + slot * hidden_padded_ + v : c;
                        (V::load(start) + multiply_unpacked(a[r], w_rows, g.w.length, hidden_ - v, g.w.length))
                            .store(c);
                    }
                });
            }
        }
    }

    void multiply_int8_gates(const GateWeights<T>& g, const T* const* a, int64_t rows, int64_t u, T* const* out,
                             Init init, const T* bias) const {
        const Int8Matrix w{static_cast<const int8_t*>(g.w.data), g.scales, g.w.length, C::kGates, hidden_};
        T* c[kRowBlock];
        for (int64_t v = u; v < u + kTile && v < hidden_; v += g.count == 1 ? kTile : kLanes) {
            Int8Panel panel{};
            panel.vectors = g.count == 1 ? wide_vectors<T>(hidden_ - v) : g.count;
            for (int i = 0; i < panel.vectors; ++i) {
                const int64_t unit = g.count == 1 ? v + i * kLanes : v;
                const int64_t gate = C::gate_of_slot(g.count == 1 ? g.begin : g.begin + i);
                panel.weights[i] = w.at(gate, unit);
                panel.scales[i] = w.scales + gate * hidden_ + unit;
                panel.lanes[i] = hidden_ - unit < kLanes ? hidden_ - unit : kLanes;
            }
            for (int64_t r = 0; r < rows; ++r) c[r] = out[r] + g.begin * hidden_padded_ + v;
            multiply_int8(a, rows, panel, w, c, g.count == 1 ? kLanes : hidden_padded_, init,
                          bias + g.begin * hidden_padded_ + v);
        }
    }

    const int64_t hidden_, hidden_padded_;
};

}  // namespace
}  // namespace fastrnn
