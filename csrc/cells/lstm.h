// LSTM (torch.nn.LSTM; Hochreiter and Schmidhuber 1997 with the forget gate of Gers et al. 2000):
//   i, f, o = sigmoid(W x + U h + b)   g = act(W x + U h + b)
//   c' = f c + i g                     h' = o act(c')
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
        V* const slots = u.slots;
        slots[0] = sigmoid(slots[0]);
        slots[1] = sigmoid(slots[1]);
        slots[2] = Act::apply(slots[2]);
        slots[3] = sigmoid(slots[3]);
        u.c = fma(slots[1], u.c, slots[0] * slots[2]);
        slots[4] = u.c;
        u.out = slots[3] * Act::apply(u.c);
    }

    template <int Stage, class V>
    static FASTRNN_INLINE V handed_on(const V* saved, V /*h*/) {
        return saved[3] * Act::apply(saved[4]);
    }

    template <int Stage, class V>
    static FASTRNN_INLINE void backward(BackwardUnit<V>& u) {
        backward_output(u);
        backward_state(u);
    }

    // h' = o act(c'): the gradient of o, and what comes to that of c'
    template <class V>
    static FASTRNN_INLINE void backward_output(BackwardUnit<V>& u) {
        const V o = u.saved[3], act_c = Act::apply(u.saved[4]);
        u.d_slots[3] = u.d_out * act_c * o * (V(1) - o);
        u.d_c = fma(u.d_out * o, Act::derivative(act_c), u.d_c);
    }

    // c' = f c + i g: from the gradient of c' those of the other gates and of c
    template <class V>
    static FASTRNN_INLINE void backward_state(BackwardUnit<V>& u) {
        const V i = u.saved[0], f = u.saved[1], g = u.saved[2];
        u.d_slots[0] = u.d_c * g * i * (V(1) - i);
        u.d_slots[1] = u.d_c * u.c * f * (V(1) - f);
        u.d_slots[2] = u.d_c * i * Act::derivative(g);
        u.d_c = u.d_c * f;
    }
};

}  // namespace
}  // namespace fastrnn
