// minGRU and minLSTM (Feng et al. 2024, https://arxiv.org/abs/2410.01201), whose gates see x alone: no product waits
// for h, and units have nothing to do with each other. All of i, f, z, n take W x + b; gate = sigmoid.
//   minGRU:   z = gate(.)   n = act(.)                     h' = (1 - z) h + z n
//   minLSTM:  i, f = gate(.)   n = act(.)   f' = f / (f + i)   h' = f' h + (1 - f') n
// Rows of the weights are in the orders z n and i f n.
#pragma once

#include "cell.h"

namespace fastrnn {
namespace {

template <class Act>
struct MinGruCell {
    static FASTRNN_INLINE constexpr CellTraits traits() {
        CellTraits t;
        t.gates = t.slots = t.saved = 2;  // z n
        t.input = {0, 2};
        t.reads_h = true;
        return t;
    }

    template <int Stage, class V>
    static FASTRNN_INLINE void forward(ForwardUnit<V>& u) {
        const V z = u.slots[0] = sigmoid(u.slots[0]);
        const auto n = Act(u.functions).candidate(u.slots[1]);
        u.slots[1] = n.kept;
        u.out = fma(z, n.value, (V(1) - z) * u.h);
    }

    template <int Stage, class V>
    static FASTRNN_INLINE void backward(BackwardUnit<V>& u) {
        const V z = u.saved[0];
        const auto n = Act(u.functions).again_candidate(u.saved[1]);
        u.d_slots[0] = u.d_out * (n.value - u.h) * z * (V(1) - z);
        u.d_slots[1] = u.d_out * z * n.slope;
        u.d_h = u.d_out * (V(1) - z);
    }
};

template <class Act>
struct MinLstmCell {
    static FASTRNN_INLINE constexpr CellTraits traits() {
        CellTraits t;
        t.gates = t.slots = 3;  // slopes of f' by the arguments of i and of f, then n
        t.saved = 4;            // and f'
        t.input = {0, 3};
        t.reads_h = true;
        return t;
    }

    template <int Stage, class V>
    static FASTRNN_INLINE void forward(ForwardUnit<V>& u) {
        V* const slots = u.slots;
        // f / (f + i), also where both are next to nothing
        const V f = slots[3] = sigmoid(log_sigmoid(slots[1]) - log_sigmoid(slots[0]));
        const V slope = f * (V(1) - f);
        slots[0] = V(0) - slope * sigmoid(V(0) - slots[0]);
        slots[1] = slope * sigmoid(V(0) - slots[1]);
        const auto n = Act(u.functions).candidate(slots[2]);
        slots[2] = n.kept;
        u.out = fma(f, u.h, (V(1) - f) * n.value);
    }

    template <int Stage, class V>
    static FASTRNN_INLINE void backward(BackwardUnit<V>& u) {
        const V f = u.saved[3];
        const auto n = Act(u.functions).again_candidate(u.saved[2]);
        const V d_f = u.d_out * (u.h - n.value);
        u.d_slots[0] = d_f * u.saved[0];
        u.d_slots[1] = d_f * u.saved[1];
        u.d_slots[2] = u.d_out * (V(1) - f) * n.slope;
        u.d_h = u.d_out * f;
    }
};

}  // namespace
}  // namespace fastrnn
