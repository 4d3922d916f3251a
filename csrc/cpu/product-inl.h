// The product of a step, or of x: rows of activations times the weights of some slots, added to the slots of one tile
// of units after another. How weights are stored, and whether they are packed, is a ProductForm, chosen once a call.
#pragma once

#include "bfloat16.h"
#include "int8-inl.h"
#include "lanes-inl.h"

namespace fastrnn {
namespace {

template <class T>
struct ProductForm;

// One product: the rows of w that belong to the slots in `slots`.
template <class T>
struct Product {
    const ProductForm<T>* form;  // null: there is no product
    const void* w;               // [gates * units, length] as it is stored
    const float* scales;         // [gates * units], int8 only
    int64_t gates, units, length;
    SlotRange slots;
    const int* gate_of_slot;
    int64_t padded;  // from slot to slot of what it adds to
    int wide;        // vectors of units that one slot is multiplied by at once
    T* packed;       // from unit `first` on, where the form packs
    int64_t first;
    const Bfloat16Unit* unit;  // of the forms that need it
};

template <class T>
struct ProductForm {
    // values that the weights of a unit take when they are packed; 0: they are read as they lie
    int64_t (*packed_size)(const Product<T>&);
    // packs the weights of `units`, which begin with a tile
    void (*pack)(const Product<T>&, Range units);
    // Values of a row in the form that multiply takes, and up to kRowBlock rows brought to it, `stride` values apart,
    // of which a last, partial vector of rows takes as many as a whole one. Null: rows are taken as they are.
    int64_t (*prepared_size)(int64_t length);
    void (*prepare)(const Product<T>&, const T* const* rows, int64_t count, T* out, int64_t stride);
    // out[r] slots, `units` of them, = (bias, 0 or what is there) + a[r] w^T; units begin with a tile, and meet the
    // same `length` values of a row
    void (*multiply)(const Product<T>&, const T* const* a, int64_t rows, Range units, T* const* out, Init init,
                     const T* bias);
};

template <class T>
constexpr Reduction along(int64_t length) {
    return {1, length, 0, 1};
}

// units of a tile, all of one head: one vector with all of its slots side by side, or several vectors where a product
// has one slot
template <class T>
int64_t tile_units(const CellTraits& cell, const Heads& heads) {
    bool wide = cell.input.count <= 1;
    for (int s = 0; s < cell.stages; ++s) wide |= cell.recurrent[s].count <= 1;
    int64_t tile = Vec<T>::kLanes * (wide ? kWide : 1);
    while (heads.count > 1 && heads.units % tile) tile /= 2;
    return tile;
}

// -- packed panels; W is what the weights are stored as ---------------------------------------------------------------

// A panel is one vector of units and all slots, so that the gates of the same units come out side by side; with a
// single slot it is several vectors of units.
template <class T, class W>
struct Panels {
    static constexpr int64_t kLanes = Vec<T>::kLanes;

    static const W* rows_of(const Product<T>& p, int slot, int64_t unit) {
        return static_cast<const W*>(p.w) + (p.gate_of_slot[slot] * p.units + unit) * p.length;
    }
    static T* panel_of(const Product<T>& p, int64_t u) { return p.packed + (u - p.first) * p.length * p.slots.count; }

    static int64_t packed_size(const Product<T>& p) { return p.length * p.slots.count; }

    static void pack(const Product<T>& p, Range units) {
        if (p.slots.count == 1) {
            return pack_wide_transposed(rows_of(p, p.slots.begin, 0), p.length, p.units, panel_of(p, units.begin),
                                        units, p.wide);
        }
        for (int64_t u = units.begin; u < units.end; u += kLanes) {
            for (int i = 0; i < p.slots.count; ++i) {
                pack_transposed(rows_of(p, p.slots.begin + i, u), p.length, p.units - u, p.length,
                                panel_of(p, u) + i * kLanes, p.slots.count * kLanes);
            }
        }
    }

    static void multiply(const Product<T>& p, const T* const* a, int64_t rows, Range units, T* const* out, Init init,
                         const T* bias) {
        const bool single = p.slots.count == 1;
        T* c[kRowBlock];
        for (int64_t v = units.begin; v < units.end; v += kLanes * (single ? p.wide : 1)) {
            const int64_t at = p.slots.begin * p.padded + v;
            for (int64_t r = 0; r < rows; ++r) c[r] = out[r] + at;
            multiply_panel(single ? wide_vectors<T>(p.units - v, p.wide) : p.slots.count, a, rows, along<T>(p.length),
                           panel_of(p, v), c, single ? kLanes : p.padded, init,
                           init == Init::bias ? bias + at : nullptr);
        }
    }

