// LSTM with what its literature adds, each where its operand is there:
//   peepholes (Gers and Schmidhuber 2000): i and f see c, o sees c', each unit through a weight of its own
//   a bound: c' = max(-bound, min(bound, f c + i g)), with no gradient beyond it
//   zoneout (zoneout.h)
// and, of another number of gates, with one gate for both (Greff et al. 2017): f = 1 - i.
//
// c' is what goes on to the next step, so c' before it was zoned out is made again of what was kept.
#pragma once

#include "cell.h"

namespace fastrnn {
namespace {

template <class Act, bool kCoupled>
struct GeneralLstm {
    static constexpr int kI = 0, kF = 1, kG = kCoupled ? 1 : 2, kO = kG + 1, kC = kO + 1;         // slots
    static constexpr int kPeepI = 0, kPeepF = 1, kPeepO = kCoupled ? 1 : 2, kBound = kPeepO + 3;  // operands

    static FASTRNN_INLINE constexpr CellTraits traits() {
        CellTraits t;
        t.gates = t.slots = kC;
        t.saved = kC + 1;
        t.c_saved = kC;
        t.may_project = true;
        t.input = t.recurrent[0] = {0, kC};
        t.learned = kPeepO + 1;
        t.zone_h = kPeepO + 1;
        t.zone_c = kPeepO + 2;
        t.operands = kBound + 1;
        return t;
    }

    template <int Stage, class V>
    static FASTRNN_INLINE void forward(ForwardUnit<V>& u) {
        const Act act(u.functions);
        V* const slots = u.slots;
        const bool peeps = u.has(kPeepI);
        if (peeps) slots[kI] = fma(u.operands[kPeepI], u.c, slots[kI]);
        const auto i = act.gate(slots[kI]), g = act.candidate(slots[kG]);
        V f = V(1) - i.value;
        if constexpr (!kCoupled) {
            if (peeps) slots[kF] = fma(u.operands[kPeepF], u.c, slots[kF]);
            const auto gate = act.gate(slots[kF]);
            f = gate.value;
            slots[kF] = gate.kept;
        }
        slots[kC] = u.c = bounded(u, fma(f, u.c, i.value * g.value));
        if (peeps) slots[kO] = fma(u.operands[kPeepO], u.c, slots[kO]);
        const auto o = act.gate(slots[kO]);
        slots[kI] = i.kept;
        slots[kG] = g.kept;
        slots[kO] = o.kept;
        u.out = o.value * act.candidate(u.c).value;
    }

    template <int Stage, class V>
    static FASTRNN_INLINE V handed_on(const BackwardUnit<V>& u) {
        const Act act(u.functions);
        const Again<V> again(u);
        return act.again_gate(u.saved[kO]).value * act.candidate(bounded(u, again.made)).value;
    }

    template <int Stage, class V>
    static FASTRNN_INLINE void backward(BackwardUnit<V>& u) {
        const Act act(u.functions);
        const bool peeps = u.has(kPeepI);
        const Again<V> again(u);
        const V c_next = bounded(u, again.made);
        const auto o = act.again_gate(u.saved[kO]), shown = act.again_candidate(act.candidate(c_next).kept);
        u.d_slots[kO] = u.d_out * shown.value * o.slope;
        V d_c = fma(u.d_out * o.value, shown.slope, u.d_c);
        if (peeps) {
            u.d_operands[kPeepO] = u.d_slots[kO] * c_next;
            d_c = fma(u.d_slots[kO], u.operands[kPeepO], d_c);
        }
        if (u.has(kBound)) d_c = select(absolute(again.made) > u.operands[kBound], V(0), d_c);
        u.d_slots[kG] = d_c * again.i.value * again.g.slope;
        u.d_c = d_c * again.f.value;
        if constexpr (kCoupled) {
            u.d_slots[kI] = d_c * (again.g.value - u.c) * again.i.slope;
        } else {
            u.d_slots[kI] = d_c * again.g.value * again.i.slope;
            u.d_slots[kF] = d_c * u.c * again.f.slope;
            if (peeps) {
                u.d_operands[kPeepF] = u.d_slots[kF] * u.c;
                u.d_c = fma(u.d_slots[kF], u.operands[kPeepF], u.d_c);
            }
        }
        if (!peeps) return;
        u.d_operands[kPeepI] = u.d_slots[kI] * u.c;
        u.d_c = fma(u.d_slots[kI], u.operands[kPeepI], u.d_c);
    }

   private:
    // the gates of what was kept, and f c + i g
    template <class V>
    struct Again {
        Differentiated<V> i, f, g;
        V made;

        FASTRNN_INLINE explicit Again(const BackwardUnit<V>& u) {
            const Act act(u.functions);
            i = act.again_gate(u.saved[kI]);
            f = kCoupled ? Differentiated<V>{V(1) - i.value, V(0)} : act.again_gate(u.saved[kF]);
            g = act.again_candidate(u.saved[kG]);
            made = fma(f.value, u.c, i.value * g.value);
        }
    };

    template <class Unit, class V>
    static FASTRNN_INLINE V bounded(const Unit& u, V c) {
        if (!u.has(kBound)) return c;
        const V bound = u.operands[kBound], below = V(0) - bound;
        const V lower = select(c < below, below, c);
        return select(lower > bound, bound, lower);
    }
};

template <class Act>
using LstmOptionsCell = GeneralLstm<Act, false>;
template <class Act>
using LstmCoupledCell = GeneralLstm<Act, true>;

}  // namespace
}  // namespace fastrnn
