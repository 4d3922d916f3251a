// GRU in its two forms; both h' = (1 - z) n + z h with r, z = sigmoid(W x + U h + b).
//   reset after  (torch.nn.GRU, cuDNN):      n = act(W x + b_w + r (U h + b_u))
//   reset before (Cho et al. 2014, Keras reset_after=False, ONNX linear_before_reset=0):
//                                            n = act(W x + b_w + U (r h) + b_u)
// Slots are in an order of their own (n r z) in which the slots that x feeds, and those that h feeds, lie side by side.
#pragma once

#include "../../cells/activation.h"

namespace fastrnn {
namespace {

// h' = n + z (h - n), written so that z = 0 and z = 1 are exact
template <class V>
FASTRNN_INLINE V gru_blend(V n, V z, V h) {
    return fma(z, h, (V(1) - z) * n);
}

template <class Act>
struct GruCell {
    static constexpr int kGates = 3;
    static constexpr int kSlots = 4;  // n (from x), r, z, n (from h)
    static constexpr int kSaved = 4;
    static FASTRNN_INLINE constexpr int gate_of_slot(int slot) { return (slot + 2) % 3; }
    static constexpr int kInputBegin = 0, kInputCount = 3;
    static constexpr int kRecurrentBegin = 1, kRecurrentCount = 3;
    static constexpr bool kHasCellState = false;
    static constexpr bool kResetBefore = false;
    static constexpr bool kDirectPath = true;  // z h

    // slots: preactivations -> n r z and the candidate's recurrent sum
    template <class V>
    static FASTRNN_INLINE void forward(V* slots, V h, V& /*c*/, V& h_next) {
        slots[1] = sigmoid(slots[1]);
        slots[2] = sigmoid(slots[2]);
        slots[0] = Act::apply(fma(slots[1], slots[3], slots[0]));
        h_next = gru_blend(slots[0], slots[2], h);
    }

    template <class V>
    static FASTRNN_INLINE void backward(const V* saved, V h, V /*h_next*/, V /*c*/, V d_h, V& /*d_c*/, V* d_slots,
                                        V& d_h_direct) {
        const V n = saved[0], r = saved[1], z = saved[2];
        d_slots[0] = d_h * (V(1) - z) * Act::derivative(n);
        d_slots[1] = d_slots[0] * saved[3] * r * (V(1) - r);
        d_slots[2] = d_h * (h - n) * z * (V(1) - z);
        d_slots[3] = d_slots[0] * r;
        d_h_direct = d_h * z;
    }
};

template <class Act>
struct GruResetBeforeCell {
    static constexpr int kGates = 3;
    static constexpr int kSlots = 3;  // n r z
    static constexpr int kSaved = 3;
    static FASTRNN_INLINE constexpr int gate_of_slot(int slot) { return (slot + 2) % 3; }
    static constexpr int kInputBegin = 0, kInputCount = 3;
    static constexpr int kRecurrentBegin = 1, kRecurrentCount = 2;  // r z; then n from r h
    static constexpr bool kHasCellState = false;
    static constexpr bool kResetBefore = true;
    static constexpr bool kDirectPath = true;

    // the first half of a step: r z, and r h for the second product
    template <class V>
    static FASTRNN_INLINE V reset(V* slots, V h) {
        slots[1] = sigmoid(slots[1]);
        slots[2] = sigmoid(slots[2]);
        return slots[1] * h;
    }

    // the second half, when slot 0 has received U (r h)
    template <class V>
    static FASTRNN_INLINE void forward(V* slots, V h, V& /*c*/, V& h_next) {
        slots[0] = Act::apply(slots[0]);
        h_next = gru_blend(slots[0], slots[2], h);
    }

    // all but r, whose gradient needs d(r h) = U^T d_slots[0]
    template <class V>
    static FASTRNN_INLINE void backward(const V* saved, V h, V /*h_next*/, V /*c*/, V d_h, V& /*d_c*/, V* d_slots,
                                        V& d_h_direct) {
        const V n = saved[0], z = saved[2];
        d_slots[0] = d_h * (V(1) - z) * Act::derivative(n);
        d_slots[2] = d_h * (h - n) * z * (V(1) - z);
        d_h_direct = d_h * z;
    }

    template <class V>
    static FASTRNN_INLINE void backward_reset(const V* saved, V h, V d_reset_h, V* d_slots, V& d_h_direct) {
        const V r = saved[1];
        d_slots[1] = d_reset_h * h * r * (V(1) - r);
        d_h_direct = fma(d_reset_h, r, d_h_direct);
    }
};

}  // namespace
}  // namespace fastrnn
