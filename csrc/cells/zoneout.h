// Zoneout (Krueger et al. 2017, https://arxiv.org/abs/1606.01305): a unit of the new state is kept from the step
// before,
//   h' = z h + (1 - z) h'',   with h'' what the cell has made,
// where z is drawn from {0, 1} in training, and its mean at evaluation. The same for c' with a z of its own; h'' is
// made from the c'' that has not been zoned out yet.
//
// The engines do it around a cell whose traits name the operands.
#pragma once

#include "gru.h"
#include "norm.h"
#include "rnn.h"

namespace fastrnn {
namespace {

// a new state from what was made of it, and from the one before
template <class V>
FASTRNN_INLINE V zone_out(V made, V before, V z) {
    return fma(z, before, (V(1) - z) * made);
}

// and the gradient of the new state in two parts
template <class V>
struct ZonedGradient {
    V made, before;

    FASTRNN_INLINE explicit ZonedGradient(V d) : made(d), before(V(0)) {}
    FASTRNN_INLINE ZonedGradient(V d, V z) : made((V(1) - z) * d), before(z * d) {}
};

// A cell with zoneout; one with c must not need the c' that it made in the backward pass.
template <class C>
struct Zoned : C {
    static FASTRNN_INLINE constexpr CellTraits traits() {
        CellTraits t = C::traits();
        t.zone_h = t.operands++;
        if (t.c_saved >= 0) t.zone_c = t.operands++;
        return t;
    }
};

template <class Act>
using GruOptionsCell = Zoned<GruCell<Act>>;
template <class Act>
using GruResetBeforeOptionsCell = Zoned<GruResetBeforeCell<Act>>;
template <class Act>
using RnnOptionsCell = Zoned<KeepingRnnCell<Act>>;
template <class Act>
using LstmLayerNormCell = Zoned<Normalised<LstmCell<Act>>>;
template <class Act>
using GruLayerNormCell = Zoned<Normalised<GruCell<Act>>>;
template <class Act>
using RnnLayerNormCell = Zoned<Normalised<KeepingRnnCell<Act>>>;

}  // namespace
}  // namespace fastrnn
