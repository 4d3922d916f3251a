// RNN (torch.nn.RNN; Elman 1990): h' = act(W x + b_w + U h + b_u).
#pragma once

#include "cell.h"

namespace fastrnn {
namespace {

// kKeeps: else h' itself is enough for the backward pass, which it is not with every function and not with zoneout
template <class Act, bool kKeeps>
struct ElmanCell {
    static FASTRNN_INLINE constexpr CellTraits traits() {
        CellTraits t;
        t.saved = kKeeps ? 1 : 0;
        t.input = t.recurrent[0] = {0, 1};
        return t;
    }

    template <int Stage, class V>
    static FASTRNN_INLINE void forward(ForwardUnit<V>& u) {
        const auto h = Act(u.functions).candidate(u.slots[0]);
        if (kKeeps) u.slots[0] = h.kept;
        u.out = h.value;
    }

    template <int Stage, class V>
    static FASTRNN_INLINE void backward(BackwardUnit<V>& u) {
        u.d_slots[0] = u.d_out * Act(u.functions).again_candidate(kKeeps ? u.saved[0] : u.h_next).slope;
    }
};

template <class Act>
using RnnCell = ElmanCell<Act, false>;
template <class Act>
using KeepingRnnCell = ElmanCell<Act, true>;

}  // namespace
}  // namespace fastrnn
