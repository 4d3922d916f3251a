// GRU in its two forms; both h' = (1 - z) n + z h with r, z = sigmoid(W x + U h + b).
//   reset after  (torch.nn.GRU, cuDNN):      n = act(W x + b_w + r (U h + b_u))
//   reset before (Cho et al. 2014, Keras reset_after=False, ONNX linear_before_reset=0):
//                                            n = act(W x + b_w + U (r h) + b_u)
// Slots are in an order of their own (n r z) in which the slots that x feeds, and those that h feeds, lie side by side.
#pragma once

#include "cell.h"

namespace fastrnn {
namespace {

// h' = n + z (h - n), written so that z = 0 and z = 1 are exact
template <class V>
FASTRNN_INLINE V gru_blend(V n, V z, V h) {
    return fma(z, h, (V(1) - z) * n);
}

template <class Act>
struct GruCell {
    static FASTRNN_INLINE constexpr CellTraits traits() {
        CellTraits t;
        t.gates = 3;
        t.slots = t.saved = 4;  // n (from x), r, z, n (from h)
        t.gate_of_slot[0] = t.gate_of_slot[3] = 2;
        t.gate_of_slot[1] = 0;
        t.gate_of_slot[2] = 1;
        t.input = {0, 3};
        t.recurrent[0] = {1, 3};
        t.reads_h = true;
        return t;
    }

    template <int Stage, class V>
    static FASTRNN_INLINE void forward(ForwardUnit<V>& u) {
        V* const slots = u.slots;
        slots[1] = sigmoid(slots[1]);
        slots[2] = sigmoid(slots[2]);
        slots[0] = Act::apply(fma(slots[1], slots[3], slots[0]));
        u.out = gru_blend(slots[0], slots[2], u.h);
    }

    template <int Stage, class V>
    static FASTRNN_INLINE void backward(BackwardUnit<V>& u) {
        const V n = u.saved[0], r = u.saved[1], z = u.saved[2];
        u.d_slots[0] = u.d_out * (V(1) - z) * Act::derivative(n);
        u.d_slots[1] = u.d_slots[0] * u.saved[3] * r * (V(1) - r);
        u.d_slots[2] = u.d_out * (u.h - n) * z * (V(1) - z);
        u.d_slots[3] = u.d_slots[0] * r;
        u.d_h = u.d_out * z;
    }
};

// Two stages: r and z, which hand on r h; then the candidate from U (r h).
template <class Act>
struct GruResetBeforeCell {
    static FASTRNN_INLINE constexpr CellTraits traits() {
        CellTraits t;
        t.gates = t.slots = t.saved = 3;  // n r z
        t.gate_of_slot[0] = 2;
        t.gate_of_slot[1] = 0;
        t.gate_of_slot[2] = 1;
        t.input = {0, 3};
        t.stages = 2;
        t.recurrent[0] = {1, 2};
        t.recurrent[1] = {0, 1};
        t.reads_h = true;
        return t;
    }

    template <int Stage, class V>
    static FASTRNN_INLINE void forward(ForwardUnit<V>& u) {
        V* const slots = u.slots;
        if constexpr (Stage == 0) {
            slots[1] = sigmoid(slots[1]);
            slots[2] = sigmoid(slots[2]);
            u.out = slots[1] * u.h;
        } else {
            slots[0] = Act::apply(slots[0]);
            u.out = gru_blend(slots[0], slots[2], u.h);
        }
    }

    template <int Stage, class V>
    static FASTRNN_INLINE V handed_on(const V* saved, V h) {
        return saved[1] * h;
    }

    template <int Stage, class V>
    static FASTRNN_INLINE void backward(BackwardUnit<V>& u) {
        const V n = u.saved[0], r = u.saved[1], z = u.saved[2];
        if constexpr (Stage == 0) {
            u.d_slots[1] = u.d_out * u.h * r * (V(1) - r);
            u.d_h = fma(u.d_out, r, u.d_h);
        } else {
            u.d_slots[0] = u.d_out * (V(1) - z) * Act::derivative(n);
            u.d_slots[2] = u.d_out * (u.h - n) * z * (V(1) - z);
            u.d_h = u.d_out * z;
        }
    }
};

}  // namespace
}  // namespace fastrnn
