// A cell with layer normalisation (Ba et al. 2016, https://arxiv.org/abs/1607.06450): each of the two products of a
// step is normalised over all of its values of a row and scaled by gains before they meet,
//   preactivations = LN(W x) gain_ih + b_ih + LN(U h) gain_hh + b_hh
// and then the plain cell's arithmetic follows. Where the cell has c, its output is made from LN(c') gain_c + bias_c;
// the c' that is carried is not normalised.
//
// LN(v) = (v - mean) / sqrt(variance + eps), with the variance of the values themselves.
//
// Slots are the two raw products, that of x first; they are all that the backward pass needs, besides c'.
#pragma once

#include "lstm.h"

namespace fastrnn {
namespace {

constexpr double kLayerNormEps = 1e-5;

template <class C>
struct Normalised {
    using Plain = C;
    static constexpr CellTraits kPlain = C::traits();
    static constexpr bool kHasC = kPlain.c_saved >= 0;

    static FASTRNN_INLINE constexpr CellTraits traits() {
        CellTraits t;
        t.gates = kPlain.gates;
        t.input = {0, kPlain.input.count};
        t.recurrent[0] = {t.input.count, kPlain.recurrent[0].count};
        t.slots = t.saved = t.recurrent[0].end();
        for (int i = 0; i < t.slots; ++i) {
            t.gate_of_slot[i] =
                kPlain.gate_of_slot[i < t.input.count ? kPlain.input.begin + i
                                                      : kPlain.recurrent[0].begin + i - t.recurrent[0].begin];
        }
        if (kHasC) t.c_saved = t.saved++;
        t.may_project = kPlain.may_project;
        t.reads_h = kPlain.reads_h;
        t.operands = t.learned = kHasC ? 4 : 2;  // gain_ih, gain_hh [G*H]; gain_c, bias_c [H]
        t.whole_rows = true;
        t.row_values = kPlain.slots + (kHasC ? 3 : 1);
        return t;
    }
};

}  // namespace
}  // namespace fastrnn
