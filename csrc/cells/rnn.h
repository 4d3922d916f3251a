// RNN (torch.nn.RNN; Elman 1990): h' = act(W x + b_w + U h + b_u).
#pragma once

#include "cell.h"

namespace fastrnn {
namespace {

template <class Act>
struct RnnCell {
    static FASTRNN_INLINE constexpr CellTraits traits() {
        CellTraits t;  // one slot, and h' itself is enough for the backward pass
        t.input = t.recurrent[0] = {0, 1};
        return t;
    }

    template <int Stage, class V>
    static FASTRNN_INLINE void forward(ForwardUnit<V>& u) {
        u.out = Act::apply(u.slots[0]);
    }

    template <int Stage, class V>
    static FASTRNN_INLINE void backward(BackwardUnit<V>& u) {
        u.d_slots[0] = u.d_out * Act::derivative(u.h_next);
    }
};

}  // namespace
}  // namespace fastrnn
