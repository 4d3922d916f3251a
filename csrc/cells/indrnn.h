// IndRNN (Li et al. 2018, https://arxiv.org/abs/1803.04831), each unit with a recurrent weight of its own and no
// product with h: h' = act(W x + b + u h). Operand: u [H], learned.
#pragma once

#include "cell.h"

namespace fastrnn {
namespace {

template <class Act>
struct IndRnnCell {
    static FASTRNN_INLINE constexpr CellTraits traits() {
        CellTraits t;
        t.saved = 1;
        t.input = {0, 1};
        t.reads_h = true;
        t.operands = t.learned = 1;
        return t;
    }

    template <int Stage, class V>
    static FASTRNN_INLINE void forward(ForwardUnit<V>& u) {
        const auto h = Act(u.functions).candidate(fma(u.operands[0], u.h, u.slots[0]));
        u.slots[0] = h.kept;
        u.out = h.value;
    }

    template <int Stage, class V>
    static FASTRNN_INLINE void backward(BackwardUnit<V>& u) {
        u.d_slots[0] = u.d_out * Act(u.functions).again_candidate(u.saved[0]).slope;
        u.d_operands[0] = u.d_slots[0] * u.h;
        u.d_h = u.d_slots[0] * u.operands[0];
    }
};

}  // namespace
}  // namespace fastrnn
