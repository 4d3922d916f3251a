// RNN (torch.nn.RNN; Elman 1990): h' = act(W x + b_w + U h + b_u), act tanh or relu.
#pragma once

#include "../../cells/activation.h"

namespace fastrnn {
namespace {

template <class Act>
struct RnnCell {
    static constexpr int kGates = 1;
    static constexpr int kSlots = 1;
    static constexpr int kSaved = 0;  // h' itself is enough
    static FASTRNN_INLINE constexpr int gate_of_slot(int /*slot*/) { return 0; }
    static constexpr int kInputBegin = 0, kInputCount = 1;
    static constexpr int kRecurrentBegin = 0, kRecurrentCount = 1;
    static constexpr bool kHasCellState = false;
    static constexpr bool kResetBefore = false;
    static constexpr bool kDirectPath = false;

    template <class V>
    static FASTRNN_INLINE void forward(V* slots, V /*h*/, V& /*c*/, V& h_next) {
        h_next = Act::apply(slots[0]);
    }

    template <class V>
    static FASTRNN_INLINE void backward(const V* /*saved*/, V /*h*/, V h_next, V /*c*/, V d_h, V& /*d_c*/, V* d_slots,
                                        V& /*d_h_direct*/) {
        d_slots[0] = d_h * Act::derivative(h_next);
    }
};

}  // namespace
}  // namespace fastrnn