    static constexpr ProductForm<T> form() { return {packed_size, pack, nullptr, nullptr, multiply}; }
};

// -- weights as they lie ----------------------------------------------------------------------------------------------

template <class T>
int64_t not_packed(const Product<T>&) {
    return 0;
}

template <class T, class W>
struct AsItLies {
    using V = Vec<T>;
    static constexpr int64_t kLanes = V::kLanes;

    static void multiply(const Product<T>& p, const T* const* a, int64_t rows, Range units, T* const* out, Init init,
                         const T* bias) {
        for (int64_t v = units.begin; v < units.end; v += kLanes) {
            for (int slot = p.slots.begin; slot < p.slots.end(); ++slot) {
                // the next rows lie elsewhere: waiting for their first lines cost 10 to 20 per cent
                const bool last = slot + 1 == p.slots.end();
                const W* next = Panels<T, W>::rows_of(p, last ? p.slots.begin : slot + 1, v + (last ? kLanes : 0));
                for (int64_t l = 0; l < kLanes; ++l) __builtin_prefetch(next + l * p.length, 0, 3);
                const W* w = Panels<T, W>::rows_of(p, slot, v);
                for (int64_t r = 0; r < rows; ++r) {
                    T* c = out[r] + slot * p.padded + v;
                    const T* start = init == Init::bias ? bias + slot * p.padded + v : c;
                    (V::load(start) + multiply_unpacked(a[r], w, p.length, p.units - v, p.length)).store(c);
                }
            }
        }
    }
};

// -- weights as they lie, rows in lanes -------------------------------------------------------------------------------

template <class T>
struct Lanes {
    static constexpr int64_t kLanes = Vec<T>::kLanes;

    static int64_t prepared_size(int64_t length) { return length; }
    static void prepare(const Product<T>& p, const T* const* rows, int64_t count, T* out, int64_t) {
        put_in_lanes(rows, count, p.length, out);
    }

    // a: of a block that is prepared as a whole, from a[0] on
    static void multiply(const Product<T>& p, const T* const* a, int64_t rows, Range units, T* const* out, Init init,
                         const T* bias) {
        T* c[kRowBlock];
        for (int64_t v = units.begin; v < units.end; v += kLanes) {
            for (int slot = p.slots.begin; slot < p.slots.end(); ++slot) {
                const bool last = slot + 1 == p.slots.end();
                const T* const next =
                    Panels<T, T>::rows_of(p, last ? p.slots.begin : slot + 1, v + (last ? kLanes : 0));
                const int64_t at = slot * p.padded + v;
                for (int64_t r = 0; r < rows; ++r) c[r] = out[r] + at;
                multiply_in_lanes(Panels<T, T>::rows_of(p, slot, v), p.length, p.units - v, next, a[0], rows, c, init,
                                  init == Init::bias ? bias + at : nullptr);
            }
        }
    }

    static constexpr ProductForm<T> form() { return {not_packed<T>, nullptr, prepared_size, prepare, multiply}; }
};

// -- rows that are prepared one by one --------------------------------------------------------------------------------

template <class T, void (*Prepare)(const T* row, int64_t length, T* out)>
void prepare_each(const Product<T>& p, const T* const* rows, int64_t count, T* out, int64_t stride) {
    for (int64_t r = 0; r < count; ++r) Prepare(rows[r], p.length, out + r * stride);
}

// -- int8 -------------------------------------------------------------------------------------------------------------

struct Int8Product {
    static constexpr int64_t kLanes = Vec<float>::kLanes;

    static void multiply(const Product<float>& p, const float* const* a, int64_t rows, Range units, float* const* out,
                         Init init, const float* bias) {
        const Int8Matrix w{static_cast<const int8_t*>(p.w), p.scales, p.length, p.gates, p.units};
        const bool single = p.slots.count == 1;
        float* c[kRowBlock];
        for (int64_t v = units.begin; v < units.end; v += kLanes * (single ? p.wide : 1)) {
            Int8Panel panel{};
            panel.vectors = single ? wide_vectors<float>(p.units - v, p.wide) : p.slots.count;
            for (int i = 0; i < panel.vectors; ++i) {
                const int64_t unit = single ? v + i * kLanes : v;
                const int64_t gate = p.gate_of_slot[p.slots.begin + (single ? 0 : i)];
                panel.weights[i] = w.at(gate, unit);
                panel.scales[i] = w.scales + gate * p.units + unit;
                panel.lanes[i] = p.units - unit < kLanes ? p.units - unit : kLanes;
            }
            const int64_t at = p.slots.begin * p.padded + v;
            for (int64_t r = 0; r < rows; ++r) c[r] = out[r] + at;
            multiply_int8(a, rows, panel, w, c, single ? kLanes : p.padded, init,
                          init == Init::bias ? bias + at : nullptr);
        }
    }

    static int64_t prepared_size(int64_t length) {
        return RoundedRow::bytes(length) / static_cast<int64_t>(sizeof(float));
    }
};

}  // namespace
}  // namespace fastrnn
