// sLSTM (Beck et al. 2024, https://arxiv.org/abs/2405.04517): an LSTM whose input and forget gates are exponential,
// with a normaliser n, and a stabiliser m that keeps the exponents in range; i~, f~, z~, o~ = W x + U h + b
//   m' = max(log sigmoid(f~) + m, i~), or i~ where n = 0
//   i = exp(i~ - m')        f = exp(log sigmoid(f~) + m - m')
//   c' = f c + i tanh(z~)   n' = f n + i
//   h' = sigmoid(o~) c' / n'
// Rows of the weights are in the order i f z o; c consists of c, n and m.
#pragma once

#include "cell.h"

namespace fastrnn {
namespace {

template <class Act>
struct SlstmCell {
    // slots on return: i, f~, z, o; the memories behind them
    static constexpr int kI = 0, kF = 1, kZ = 2, kO = 3, kC = 4, kN = 5, kM = 6;

    static FASTRNN_INLINE constexpr CellTraits traits() {
        CellTraits t;
        t.gates = t.slots = 4;
        t.saved = 7;
        t.c_saved = kC;
        t.memories = 3;
        t.input = t.recurrent[0] = {0, 4};
        return t;
    }

    template <int Stage, class V>
    static FASTRNN_INLINE void forward(ForwardUnit<V>& u) {
        V *const slots = u.slots, &n = u.others[0], &m = u.others[1];
        const V to_f = log_sigmoid(slots[kF]) + m, to_i = slots[kI];
        slots[kM] = m = select(n > V(0), larger(to_f, to_i), to_i);
        slots[kI] = exp(to_i - m);
        const V f = forget(to_f, m);
        slots[kZ] = tanh(slots[kZ]);
        slots[kO] = sigmoid(slots[kO]);
        slots[kC] = u.c = fma(f, u.c, slots[kI] * slots[kZ]);
        slots[kN] = n = fma(f, n, slots[kI]);
        u.out = slots[kO] * u.c / n;
    }

    template <int Stage, class V>
    static FASTRNN_INLINE void backward(BackwardUnit<V>& u) {
        const V n = u.others[0], m = u.others[1];
        const V i = u.saved[kI], z = u.saved[kZ], o = u.saved[kO], m_next = u.saved[kM];
        const V to_f = log_sigmoid(u.saved[kF]) + m, f = forget(to_f, m_next);
        const V shown = u.saved[kC] / u.saved[kN], d_shown = u.d_out * o / u.saved[kN];
        u.d_slots[kO] = u.d_out * shown * o * (V(1) - o);
        const V d_c = u.d_c + d_shown, d_n = u.d_others[0] - d_shown * shown;
        u.d_slots[kZ] = d_c * i * (V(1) - z * z);
        const V d_to_i = fma(d_c, z, d_n) * i;
        const V d_to_f = select(to_f > m_next, V(0), fma(d_c, u.c, d_n * n) * f);
        // m' is one of the two exponents: that of i where i is 1
        const V d_m = u.d_others[1] - d_to_i - d_to_f;
        const auto is_of_i = i >= V(1);
        u.d_slots[kI] = select(is_of_i, d_to_i + d_m, d_to_i);
        u.d_others[1] = select(is_of_i, d_to_f, d_to_f + d_m);
        u.d_slots[kF] = u.d_others[1] * sigmoid(V(0) - u.saved[kF]);
        u.d_c = d_c * f;
        u.d_others[0] = d_n * f;
    }

   private:
    // where n = 0 the exponent may be above 0
    template <class V>
    static FASTRNN_INLINE V forget(V to_f, V m) {
        const V exponent = to_f - m;
        return exp(select(exponent > V(0), V(0), exponent));
    }
};

}  // namespace
}  // namespace fastrnn
