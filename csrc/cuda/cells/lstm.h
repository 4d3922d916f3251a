// LSTM (torch.nn.LSTM; Hochreiter and Schmidhuber 1997 with the forget gate of Gers et al. 2000):
//   i, f, o = sigmoid(W x + U h + b)   g = act(W x + U h + b)
//   c' = f c + i g                     h' = o act(c')
//
// A cell works on slots: for one unit of one row, the preactivations of its gates on entry and the values to be kept
// for the backward pass on return. gate_of_slot maps a slot to torch's gate order.
#pragma once

#include "../../cells/activation.h"

namespace fastrnn {
namespace {

template <class Act>
struct LstmCell {
    static constexpr int kGates = 4;
    static constexpr int kSlots = 4;  // i f g o
    static constexpr int kSaved = 5;  // i f g o c
    static FASTRNN_INLINE constexpr int gate_of_slot(int slot) { return slot; }
    static constexpr int kInputBegin = 0, kInputCount = 4;          // slots that x W^T feeds
    static constexpr int kRecurrentBegin = 0, kRecurrentCount = 4;  // slots that h U^T feeds
    static constexpr bool kHasCellState = true;
    static constexpr bool kResetBefore = false;
    static constexpr bool kDirectPath = false;  // h reaches h' only through the gates

    // slots: preactivations -> i f g o c'
    template <class V>
    static FASTRNN_INLINE void forward(V* slots, V /*h*/, V& c, V& h_next) {
        slots[0] = sigmoid(slots[0]);
        slots[1] = sigmoid(slots[1]);
        slots[2] = Act::apply(slots[2]);
        slots[3] = sigmoid(slots[3]);
        c = fma(slots[1], c, slots[0] * slots[2]);
        slots[4] = c;
        h_next = slots[3] * Act::apply(c);
    }

    // h' again, from what was kept
    template <class V>
    static FASTRNN_INLINE V output(const V* saved) {
        return saved[3] * Act::apply(saved[4]);
    }

    // d_c: gradient of c' on entry, of c on return; d_slots: gradients of the preactivations
    template <class V>
    static FASTRNN_INLINE void backward(const V* saved, V /*h*/, V /*h_next*/, V c, V d_h, V& d_c, V* d_slots,
                                        V& /*d_h_direct*/) {
        const V i = saved[0], f = saved[1], g = saved[2], o = saved[3];
        const V act_c = Act::apply(saved[4]);
        d_slots[3] = d_h * act_c * o * (V(1) - o);
        d_c = fma(d_h * o, Act::derivative(act_c), d_c);
        d_slots[0] = d_c * g * i * (V(1) - i);
        d_slots[1] = d_c * c * f * (V(1) - f);
        d_slots[2] = d_c * i * Act::derivative(g);
        d_c = d_c * f;
    }
};

}  // namespace
}  // namespace fastrnn
