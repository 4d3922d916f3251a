// Where the engine and a cell meet: a stage's arithmetic on a block of rows and some of their units, behind one pointer
// to a function. An engine's loop is compiled once for all cells.
//
// Rows are given by their addresses. Those of h and c before a step, of y, d_y and operands end at the last unit; all
// others are padded to padded_units.
#pragma once

#include "../cells/all.h"
#include "../cells/rows.h"
#include "math-inl.h"
#include "panels-inl.h"
#include "team.h"

namespace fastrnn {
namespace {

template <class T>
struct ForwardTile {
    int64_t rows, begin, end;                // units begin .. end of each row
    int64_t hidden, padded;                  // units that there are, and from slot to slot
    T* const* slots;                         // [slots][padded] of a row
    const T* const* h;                       // before the step; null where the cell does not read it
    const T* (*c)[kRowBlock];                // of each memory, before the step; of a cell that has c
    T* (*c_next)[kRowBlock];                 // may be c
    T* const* out;                           // what the stage hands on
    T* const* y;                             // where it goes too, or null
    bool keeps;                              // the values that the backward pass needs, in the place of the slots
    const T* const* operands[kMaxOperands];  // each null where there is none
    const T *b_ih, *b_hh;                    // [G*H], or null; of a cell of whole rows, whose slots lack them
    Functions functions;
};

template <class T>
struct BackwardTile {
    int64_t rows, begin, end, hidden, padded;
    const T* const* saved;     // [saved][padded] of a row
    const T* const* h;         // before the step; null where the cell does not read it
    const T* (*c)[kRowBlock];  // before the step
    const T* const* y;         // h'
    const T* const* d_out;     // of what the stage handed on; of h' what came back through time
    const T* const* d_y;       // to be added to it, or null
    T* const* d_h;         // on its way around the products: made by the last stage, added to by others; null with h
    T* (*d_c)[kRowBlock];  // of c' on entry, of c on return
    T* const* d_values;    // [gradients()][padded] of a row
    T* const* handed_on;   // what the stage handed on, again, or null
    const T* const* operands[kMaxOperands];  // each null where there is none
    const T *b_ih, *b_hh;                    // as in ForwardTile
    Functions functions;
};

// The rows of a chunk of a cell of whole rows, for the gradients of the biases and the operands.
template <class T>
struct SumTile {
    int64_t rows;
    Range units;
    int64_t hidden, padded;
    const T* saved;     // [rows][saved][padded]
    const T* d_values;  // [rows][gradients()][padded]
    bool anew;          // else added to what is there
    bool zones_c;       // there is an operand that zones out c
    // each null where it is not wanted
    T *d_b_ih, *d_b_hh;  // [G*H]
    T* d_operands[kMaxOperands];
};

template <class T>
using ForwardFunction = void (*)(const ForwardTile<T>&);
template <class T>
using BackwardFunction = void (*)(const BackwardTile<T>&);
template <class T>
using SumFunction = void (*)(const SumTile<T>&);

// kLanes units of a row that ends at `hidden`
template <class T>
FASTRNN_INLINE Vec<T> load_units(const T* row, int64_t u, int64_t hidden) {
    return u + Vec<T>::kLanes <= hidden ? Vec<T>::load(row + u) : load_partial(row + u, hidden - u);
}
template <class T>
FASTRNN_INLINE void store_units(Vec<T> v, T* row, int64_t u, int64_t hidden) {
    u + Vec<T>::kLanes <= hidden ? v.store(row + u) : store_partial(v, row + u, hidden - u);
}

// what the cell is given beside its slots: its functions, its biases, and the rows first .. first + count of its
// operands at time t, whose addresses `rows` takes
template <class T, size_t kRows, class Tile>
void fill_operands(const Weights& weights, Functions functions, int operands, const Steps& steps, int64_t t,
                   int64_t first, int64_t count, const T* (*rows)[kRows], Tile& tile) {
    for (int i = 0; i < operands; ++i) {
        const Operand& operand = weights.operands[i];
        tile.operands[i] = operand.data ? rows[i] : nullptr;
        if (!operand.data) continue;
        const T* const from = static_cast<const T*>(operand.data) + t * operand.stride_time;
        for (int64_t r = 0; r < count; ++r) rows[i][r] = from + steps.row_of(first + r) * operand.stride_batch;
    }
    tile.functions = functions;
    tile.b_ih = static_cast<const T*>(weights.b_ih);
    tile.b_hh = static_cast<const T*>(weights.b_hh);
}

// bit i: operand i is there
template <int kOperands, class Tile>
FASTRNN_INLINE unsigned given_operands(const Tile& tile) {
    unsigned given = 0;
    for (int i = 0; i < kOperands; ++i) given |= tile.operands[i] ? 1u << i : 0u;
    return given;
}

// what zones out a state of row r, or null
template <class T, int kOperand, class Tile>
FASTRNN_INLINE const T* zone_row([[maybe_unused]] const Tile& tile, [[maybe_unused]] int64_t r) {
    if constexpr (kOperand >= 0) {
        if (tile.operands[kOperand]) return tile.operands[kOperand][r];
    }
    return nullptr;
}

constexpr int memories_of(const CellTraits& cell) { return cell.c_saved >= 0 ? cell.memories : 0; }

// Where the memories of row r lie, in `to`: side by side in `row`, `apart` from each other.
template <class Row>
void place_memories(Row* row, int64_t apart, int memories, int64_t r, Row* (*to)[kRowBlock]) {
    for (int m = 0; m < memories; ++m) to[m][r] = row + m * apart;
}

template <class C, int Stage>
constexpr bool kIsLast = Stage + 1 == C::traits().stages;

template <class T, class C, int Stage>
FASTRNN_NOINLINE void forward_tile(const ForwardTile<T>& tile) {
    using V = Vec<T>;
    constexpr CellTraits k = C::traits();
    constexpr bool kLast = kIsLast<C, Stage>;
    constexpr SlotRange kKept = kLast ? SlotRange{0, k.saved} : k.recurrent[Stage];
    constexpr int kZoneH = kLast ? k.zone_h : -1, kZoneC = kLast ? k.zone_c : -1;
    const int64_t begin = tile.begin, end = tile.end, padded = tile.padded, hidden = tile.hidden;
    const bool keeps = !kLast || (k.saved > 0 && tile.keeps);
    const unsigned given = given_operands<k.operands>(tile);
    for (int64_t r = 0; r < tile.rows; ++r) {
        T* const slots = tile.slots[r];
        T* const out = tile.out[r];
        T* const y = kLast && tile.y ? tile.y[r] : nullptr;
        const T* const h = k.reads_h || (kZoneH >= 0 && tile.h) ? tile.h[r] : nullptr;
        const T *const zone_h = zone_row<T, kZoneH>(tile, r), *const zone_c = zone_row<T, kZoneC>(tile, r);
        const T* c[kMaxMemories] = {};
        T* c_next[kMaxMemories] = {};
        for (int m = 0; m < memories_of(k); ++m) {
            c[m] = tile.c[m][r];
            c_next[m] = tile.c_next[m][r];
        }
        for (int64_t u = begin; u < end; u += V::kLanes) {
            V values[k.stored()], operands[kMaxOperands];
            for (int i = 0; i < k.slots; ++i) values[i] = V::load(slots + i * padded + u);
            for (int i = 0; i < k.operands; ++i) {
                operands[i] = given >> i & 1 ? load_units(tile.operands[i][r], u, hidden) : V{T(0)};
            }
            ForwardUnit<V> unit{values, V{T(0)}, V{T(0)}, V{T(0)}, operands, tile.functions, given};
            if constexpr (k.reads_h) unit.h = load_units(h, u, hidden);
            V others[kMaxMemories - 1];
            if constexpr (k.c_saved >= 0) unit.c = load_units(c[0], u, hidden);
            for (int m = 1; m < k.memories; ++m) others[m - 1] = load_units(c[m], u, hidden);
            unit.others = others;
            [[maybe_unused]] const V c_before = unit.c;
            C::template forward<Stage>(unit);
            if (zone_h) unit.out = zone_out(unit.out, load_units(h, u, hidden), load_units(zone_h, u, hidden));
            if constexpr (kZoneC >= 0) {
                if (zone_c) values[k.c_saved] = unit.c = zone_out(unit.c, c_before, load_units(zone_c, u, hidden));
            }
            if constexpr (kLast && k.c_saved >= 0) unit.c.store(c_next[0] + u);
            for (int m = 1; kLast && m < k.memories; ++m) others[m - 1].store(c_next[m] + u);
            for (int i = kKept.begin; keeps && i < kKept.end(); ++i) values[i].store(slots + i * padded + u);
            unit.out.store(out + u);
            if (y) store_units(unit.out, y, u, hidden);
        }
    }
}

template <class T, class C, int Stage>
FASTRNN_NOINLINE void backward_tile(const BackwardTile<T>& tile) {
    using V = Vec<T>;
    constexpr CellTraits k = C::traits();
    constexpr bool kLast = kIsLast<C, Stage>;
    constexpr int kZoneH = kLast ? k.zone_h : -1, kZoneC = kLast ? k.zone_c : -1;
    const int64_t padded = tile.padded, hidden = tile.hidden;
    const unsigned given = given_operands<k.operands>(tile);
    const int gradients = k.slots + (k.learned && given & 1 ? k.learned : 0);
    for (int64_t r = 0; r < tile.rows; ++r) {
        T* const d_values = tile.d_values[r];
        const T *const zone_h = zone_row<T, kZoneH>(tile, r), *const zone_c = zone_row<T, kZoneC>(tile, r);
        for (int64_t u = tile.begin; u < tile.end; u += V::kLanes) {
            V saved[k.saved > 0 ? k.saved : 1], values[k.gradients()], operands[kMaxOperands];
            const V zero{T(0)};
            for (int i = 0; i < k.saved; ++i) saved[i] = V::load(tile.saved[r] + i * padded + u);
            for (int i = 0; i < k.operands; ++i) {
                operands[i] = given >> i & 1 ? load_units(tile.operands[i][r], u, hidden) : V{T(0)};
            }
            for (int i = 0; i < gradients; ++i) values[i] = kLast ? zero : V::load(d_values + i * padded + u);
            BackwardUnit<V> unit{saved,          zero, zero, zero,   V::load(tile.d_out[r] + u),
                                 operands,       zero, zero, values, values + k.slots,
                                 tile.functions, given};
            if (kLast && tile.d_y) unit.d_out = unit.d_out + load_units(tile.d_y[r], u, hidden);
            if constexpr (k.reads_h) unit.h = load_units(tile.h[r], u, hidden);
            if constexpr (k.saved == 0) unit.h_next = load_units(tile.y[r], u, hidden);
            if constexpr (k.c_saved >= 0) {
                unit.c = load_units(tile.c[0][r], u, hidden);
                unit.d_c = V::load(tile.d_c[0][r] + u);
            }
            V others[kMaxMemories - 1], d_others[kMaxMemories - 1];
            for (int m = 1; m < k.memories; ++m) {
                others[m - 1] = load_units(tile.c[m][r], u, hidden);
                d_others[m - 1] = V::load(tile.d_c[m][r] + u);
            }
            unit.others = others;
            unit.d_others = d_others;
            if constexpr (k.reads_h && !kLast) unit.d_h = V::load(tile.d_h[r] + u);
            V d_h_kept = zero, d_c_kept = zero;
            if (zone_h) {
                const ZonedGradient<V> d(unit.d_out, load_units(zone_h, u, hidden));
                unit.d_out = d.made;
                d_h_kept = d.before;
            }
            if (zone_c) {
                const ZonedGradient<V> d(unit.d_c, load_units(zone_c, u, hidden));
                unit.d_c = d.made;
                d_c_kept = d.before;
            }
            C::template backward<Stage>(unit);
            if (zone_h) unit.d_h = unit.d_h + d_h_kept;
            if (zone_c) unit.d_c = unit.d_c + d_c_kept;
            for (int i = 0; i < gradients; ++i) {
                // other threads may still multiply what a later stage has made
                if (!k.belongs_to_later(Stage, i)) values[i].store(d_values + i * padded + u);
            }
            if constexpr (k.c_saved >= 0) unit.d_c.store(tile.d_c[0][r] + u);
            for (int m = 1; m < k.memories; ++m) d_others[m - 1].store(tile.d_c[m][r] + u);
            if (k.reads_h || zone_h) unit.d_h.store(tile.d_h[r] + u);
            if constexpr (!kLast || k.may_project) {
                if (tile.handed_on) C::template handed_on<Stage>(unit).store(tile.handed_on[r] + u);
            }
        }
    }
}

}  // namespace
}  // namespace fastrnn
