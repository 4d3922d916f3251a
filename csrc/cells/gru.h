// GRU in its two forms; both h' = (1 - z) n + z h with r, z = gate(W x + U h + b), gate = sigmoid and
// act = tanh by default.
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
        const Act act(u.functions);
        V* const slots = u.slots;
        const auto r = act.gate(slots[1]), z = act.gate(slots[2]);
        const auto n = act.candidate(fma(r.value, slots[3], slots[0]));
        slots[0] = n.kept;
        slots[1] = r.kept;
        slots[2] = z.kept;
        u.out = gru_blend(n.value, z.value, u.h);
    }

    template <int Stage, class V>
    static FASTRNN_INLINE void backward(BackwardUnit<V>& u) {
        const Act act(u.functions);
        const auto n = act.again_candidate(u.saved[0]);
        const auto r = act.again_gate(u.saved[1]), z = act.again_gate(u.saved[2]);
        u.d_slots[0] = u.d_out * (V(1) - z.value) * n.slope;
        u.d_slots[1] = u.d_slots[0] * u.saved[3] * r.slope;
        u.d_slots[2] = u.d_out * (u.h - n.value) * z.slope;
        u.d_slots[3] = u.d_slots[0] * r.value;
        u.d_h = u.d_out * z.value;
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
        const Act act(u.functions);
        V* const slots = u.slots;
        if constexpr (Stage == 0) {
            const auto r = act.gate(slots[1]), z = act.gate(slots[2]);
            slots[1] = r.kept;
            slots[2] = z.kept;
            u.out = r.value * u.h;
        } else {
            const auto n = act.candidate(slots[0]);
            slots[0] = n.kept;
            u.out = gru_blend(n.value, act.again_gate(slots[2]).value, u.h);
        }
    }

    template <int Stage, class V>
    static FASTRNN_INLINE V handed_on(const BackwardUnit<V>& u) {
        return Act(u.functions).again_gate(u.saved[1]).value * u.h;
    }

    template <int Stage, class V>
    static FASTRNN_INLINE void backward(BackwardUnit<V>& u) {
        const Act act(u.functions);
        if constexpr (Stage == 0) {
            const auto r = act.again_gate(u.saved[1]);
            u.d_slots[1] = u.d_out * u.h * r.slope;
            u.d_h = fma(u.d_out, r.value, u.d_h);
        } else {
            const auto n = act.again_candidate(u.saved[0]);
            const auto z = act.again_gate(u.saved[2]);
            u.d_slots[0] = u.d_out * (V(1) - z.value) * n.slope;
            u.d_slots[2] = u.d_out * (u.h - n.value) * z.slope;
            u.d_h = u.d_out * z.value;
        }
    }
};

}  // namespace
}  // namespace fastrnn
