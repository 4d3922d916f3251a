// IndRNN with a mask (Li et al. 2018, https://arxiv.org/abs/1803.04831), each unit with a recurrent weight of its own
// and no product with h: h' = act(W x + b + u (m h)). Operands: u [H], learned; m, a mask of h that may differ by step
// and by row.
#pragma once

#include "cells/cell.h"

namespace fastrnn {
namespace {

template <class Act>
struct MaskedIndRnnCell {
    static FASTRNN_INLINE constexpr CellTraits traits() {
        CellTraits t;
        t.input = {0, 1};
        t.reads_h = true;
        t.operands = 2;
        t.learned = 1;
        return t;
    }

    template <int Stage, class V>
    static FASTRNN_INLINE void forward(ForwardUnit<V>& u) {
        u.out = Act(u.functions).candidate(fma(u.operands[0], u.operands[1] * u.h, u.slots[0])).value;
    }

    template <int Stage, class V>
    static FASTRNN_INLINE void backward(BackwardUnit<V>& u) {
        u.d_slots[0] = u.d_out * Act(u.functions).again_candidate(u.h_next).slope;
        u.d_operands[0] = u.d_slots[0] * u.operands[1] * u.h;
        u.d_h = u.d_slots[0] * u.operands[0] * u.operands[1];
    }
};

}  // namespace
}  // namespace fastrnn
