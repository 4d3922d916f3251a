// What a cell is to the engines. They ask it, and know no slot by its number.
//
// A step of a layer is a list of stages. A stage is a product, which adds to some slots of every unit, and then
// arithmetic on the slots of one unit. The first stage multiplies h, a later one what the stage before has handed on,
// of which all units must be there first; what the last stage hands on is h'. A slot is a value of one unit of one row:
// the preactivation of a gate, or a part of it that the cell needs apart, and on return from the last stage a value
// that the backward pass needs.
//
// A cell is a template over its functions, Act (activation.h), with
//
//   static constexpr CellTraits traits();
//   template <int Stage, class V> static void forward(ForwardUnit<V>& u);
//   template <int Stage, class V> static void backward(BackwardUnit<V>& u);
//   template <int Stage, class V> static V handed_on(const BackwardUnit<V>& u);   // again, in the backward pass
//
// where V is the engine's value type: lanes of units on the CPU, a scalar on the device. handed_on is asked of every
// stage but the last, and of the last too where the cell may be projected. The engines bring sigmoid, tanh, fma, select
// and absolute of V; the CPU's also larger, log_sigmoid, and exp of what is
// not above zero.
//
// A cell of whole rows has traits alone: what it computes needs all units of a row, so the engine has functions for it.
#pragma once

#include "activation.h"
#include "fastrnn/kernels.h"

namespace fastrnn {

constexpr int kMaxSlots = 8;         // of a cell
constexpr int kMaxProductSlots = 4;  // of one product
constexpr int kMaxCellStages = 2;

struct SlotRange {
    int begin = 0, count = 0;

    FASTRNN_INLINE constexpr int end() const { return begin + count; }
    FASTRNN_INLINE constexpr bool has(int slot) const { return slot >= begin && slot < end(); }
};

struct CellTraits {
    int gates = 1;
    int slots = 1;
    int saved = 0;                                           // the slots come first among them; 0: h' is enough
    int gate_of_slot[kMaxSlots] = {0, 1, 2, 3, 4, 5, 6, 7};  // in torch's order of gates
    SlotRange input;                                         // the slots that x W^T feeds
    int stages = 1;
    SlotRange recurrent[kMaxCellStages];  // the slots that each stage's product with rows of w_hh feeds
    int c_saved = -1;          // which of the saved values is c', or the first of its memories; -1: the cell has no c
    int memories = 1;          // M: what c consists of
    bool may_project = false;  // takes w_hr
    bool reads_h = false;      // its arithmetic takes h too, and h has a gradient beside that of the products
    int operands = 0;          // values a unit beside the gates, see Operand in kernels.h
    int learned = 0;           // the first of them are parameters, and have gradients
    int zone_h = -1;           // the operand that zones out h (zoneout.h), and
    int zone_c = -1;           // the one that zones out c; each -1 where there is none
    // The arithmetic takes all units of a row at once, and with each row's gradients keeps `row_values` values a unit,
    // of which the gradients of the biases and the operands are made.
    bool whole_rows = false;
    int row_values = 0;

    FASTRNN_INLINE constexpr bool from_h(int slot) const {
        for (int s = 0; s < stages; ++s) {
            if (recurrent[s].has(slot)) return true;
        }
        return false;
    }
    // whether a stage after this one has a product that feeds the slot
    FASTRNN_INLINE constexpr bool belongs_to_later(int stage, int slot) const {
        for (int s = stage + 1; s < stages; ++s) {
            if (recurrent[s].has(slot)) return true;
        }
        return false;
    }
    FASTRNN_INLINE constexpr int stored() const { return saved > slots ? saved : slots; }  // values of a unit on return
    // values of a unit in the backward pass
    FASTRNN_INLINE constexpr int gradients() const { return slots + (whole_rows ? row_values : learned); }
};

namespace {

template <class V>
struct ForwardUnit {
    V* slots;           // [stored()] complete as far as this stage's product goes; of those that come back, a stage but
                        // the last keeps the slots of its own product
    V h, c;             // before the step; c after it on return from the last stage
    V out;              // on return: what the stage hands on
    const V* operands;  // [operands]
    Functions functions = {};
    unsigned given = 0;   // bit i: operand i is there
    V* others = nullptr;  // [M - 1] the memories behind c, like it

    FASTRNN_INLINE bool has(int operand) const { return given >> operand & 1; }
};

// The gradients of all slots stand in d_slots from stage to stage, that of the last stage first. A stage leaves those
// that belong to a later one as they are.
template <class V>
struct BackwardUnit {
    const V* saved;     // [saved]
    V h, c, h_next;     // before the step, and after it
    V d_out;            // of what the stage handed on
    const V* operands;  // [operands]
    V d_c;              // of c' on entry, of c on return
    V d_h;              // on its way around the products
    V* d_slots;         // [slots]
    V* d_operands;      // [learned]
    Functions functions = {};
    unsigned given = 0;         // as in ForwardUnit
    const V* others = nullptr;  // [M - 1] before the step, and their gradients, like c's
    V* d_others = nullptr;

    FASTRNN_INLINE bool has(int operand) const { return given >> operand & 1; }
};

// The engines' assumptions about a cell, and what kernels.h tells others of it.
template <class C>
constexpr bool check_cell(Cell cell) {
    constexpr CellTraits t = C::traits();
    const CellInfo& info = cell_info(cell);
    bool fits = t.gates == info.gates && t.saved == info.saved && t.operands == info.operands;
    fits = fits && t.learned == info.learned && info.gate_operands <= t.learned;
    fits = fits && t.zone_h < t.operands && t.zone_c < t.operands;
    fits = fits && (!t.may_project || t.operands == t.learned || t.zone_h == t.learned);
    fits = fits && (t.c_saved >= 0) == (info.states == 2) && t.may_project == info.may_project;
    fits = fits && (t.recurrent[0].count > 0) == info.recurrent;
    fits = fits && t.slots >= 1 && t.slots <= kMaxSlots && t.c_saved < t.saved;
    fits = fits && t.memories == info.memories && t.memories <= kMaxMemories;
    fits = fits && (t.memories == 1 || (t.c_saved + t.memories <= t.saved && t.zone_c < 0 && !t.whole_rows));
    fits = fits && (t.saved == 0 || t.saved >= t.slots);
    fits = fits && t.learned <= t.operands && t.operands <= kMaxOperands;
    fits = fits && (!t.whole_rows || (t.stages == 1 && t.saved > 0));
    fits = fits && t.input.begin >= 0 && t.input.count >= 1 && t.input.end() <= t.slots;
    fits = fits && t.input.count <= kMaxProductSlots && t.stages >= 1 && t.stages <= kMaxCellStages;
    for (int s = 0; s < t.stages; ++s) {
        const SlotRange slots = t.recurrent[s];
        fits = fits && slots.begin >= 0 && slots.end() <= t.slots && slots.count <= kMaxProductSlots;
        fits = fits && (slots.count >= 1 || t.stages == 1);
    }
    for (int slot = 0; slot < t.slots; ++slot) {
        fits = fits && t.gate_of_slot[slot] < t.gates && (t.input.has(slot) || t.from_h(slot));
    }
    fits = fits && (t.reads_h || t.recurrent[0].count > 0);  // or h is nothing to it
    // y is then no longer what the cell has made
    return fits && !(t.may_project && (t.reads_h || t.saved == 0));
}

}  // namespace
}  // namespace fastrnn
