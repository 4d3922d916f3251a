// The functions of a candidate, of the gates, and of what an LSTM's output is made from. A cell keeps of each what its
// backward pass needs: the value, from which the derivative follows, or for silu the argument.
//
// sigmoid, tanh, fma, select and absolute come from the engine's value type V.
#pragma once

#include "fastrnn/kernels.h"
#include "inline.h"

namespace fastrnn {
namespace {

struct TanhActivation {
    template <class V>
    static FASTRNN_INLINE V apply(V x) {
        return tanh(x);
    }
    template <class V>
    static FASTRNN_INLINE V derivative(V y) {
        return V(1) - y * y;
    }
};

struct SigmoidActivation {
    template <class V>
    static FASTRNN_INLINE V apply(V x) {
        return sigmoid(x);
    }
    template <class V>
    static FASTRNN_INLINE V derivative(V y) {
        return y * (V(1) - y);
    }
};

struct SoftsignActivation {
    template <class V>
    static FASTRNN_INLINE V apply(V x) {
        return x / (V(1) + absolute(x));
    }
    template <class V>
    static FASTRNN_INLINE V derivative(V y) {
        const V rest = V(1) - absolute(y);  // 1 / (1 + |x|)
        return rest * rest;
    }
};

struct ReluActivation {
    template <class V>
    static FASTRNN_INLINE V apply(V x) {
        return select(x < V(0), V(0), x);  // NaN stays NaN
    }
    template <class V>
    static FASTRNN_INLINE V derivative(V y) {
        return select(y <= V(0), V(0), V(1));
    }
};

struct HardtanhActivation {
    template <class V>
    static FASTRNN_INLINE V apply(V x) {
        const V lower = select(x < V(-1), V(-1), x);
        return select(lower > V(1), V(1), lower);
    }
    template <class V>
    static FASTRNN_INLINE V derivative(V y) {
        return select(absolute(y) >= V(1), V(0), V(1));
    }
};

struct LeakyReluActivation {  // of slope 0.01
    template <class V>
    static FASTRNN_INLINE V apply(V x) {
        return select(x < V(0), x / V(100), x);
    }
    template <class V>
    static FASTRNN_INLINE V derivative(V y) {
        return select(y <= V(0), V(1) / V(100), V(1));
    }
};

// max(0, min(1, slope x + 1/2))
template <int kInverseSlope>
struct HardSigmoidActivation {
    template <class V>
    static FASTRNN_INLINE V apply(V x) {
        const V line = fma(x, V(1) / V(kInverseSlope), V(1) / V(2));
        const V lower = select(line < V(0), V(0), line);
        return select(lower > V(1), V(1), lower);
    }
    template <class V>
    static FASTRNN_INLINE V derivative(V y) {
        return select(y <= V(0), V(0), select(y >= V(1), V(0), V(1) / V(kInverseSlope)));
    }
};

struct HalfLinearActivation {
    template <class V>
    static FASTRNN_INLINE V apply(V x) {
        return select(x < V(0), sigmoid(x), x + V(1) / V(2));
    }
    template <class V>
    static FASTRNN_INLINE V derivative(V y) {
        return select(y < V(1) / V(2), SigmoidActivation::derivative(y), V(1));
    }
};

template <class V>
struct Applied {
    V value, kept;
};
template <class V>
struct Differentiated {
    V value, slope;
};

// A layer's functions as a cell sees them: `candidate` and `gate` of an argument, and `again_candidate` and
// `again_gate` of what was kept. Here the candidate's is known when it compiles, and the gates' is sigmoid.
template <class Activation>
struct FixedFunctions {
    FASTRNN_INLINE explicit FixedFunctions(Functions) {}

    template <class V>
    FASTRNN_INLINE Applied<V> candidate(V x) const {
        const V y = Activation::apply(x);
        return {y, y};
    }
    template <class V>
    FASTRNN_INLINE Applied<V> gate(V x) const {
        const V y = sigmoid(x);
        return {y, y};
    }
    template <class V>
    FASTRNN_INLINE Differentiated<V> again_candidate(V kept) const {
        return {kept, Activation::derivative(kept)};
    }
    template <class V>
    FASTRNN_INLINE Differentiated<V> again_gate(V kept) const {
        return {kept, SigmoidActivation::derivative(kept)};
    }
};

// Here they are chosen when it runs: a branch that is always the same a vector. The rare ones are called.
struct ChosenFunctions {
    const Functions chosen;

    FASTRNN_INLINE explicit ChosenFunctions(Functions functions) : chosen(functions) {}

    template <class V>
    FASTRNN_INLINE Applied<V> candidate(V x) const {
        return apply(chosen.candidate, x);
    }
    template <class V>
    FASTRNN_INLINE Applied<V> gate(V x) const {
        return apply(chosen.gate, x);
    }
    template <class V>
    FASTRNN_INLINE Differentiated<V> again_candidate(V kept) const {
        return again(chosen.candidate, kept);
    }
    template <class V>
    FASTRNN_INLINE Differentiated<V> again_gate(V kept) const {
        return again(chosen.gate, kept);
    }

   private:
    // of those whose value is kept
    template <class V, class Call>
    static FASTRNN_INLINE V visit(Activation activation, const Call& call) {
        switch (activation) {
            case Activation::softsign: return call(SoftsignActivation());
            case Activation::relu: return call(ReluActivation());
            case Activation::hardtanh: return call(HardtanhActivation());
            case Activation::leaky_relu: return call(LeakyReluActivation());
            case Activation::hardsigmoid: return call(HardSigmoidActivation<6>());
            case Activation::half_linear: return call(HalfLinearActivation());
            default: return call(HardSigmoidActivation<5>());
        }
    }
    template <class V>
    static FASTRNN_NOINLINE V apply_rare(Activation activation, V x) {
        return visit<V>(activation, [&](auto of) { return decltype(of)::apply(x); });
    }
    template <class V>
    static FASTRNN_NOINLINE V derivative_rare(Activation activation, V y) {
        return visit<V>(activation, [&](auto of) { return decltype(of)::derivative(y); });
    }

    template <class V>
    static FASTRNN_INLINE Applied<V> apply(Activation activation, V x) {
        if (activation == Activation::identity) return {x, x};
        if (activation == Activation::silu) return {x * sigmoid(x), x};
        const V y = activation == Activation::tanh      ? tanh(x)
                    : activation == Activation::sigmoid ? sigmoid(x)
                                                        : apply_rare(activation, x);
        return {y, y};
    }
    template <class V>
    static FASTRNN_INLINE Differentiated<V> again(Activation activation, V kept) {
        if (activation == Activation::tanh) return {kept, TanhActivation::derivative(kept)};
        if (activation == Activation::sigmoid) return {kept, SigmoidActivation::derivative(kept)};
        if (activation == Activation::identity) return {kept, V(1)};
        if (activation == Activation::silu) {
            const V s = sigmoid(kept), value = kept * s;
            return {value, fma(value, V(1) - s, s)};
        }
        return {kept, derivative_rare(activation, kept)};
    }
};

}  // namespace
}  // namespace fastrnn
