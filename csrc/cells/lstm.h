// LSTM (torch.nn.LSTM; Hochreiter and Schmidhuber 1997 with the forget gate of Gers et al. 2000):
//   i, f, o = gate(W x + U h + b)   g = act(W x + U h + b)
//   c' = f c + i g                  h' = o act(c')
// with gate = sigmoid and act = tanh by default.
#pragma once

#include "cell.h"

namespace fastrnn {
namespace {

template <class Act>
struct LstmCell {
    static constexpr int kOutputGate = 3;

    static FASTRNN_INLINE constexpr CellTraits traits() {
        CellTraits t;
        t.gates = t.slots = 4;  // i f g o
        t.saved = 5;            // i f g o c'
        t.c_saved = 4;
        t.may_project = true;
        t.input = t.recurrent[0] = {0, 4};
        return t;
    }

    template <int Stage, class V>
    static FASTRNN_INLINE void forward(ForwardUnit<V>& u) {
        const Act act(u.functions);
        V* const slots = u.slots;
        const auto i = act.gate(slots[0]), f = act.gate(slots[1]), g = act.candidate(slots[2]), o = act.gate(slots[3]);
        slots[0] = i.kept;
        slots[1] = f.kept;
        slots[2] = g.kept;
        slots[3] = o.kept;
        slots[4] = u.c = fma(f.value, u.c, i.value * g.value);
        u.out = o.value * act.candidate(u.c).value;
    }

    template <int Stage, class V>
    static FASTRNN_INLINE V handed_on(const BackwardUnit<V>& u) {
        const Act act(u.functions);
        return act.again_gate(u.saved[3]).value * act.candidate(u.saved[4]).value;
    }

    template <int Stage, class V>
    static FASTRNN_INLINE void backward(BackwardUnit<V>& u) {
        backward_output(u);
        backward_state(u);
    }

    // h' = o act(c'): the gradient of o, and what comes to that of c'
    template <class V>
    static FASTRNN_INLINE void backward_output(BackwardUnit<V>& u) {
        const Act act(u.functions);
        const auto o = act.again_gate(u.saved[3]), shown = act.again_candidate(act.candidate(u.saved[4]).kept);
        u.d_slots[3] = u.d_out * shown.value * o.slope;
        u.d_c = fma(u.d_out * o.value, shown.slope, u.d_c);
    }

    // c' = f c + i g: from the gradient of c' those of the other gates and of c
    template <class V>
    static FASTRNN_INLINE void backward_state(BackwardUnit<V>& u) {
        const Act act(u.functions);
        const auto i = act.again_gate(u.saved[0]), f = act.again_gate(u.saved[1]), g = act.again_candidate(u.saved[2]);
        u.d_slots[0] = u.d_c * g.value * i.slope;
        u.d_slots[1] = u.d_c * u.c * f.slope;
        u.d_slots[2] = u.d_c * i.value * g.slope;
        u.d_c = u.d_c * f.value;
    }
};

}  // namespace
}  // namespace fastrnn
