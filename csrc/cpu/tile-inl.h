// Where the engine and a cell meet: a stage's arithmetic on a block of rows and some of their units, behind one pointer
// to a function. An engine's loop is compiled once for all cells.
//
// Rows are given by their addresses. Those of h and c before a step, of y, d_y and operands end at the last unit; all
// others are padded to padded_units.
#pragma once

#include "../cells/all.h"
#include "../cells/rows.h"
#include "math-inl.h"
#include "team.h"

namespace fastrnn {
namespace {

template <class T>
struct ForwardTile {
    int64_t rows, begin, end;  // units begin .. end of each row
    int64_t hidden, padded;    // units that there are, and from slot to slot
    T* const* slots;           // [slots][padded] of a row
    const T* const* h;         // before the step
    const T* const* c;         // before the step, of a cell that has c
    T* const* c_next;          // may be c
    T* const* out;             // what the stage hands on
    T* const* y;               // where it goes too, or null
    bool keeps;                // the values that the backward pass needs, in the place of the slots
    const T* const* operands[kMaxOperands];
    const T *b_ih, *b_hh;  // [G*H], or null; of a cell of whole rows, whose slots lack them
};

template <class T>
struct BackwardTile {
    int64_t rows, begin, end, hidden, padded;
    const T* const* saved;  // [saved][padded] of a row
    const T* const* h;      // before the step
    const T* const* c;      // before the step
    const T* const* y;      // h'
    const T* const* d_out;  // of what the stage handed on; of h' what came back through time
    const T* const* d_y;    // to be added to it, or null
    T* const* d_h;          // on its way around the products: made by the last stage, added to by others
    T* const* d_c;          // of c' on entry, of c on return
    T* const* d_values;     // [gradients()][padded] of a row
    T* const* handed_on;    // what the stage handed on, again, or null
    const T* const* operands[kMaxOperands];
    const T *b_ih, *b_hh;  // as in ForwardTile
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

// the rows first .. first + count of an operand at time t
template <class T>
void find_operand_rows(const Operand& operand, const Steps& steps, int64_t t, int64_t first, int64_t count,
                       const T** rows) {
    const T* const from = static_cast<const T*>(operand.data) + t * operand.stride_time;
    for (int64_t r = 0; r < count; ++r) rows[r] = from + steps.row_of(first + r) * operand.stride_batch;
}

template <class C, int Stage>
constexpr bool kIsLast = Stage + 1 == C::traits().stages;

template <class T, class C, int Stage>
FASTRNN_NOINLINE void forward_tile(const ForwardTile<T>& tile) {
    using V = Vec<T>;
    constexpr CellTraits k = C::traits();
    constexpr bool kLast = kIsLast<C, Stage>;
    constexpr SlotRange kKept = kLast ? SlotRange{0, k.saved} : k.recurrent[Stage];
    const int64_t begin = tile.begin, end = tile.end, padded = tile.padded, hidden = tile.hidden;
    const bool keeps = !kLast || (k.saved > 0 && tile.keeps);
    for (int64_t r = 0; r < tile.rows; ++r) {
        T* const slots = tile.slots[r];
        T* const out = tile.out[r];
        T* const y = kLast && tile.y ? tile.y[r] : nullptr;
        const T* const h = k.reads_h ? tile.h[r] : nullptr;
        const T* const c = k.c_saved >= 0 ? tile.c[r] : nullptr;
        T* const c_next = k.c_saved >= 0 ? tile.c_next[r] : nullptr;
        for (int64_t u = begin; u < end; u += V::kLanes) {
            V values[k.stored()], operands[kMaxOperands];
            for (int i = 0; i < k.slots; ++i) values[i] = V::load(slots + i * padded + u);
            for (int i = 0; i < k.operands; ++i) operands[i] = load_units(tile.operands[i][r], u, hidden);
            ForwardUnit<V> unit{values, V{T(0)}, V{T(0)}, V{T(0)}, operands};
            if constexpr (k.reads_h) unit.h = load_units(h, u, hidden);
            if constexpr (k.c_saved >= 0) unit.c = load_units(c, u, hidden);
            C::template forward<Stage>(unit);
            if constexpr (kLast && k.c_saved >= 0) unit.c.store(c_next + u);
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
    const int64_t padded = tile.padded, hidden = tile.hidden;
    for (int64_t r = 0; r < tile.rows; ++r) {
        T* const d_values = tile.d_values[r];
        for (int64_t u = tile.begin; u < tile.end; u += V::kLanes) {
            V saved[k.saved > 0 ? k.saved : 1], values[k.gradients()], operands[kMaxOperands];
            const V zero{T(0)};
            for (int i = 0; i < k.saved; ++i) saved[i] = V::load(tile.saved[r] + i * padded + u);
            for (int i = 0; i < k.operands; ++i) operands[i] = load_units(tile.operands[i][r], u, hidden);
            for (int i = 0; i < k.gradients(); ++i) values[i] = kLast ? zero : V::load(d_values + i * padded + u);
            BackwardUnit<V> unit{saved,    zero, zero, zero,   V::load(tile.d_out[r] + u),
                                 operands, zero, zero, values, values + k.slots};
            if (kLast && tile.d_y) unit.d_out = unit.d_out + load_units(tile.d_y[r], u, hidden);
            if constexpr (k.reads_h) unit.h = load_units(tile.h[r], u, hidden);
            if constexpr (k.saved == 0) unit.h_next = load_units(tile.y[r], u, hidden);
            if constexpr (k.c_saved >= 0) {
                unit.c = load_units(tile.c[r], u, hidden);
                unit.d_c = V::load(tile.d_c[r] + u);
            }
            if constexpr (k.reads_h && !kLast) unit.d_h = V::load(tile.d_h[r] + u);
            C::template backward<Stage>(unit);
            for (int i = 0; i < k.gradients(); ++i) {
                // other threads may still multiply what a later stage has made
                if (!k.belongs_to_later(Stage, i)) values[i].store(d_values + i * padded + u);
            }
            if constexpr (k.c_saved >= 0) unit.d_c.store(tile.d_c[r] + u);
            if constexpr (k.reads_h) unit.d_h.store(tile.d_h[r] + u);
            if constexpr (!kLast || k.may_project) {
                if (tile.handed_on) C::template handed_on<Stage>(saved, unit.h).store(tile.handed_on[r] + u);
            }
        }
    }
}

}  // namespace
}  // namespace fastrnn
